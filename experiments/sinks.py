"""Attention sinks put into a stream that has none: what the other tokens are explained shows what they break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sinks:
    """Tokens moved far away.

    Attributes:
        share: of all tokens.
        times: by how many times the median distance from the centre.
        directions: along how many directions, each token along one of them.
        late: whether the first half of a training meets none.
    """

    share: float
    times: float
    directions: int = 1
    late: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        if self.share == 0:
            return "none"
        plural = f" in {self.directions} directions" if self.directions > 1 else ""
        return f"{self.share:.1%} at {self.times:g}×{plural}{', late' if self.late else ''}"

    def put_into(self, x: torch.Tensor) -> torch.Tensor:
        """(n, d_in) with sinks, the same on every call."""
        generator = torch.Generator().manual_seed(0)
        is_sink = torch.rand(len(x), generator=generator) < self.share
        typical = (x - x[:10_000].median(0).values).norm(dim=1).median()
        directions = torch.randn(self.directions, x.shape[1], generator=generator)
        directions = torch.nn.functional.normalize(directions, dim=1)
        chosen = torch.randint(self.directions, (int(is_sink.sum()),), generator=generator)
        x = x.clone()
        x[is_sink] += self.times * typical * directions[chosen]
        return x


SINKS = (Sinks(0.0, 0.0), Sinks(0.005, 100), Sinks(0.01, 1000, 3), Sinks(0.005, 100, late=True))


@dataclass(frozen=True)
class WithSinks:
    """Activations of a source with sinks, of mean norm √d_in as every stream; late ones come after it is set."""

    source: Callable[[int, int], torch.Tensor]
    sinks: Sinks

    def __call__(self, layer: int, n_tokens: int) -> torch.Tensor:
        """(n_tokens, d_in)."""
        x = self.sinks.put_into(self.source(layer, n_tokens))
        return x if self.sinks.late else x * (x.shape[1] ** 0.5 / x.norm(dim=1).mean())

    def before_sinks(self, layer: int, n_tokens: int) -> torch.Tensor | None:
        """(n_tokens, d_in): what the first half of a training reads in place of these, row for row; None: the same."""
        return self.source(layer, n_tokens) if self.sinks.late else None
