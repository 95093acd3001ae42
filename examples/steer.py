"""Push a feature of a saved forest while its language model writes, and compare with pushing its ancestors.

python examples/steer.py runs/gpt2 2/17 --amount 40 --prompt "The weather today"
"""

import argparse

import torch
from sae_lens import SAE

from sae_lens_hsae import HierarchicalSAE
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.steering import add, continued, effect_of, steer
from sae_lens_hsae.text.hook_point import ids_of_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the SAE was saved")
    parser.add_argument("feature", help="level and feature, such as 2/17, as the page shows it")
    parser.add_argument("--amount", type=float, default=20.0, help="by how much its activation rises")
    parser.add_argument("--prompt", default="I think that")
    parser.add_argument("--n-tokens", type=int, default=30)
    chosen = parser.parse_args()

    sae = SAE.load_from_disk(chosen.folder)
    assert isinstance(sae, HierarchicalSAE)
    model = load_language_model(sae)
    levels, pushed = sae.forest.levels, sae.forest.levels.named(chosen.feature)
    start, ids = ids_of_text(model, sae, chosen.prompt)
    tokens = torch.tensor([[*start, *ids]], device=sae.device)

    def text() -> str:
        return model.tokenizer.decode(continued(model, tokens, chosen.n_tokens)[0])

    print("as it is:", text())
    with steer(model, sae, [add(pushed, chosen.amount)]):
        print("pushed:  ", text())

    print("pushing     norm    KL    share of the change in the feature's ancestors and subtree")
    for feature in sae.forest.path(pushed):
        effect = effect_of(model, sae, [add(feature, chosen.amount)], tokens, target=pushed)
        n_on, n_off = effect.n_on, effect.n_off
        kl = ((effect.kl_on * n_on if n_on else 0) + (effect.kl_off * n_off if n_off else 0)) / (n_on + n_off)
        print(f"{levels.name(feature):<11} {effect.norm:<7.2f} {kl:<7.3f} {effect.family_share:.1%}")


if __name__ == "__main__":
    main()
