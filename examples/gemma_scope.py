"""Gemma Scope's SAEs of growing width at one hook point as a forest: no training, parents by the paper's rule.

Run it with `python examples/gemma_scope.py`; the SAEs come from the Hugging Face hub. The same three lines serve any
pretrained SAEs of growing width that read the same activations. `evaluate_forest(saes, forest, activations)` measures
what comes out, and docs/explorer.md tells how to look at it.
"""

import json
from pathlib import Path

from sae_lens import SAE

from sae_lens_hsae import FeatureForest

RELEASE = "gemma-scope-2b-pt-res-canonical"
LEVELS = ["layer_12/width_16k/canonical", "layer_12/width_65k/canonical", "layer_12/width_262k/canonical"]
OUTPUT = Path("runs/gemma_scope_layer_12.json")


def main() -> None:
    saes = [SAE.from_pretrained(RELEASE, level) for level in LEVELS]
    forest = FeatureForest.from_saes(saes)
    print(forest)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(forest.to_dict()))


if __name__ == "__main__":
    main()
