"""Gemma Scope's SAEs of growing width at one hook point as a forest: no training, parents by the paper's rule.

On Gemma 3 270M a reader found most edges by that rule unrelated. The package's own rule reads activations and is truer:
`from_saes(saes, activations=batches)`, in batches (tokens, d_in) of the hook point.

Run it with `python examples/gemma_scope.py`; the SAEs come from the Hugging Face hub. The same three lines serve any
pretrained SAEs of growing width that read the same activations. `evaluate_forest(saes, forest, activations)` measures
what comes out, and docs/explorer.md tells how to look at it.
"""

from sae_lens import SAE

from sae_lens_hsae.forest import PAPER_RULE, FeatureForest
from sae_lens_hsae.forest.files import write_forest

RELEASE = "gemma-scope-2b-pt-res-canonical"
LEVELS = ["layer_12/width_16k/canonical", "layer_12/width_65k/canonical", "layer_12/width_262k/canonical"]
OUTPUT = "runs/gemma_scope_layer_12.json"


def main() -> None:
    saes = [SAE.from_pretrained(RELEASE, level) for level in LEVELS]
    forest = FeatureForest.from_saes(saes, PAPER_RULE)
    print(forest)
    write_forest(forest, OUTPUT)


if __name__ == "__main__":
    main()
