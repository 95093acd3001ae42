"""Features that do not fire, and the losses by which they learn to: ghost gradients, or the auxiliary loss.

As in TopK SAEs (Gao et al., arXiv 2406.04093, §A.2), the silent features S of a level reconstruct what the others leave
unexplained, e = x − x̂, held constant:

    L_aux = ‖ a_S W_dec,S − e ‖².

There the silent features with the largest pre-activations on a token are active. Here a feature is active where *its*
pre-activation is largest: on as many tokens of the batch as an average feature of its level fires on. Where those
pre-activations are below 0, they are raised, as by a higher bias. With q the largest one on the other tokens,

    a = max(0, pre − min(0, q))  where pre > q,  else 0.

Otherwise a silent feature sinks below 0 on every token, where it has no gradient, and stays dead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.gpu_step.ghosts import ghost_gradients, places_for
from sae_lens_hsae.sae.level_activation import Encoder
from sae_lens_hsae.sae.step_output import Activations

SILENT_INTERVALS = 64
"""A feature is silent if it has not fired for this many times n_l / L̂0 tokens, the mean interval between firings."""

MOST_SILENT = 256
"""Features of a level that take part in a step at most: those silent for longest."""


def longest_silent(tokens_since_fired: torch.Tensor) -> torch.Tensor:
    """Those features of a level that have been silent for longest, (min(`MOST_SILENT`, n_l),) int64."""
    return tokens_since_fired.topk(min(MOST_SILENT, len(tokens_since_fired)), sorted=False).indices


def auxiliary_loss(
    error: torch.Tensor,
    pre: torch.Tensor,
    W_dec: torch.Tensor,
    weights: torch.Tensor | None,
    silent: torch.Tensor,
    rate: float,
) -> torch.Tensor:
    """L_aux of one level, (), from some of its features: the squared error summed over d_in, mean over the batch.

    It is 0 if none is silent.

    Args:
        error: x − x̂, (batch, d_in), held constant.
        pre: pre-activations, (batch, n), n above 0.
        W_dec: decoder rows, (n, d_in).
        weights: of the tokens, (batch,), None where all count alike. Features are active only where the weight is 1.
        silent: which features are, (n,) bool; others take no part.
        rate: share of the tokens that a feature is active on.
    """
    dtype = torch.promote_types(pre.dtype, torch.float32)
    with torch.autocast(pre.device.type, enabled=False):
        pre = pre.to(dtype)
        compared = pre.detach() if weights is None else pre.detach().masked_fill((weights < 1)[:, None], -torch.inf)
        n_active = max(1, round(rate * len(pre)))
        limit = compared.topk(min(n_active + 1, len(pre)), dim=0).values[-1]
        # Infinite where all other tokens are outlying.
        lift = torch.where(limit.isfinite(), -limit.clamp(max=0), 0)
        acts = (pre + lift).relu() * ((compared > limit) & silent)
        squared = (acts @ W_dec.to(dtype) - error.detach().to(dtype)).square().sum(-1)
        mean = squared.mean() if weights is None else (weights * squared).mean()
        return mean * silent.any()


class SilentFeatures(nn.Module):
    """Keeps ``tokens_since_fired`` (d_sae,)."""

    tokens_since_fired: torch.Tensor

    def __init__(self, cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> None:
        super().__init__()
        self._cfg = cfg
        self.register_buffer("tokens_since_fired", torch.zeros(cfg.d_sae, dtype=torch.int64, device=device))

    def silent(self) -> torch.Tensor:
        """Which features have not fired for `SILENT_INTERVALS` mean intervals of their level, (d_sae,) bool."""
        per_level = zip(self._cfg.levels.split(self.tokens_since_fired), self._rates(), strict=True)
        return torch.cat([own > SILENT_INTERVALS / rate for own, rate in per_level])

    def _rates(self) -> list[float]:
        """Share of the tokens that an average feature of each level fires on, L̂0 / n_l."""
        cfg = self._cfg
        return [l0 / width for l0, width in zip(cfg.target_l0_per_level, cfg.level_widths, strict=True)]

    def count(
        self, acts: Activations, batch: int, good: torch.Tensor | None = None, counted: torch.Tensor | None = None
    ) -> None:
        """Take a batch of this many tokens into the count; nothing where ``good`` is 0, ().

        Only those ``counted``, (batch,) bool, end a silence; None counts all.
        """
        fired = acts.times_fired(counted) > 0
        if good is None:
            self.tokens_since_fired.add_(batch).masked_fill_(fired, 0)
        else:
            is_good = good != 0
            self.tokens_since_fired.add_(batch * is_good).masked_fill_(fired & is_good, 0)

    # Which features are silent changes shapes from step to step: a compiled graph would be compiled again and again.
    @torch.compiler.disable()
    def losses(
        self,
        errors: torch.Tensor,
        x: torch.Tensor,
        encoder: Encoder,
        W_dec: torch.Tensor,
        weights: torch.Tensor | None,
        dead: torch.Tensor | None,
        *,
        fixed_shapes: bool = False,
        n_dead: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The loss that ``cfg.dead_feature_loss`` asks for, if any; of what `auxiliary_loss` reads, for all levels.

        ``errors`` are (L, batch, d_in); ``dead`` to the trainer (d_sae,) bool, None where it keeps no account. With
        ``fixed_shapes`` no shape may depend on what is silent (`FeatureRows`), and ``n_dead`` are the dead features of
        every level a step ago, where that is known.
        """
        if self._cfg.dead_feature_loss == "auxiliary":
            return {"auxiliary_loss": self._auxiliary(errors, x, encoder, W_dec, weights, fixed_shapes)}
        if self._cfg.dead_feature_loss == "ghost" and dead is not None:
            levels = self._cfg.levels
            if n_dead is None or not fixed_shapes:
                n_dead = [int(own.sum()) for own in levels.split(dead)]
            places = places_for(n_dead, levels) if fixed_shapes else n_dead
            return {"ghost_gradient_loss": ghost_gradients(errors, x, dead, places, encoder, W_dec, levels, weights)}
        return {}

    def _auxiliary(
        self,
        errors: torch.Tensor,
        x: torch.Tensor,
        encoder: Encoder,
        W_dec: torch.Tensor,
        weights: torch.Tensor | None,
        fixed_shapes: bool,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=errors.dtype, device=errors.device)
        is_silent = self.silent()
        chosen = [own.start + longest_silent(self.tokens_since_fired[own]) for own in self._cfg.levels]
        if not fixed_shapes:
            chosen = [mine[is_silent[mine]] for mine in chosen]
        sizes, mine = [len(of_level) for of_level in chosen], torch.cat(chosen)
        if not len(mine):
            return total
        # Taken out at once for all levels: the gradient of each taking is as large as the whole matrix.
        parts = (
            encoder.W_enc.index_select(1, mine).split(sizes, 1),
            encoder.b_enc.index_select(0, mine).split(sizes),
            W_dec.index_select(0, mine).split(sizes),
            is_silent[mine].split(sizes),
            self._rates(),
        )
        for level, (columns, bias, rows, silent, rate) in enumerate(zip(*parts, strict=True)):
            if len(rows):
                pre = encoder.input_of(level, x) @ columns + bias
                total = total + auxiliary_loss(errors[level], pre, rows, weights, silent, rate)
        return total
