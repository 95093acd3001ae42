"""Gemma Scope's SAEs of growing width at one hook point, with a forest, in a folder that every command reads.

    python examples/gemma_scope.py my_text.txt
    hsae explore runs/gemma-scope --text my_text.txt

The SAEs and Gemma 2 2B come from the Hugging Face hub. Nothing is trained: parents are counted on 50,000 tokens of the
text, by the rule that HSAE trains with. (The paper's rule reads weights alone; on Gemma 3 270M 81 of a hundred of its
edges over JumpReLU SAEs read as unrelated.) The same lines serve any JumpReLU or ReLU SAEs of one hook point.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hsae import FeatureForest, HierarchicalSAE
from sae_lens_hsae.cli.collected import activations_of_text

RELEASE = "gemma-scope-2b-pt-res-canonical"
LEVELS = ["layer_12/width_16k/canonical", "layer_12/width_65k/canonical"]
N_TOKENS = 50_000


def main(saes: Sequence[SAE[Any]], text: Path, folder: Path) -> None:
    forest = FeatureForest.from_saes(saes, activations=activations_of_text(saes[0], text, N_TOKENS))
    print(forest)
    HierarchicalSAE.from_saes(saes, forest).save_model(folder)
    print(f"Now run: hsae explore {folder} --text {text}")


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pretrained = [SAE.from_pretrained(RELEASE, level, device=device) for level in LEVELS]
    main(pretrained, Path(sys.argv[1]), Path("runs/gemma-scope"))
