"""Ghost gradients: dead features learn from what the living ones leave unexplained (Jermyn & Templeton, January 2024).

One term of theirs is left out. With output g, scaled to half the residual's norm, and residual e, the gradient of
‖g − e‖² = ‖g‖² − 2⟨g, e⟩ + ‖e‖² on a dead feature's pre-activation has a part from ‖g‖² that always pushes it down, and
that outweighs the other unless cos(g, e) > ½, which a few dead features among hundreds of dimensions never reach.
They would be pushed away from firing for good, so ‖g‖² counts as a constant here.
"""

from __future__ import annotations

import torch


def ghost_gradient_loss(
    error: torch.Tensor, hidden_pre: torch.Tensor, W_dec: torch.Tensor, dead: torch.Tensor
) -> torch.Tensor:
    """Loss of a second forward pass in which only dead features reconstruct, and only the residual.

    The dead features fire with exp(pre-activation). Their output is scaled, as a constant, to half the residual's norm,
    and the loss, as a constant, to the size of the reconstruction loss, so that no coefficient is needed.

    Args:
        error: x − x̂ of one level, (batch, d_in); no gradient flows through it.
        hidden_pre: pre-activations of that level, (batch, n_l).
        W_dec: decoder rows of that level, (n_l, d_in).
        dead: (n_l,) bool.

    Returns:
        A scalar, mean over the batch of the squared error summed over d_in; 0 if no feature is dead.
    """
    dtype = torch.promote_types(hidden_pre.dtype, torch.float32)
    ghosts = torch.nonzero(dead).squeeze(1)
    if len(ghosts) == 0:
        return torch.zeros((), dtype=dtype, device=hidden_pre.device)
    with torch.autocast(hidden_pre.device.type, enabled=False):
        residual = error.detach().to(dtype)
        # exp overflows beyond 88 in float32; a dead feature's pre-activation is below its threshold and far from there.
        ghost_acts = hidden_pre.index_select(1, ghosts).to(dtype).clamp(max=60).exp()
        output = ghost_acts @ W_dec.index_select(0, ghosts).to(dtype)
        scale = residual.norm(dim=-1, keepdim=True) / (2 * output.norm(dim=-1, keepdim=True) + 1e-6)
        output = output * scale.detach()
        level_error = residual.square().sum(-1)
        ghost_error = output.detach().square().sum(-1) - 2 * (output * residual).sum(-1) + level_error
        return (ghost_error * (level_error / (ghost_error + 1e-6)).detach()).mean()
