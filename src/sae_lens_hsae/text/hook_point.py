"""A model at the place where a stack of SAEs reads it: the tokens of a text, the hook point, the activations there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hsae.evaluation import level_saes
from sae_lens_hsae.evaluation.hook_names import known_name, not_come_by
from sae_lens_hsae.evaluation.stacks import check_fit, check_reconstruct, check_scale
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.stack_checks import metadata
from sae_lens_hsae.text.as_trained import before_text

ROUNDING = 0.03
"""A change of logits by less, relative to how they vary, may come from rounding in half precision."""


def stack_of(levels: Sequence[SAE[Any]] | SAE[Any], forest: FeatureForest | None) -> tuple[list[Any], FeatureForest]:
    """One SAE per level that takes flat activations, and the forest; a ValueError if it is not the levels'."""
    forest = getattr(levels, "forest", None) if forest is None else forest
    if forest is None:
        raise ValueError("forest is missing; pass FeatureForest.from_saes(levels, activations=batches)")
    saes: list[Any] = list(level_saes(levels))  # type: ignore[arg-type]
    check_fit(saes, forest)
    check_reconstruct(saes)
    return saes, forest


def hook_point(model: Any, saes: Sequence[Any]) -> str:
    """The model's own name of the hook point that the SAEs read in its scale; a ValueError if there is none."""
    check_scale(saes)
    name = metadata(saes[0], "hook_name")
    if name is None:
        raise ValueError("the SAEs name no hook point; set cfg.metadata.hook_name")
    if metadata(saes[0], "hook_head_index") is not None:
        raise ValueError(f"the SAEs read a single head of {name}; such SAEs are not supported here")
    return known_name(model, name)


def run_and_keep(model: Any, tokens: torch.Tensor, names: Sequence[str]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model's output on tokens (batch, context), and what stands at hook points, each (batch, context, width).

    Heads stand side by side. A ValueError if the model does not come by one of them.
    """
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook_function(x: torch.Tensor, hook: Any) -> None:  # noqa: ARG001
            kept[name] = x.detach().flatten(2)

        return hook_function

    with model.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        output = model(tokens)
    missed = [name for name in names if name not in kept]
    if missed:
        raise ValueError(not_come_by(missed[0]))
    return output, kept


def device_of(model: Any) -> torch.device:
    """Where a model takes its tokens."""
    return next(iter(model.parameters())).device


def ids_of_text(model: Any, sae: Any, text: str) -> tuple[list[int], list[int]]:
    """Token ids that go before a text, see `before_text`, and those of the text itself.

    Raises:
        ValueError: if the text is no Unicode, or the model has no tokenizer.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # tokenizers answer it with a TypeError that says nothing
        raise ValueError(f"the text {text!r} is no proper Unicode ({error.reason}); give it in UTF-8") from error
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("the model has no tokenizer; load it with one, or set model.tokenizer")
    first = before_text(sae.cfg.metadata, tokenizer)
    return [] if first is None else [first], list(tokenizer(text, add_special_tokens=False)["input_ids"])


def most_tokens(model: Any) -> int | None:
    """Tokens that the model takes at once, as its config says; None where it says nothing."""
    own, inner = getattr(model, "cfg", None), getattr(getattr(model, "model", None), "config", None)
    limits = (getattr(own, "n_ctx", None), getattr(inner, "max_position_embeddings", None))
    return next((limit for limit in limits if limit), None)


def check_length(model: Any, n_tokens: int, what: str) -> None:
    """Refuse, with a ValueError, more tokens at once than a model takes; its own error is an IndexError without a name.

    The tokens are counted with what goes before a text; ``what`` is how to call them.
    """
    limit = most_tokens(model)
    if limit is not None and n_tokens > limit:
        raise ValueError(f"{what}: {n_tokens} tokens, but the model takes at most {limit}; give fewer")


def check_several(name: str, texts: object) -> None:
    """Check that what should be several texts is not a single one, which would be read letter by letter."""
    if isinstance(texts, str):
        raise ValueError(f"{name}={texts!r} is a single text; give a list of texts")


def checked_texts(name: str, texts: Iterable[Any], d_in: int, fewest: int) -> Iterator[torch.Tensor]:
    """Activations (tokens, d_in) of each of a set's texts, one of (d_in,) as one token; ValueErrors name the set."""
    n_texts = 0
    for i, x in enumerate(texts):
        if isinstance(x, str):
            raise ValueError(f"{name} holds text; pass its activations: text_activations(sae, model, texts)")
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2 or x.shape[1] != d_in or not len(x):
            raise ValueError(
                f"{name}: text {i} has activations of shape {tuple(x.shape)}; expected (tokens, {d_in}) or ({d_in},)"
            )
        if not x.isfinite().all():
            raise ValueError(f"{name}: text {i} holds NaN or infinity; leave it out")
        yield x
        n_texts += 1
    if n_texts < fewest:
        raise ValueError(f"{name} holds {n_texts} texts; give at least {fewest}, and no iterator that is used up")


@torch.no_grad()
def check_causal(model: Any, tokens: torch.Tensor) -> None:
    """Check that what a model says of a token does not depend on what comes after it, as it does in BERT.

    The tokens (batch, context) are fewer than the model takes at once.
    """
    alone = model(tokens)[:, 0].float()
    followed = model(torch.cat([tokens, tokens[:, :1]], dim=1))[:, 0].float()
    if (alone - followed).norm() > ROUNDING * (alone - alone.mean()).norm():
        raise ValueError(
            "the SAE's language model reads texts in both directions, so it says nothing of what comes next; "
            "this needs a causal model, such as gpt2 or Gemma"
        )
