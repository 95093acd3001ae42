"""What a language model loses when a level's reconstruction replaces the activation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_hsae.evaluation.hook_names import known_name, not_come_by
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, check_reconstruct, check_scale, level_saes
from sae_lens_hsae.forest.stack_checks import check_same_input, metadata


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of next tokens, in nats, with one level in place of the activation.

    Attributes:
        level: which level.
        recovered: (ablated − with_level) / (ablated − without): 1 if nothing is lost, 0 if the level is no better than
            zeros, negative if it is worse.
        with_level: cross-entropy with the level's reconstruction in place of the activation.
        without: cross-entropy of the model as it is.
        ablated: cross-entropy with zeros in place of the activation.
    """

    level: int
    recovered: float
    with_level: float
    without: float
    ablated: float


def cross_entropy_recovered(
    levels: Sequence[LevelSAE] | SAEStack,
    model: Any,
    activation_store: ActivationsStore,
    n_batches: int = 10,
    exclude_special_tokens: Iterable[int] | bool = True,
) -> tuple[CrossEntropy, ...]:
    """SAELens' ``run_evals`` on each level, cross-entropy alone, all levels on the same tokens.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (`HierarchicalSAE`), with a hook name each.
        model: a TransformerLens model, or what else SAELens hooks into; it must predict next tokens.
        activation_store: source of the tokens; ``n_batches`` are taken from it once.
        n_batches: batches of prompts, as the store has them.
        exclude_special_tokens: as ``run_evals`` has it; a model without a tokenizer needs False.

    Raises:
        ValueError: if ``n_batches`` is not positive, a level names no hook, one that the model lacks or does not come
            by, or another one than the others, a level is a transcoder or expects scaled activations, or zeros in place
            of the activation change nothing.
    """
    saes = level_saes(levels)
    check_same_input(saes)
    check_reconstruct(saes)
    check_scale(saes)
    for level, sae in enumerate(saes):
        if metadata(sae, "hook_name") is None:
            raise ValueError(
                f"level {level} has no cfg.metadata.hook_name, which says where its reconstruction goes; set it"
            )
    if n_batches < 1:
        raise ValueError(f"n_batches={n_batches} must be at least 1")
    batches = [activation_store.get_batch_tokens() for _ in range(n_batches)]
    _check_comes_by(model, known_name(model, metadata(saes[0], "hook_name")), batches[0][:1])
    config = EvalConfig(
        compute_ce_loss=True,
        n_eval_reconstruction_batches=n_batches,
        batch_size_prompts=activation_store.store_batch_size_prompts,
    )
    found = []
    for level, sae in enumerate(saes):
        try:
            metrics, _ = run_evals(
                sae=cast(Any, _named_as_in(model, sae)),
                activation_store=cast(Any, _SameTokens(activation_store, batches)),
                model=model,
                activation_scaler=ActivationScaler(),
                eval_config=config,
                exclude_special_tokens=exclude_special_tokens,
            )
        except ZeroDivisionError as error:
            raise ValueError(
                f"zeros at {metadata(sae, 'hook_name')} do not change the model's cross-entropy, so there is nothing "
                "to recover; take a hook that the prediction depends on"
            ) from error
        ce = metrics["model_performance_preservation"]
        found.append(
            CrossEntropy(
                level=level,
                recovered=ce["ce_loss_score"],
                with_level=ce["ce_loss_with_sae"],
                without=ce["ce_loss_without_sae"],
                ablated=ce["ce_loss_with_ablation"],
            )
        )
    return tuple(found)


@torch.no_grad()
def _check_comes_by(model: Any, name: str, tokens: torch.Tensor) -> None:
    came_by: list[Any] = []
    with model.hooks(fwd_hooks=[(name, lambda _, hook: came_by.append(hook))]):
        model(tokens)
    if not came_by:
        raise ValueError(not_come_by(name))


def _named_as_in(model: Any, sae: Any) -> Any:
    """The SAE with the model's own name of its hook point: ``run_evals`` puts its hooks nowhere by another."""
    named = copy(sae)
    named.cfg = copy(sae.cfg)
    named.cfg.metadata = deepcopy(sae.cfg.metadata)
    named.cfg.metadata.hook_name = known_name(model, metadata(sae, "hook_name"))
    return named


class _SameTokens:
    """A store whose next batches are those given, so that each level gets the same.

    The store's own ``reset_input_dataset`` would not do: it leaves the sequences alone that are already on their way,
    and each level would see other tokens.
    """

    def __init__(self, store: ActivationsStore, batches: Sequence[torch.Tensor]) -> None:
        self._store = store
        self._left = iter(batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_batch_tokens(self, batch_size: int | None = None) -> torch.Tensor:
        assert batch_size == self.store_batch_size_prompts
        return next(self._left)

    def reset_input_dataset(self) -> None:
        pass
