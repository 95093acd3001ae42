"""Ghost gradients: dead features learn from what the living ones leave unexplained (Jermyn & Templeton, January 2024).

One term of theirs is left out. With output g, scaled to half the residual's norm, and residual e, the gradient of
‖g − e‖² = ‖g‖² − 2⟨g, e⟩ + ‖e‖² on a dead feature's pre-activation has a part from ‖g‖² that always pushes it down, and
that outweighs the other unless cos(g, e) > ½, which a few dead features among hundreds of dimensions never reach.
They would be pushed away from firing for good, so ‖g‖² counts as a constant here.
"""

from __future__ import annotations

import torch


def ghost_gradient_loss(
    error: torch.Tensor, ghost_pre: torch.Tensor, W_dec: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss of a second forward pass in which only the dead features of one level reconstruct, and only the residual.

    The dead features fire with exp(pre-activation). Their output is scaled, as a constant, to half the residual's norm,
    and the loss, as a constant, to the size of the reconstruction loss, so that no coefficient is needed.

    Takes the error x − x̂ (batch, d_in), held constant; pre-activations (batch, n_dead); decoder rows (n_dead, d_in);
    weights of the tokens (batch,), None where all count alike. A scalar: summed over d_in, mean over the batch.
    """
    dtype = torch.promote_types(ghost_pre.dtype, torch.float32)
    with torch.autocast(ghost_pre.device.type, enabled=False):
        residual = error.detach().to(dtype)
        # exp overflows beyond 88 in float32; a dead feature's pre-activation is below its threshold and far from there.
        output = ghost_pre.to(dtype).clamp(max=60).exp() @ W_dec.to(dtype)
        scale = residual.norm(dim=-1, keepdim=True) / (2 * output.norm(dim=-1, keepdim=True) + 1e-6)
        output = output * scale.detach()
        level_error = residual.square().sum(-1)
        ghost_error = output.detach().square().sum(-1) - 2 * (output * residual).sum(-1) + level_error
        loss = ghost_error * (level_error / (ghost_error + 1e-6)).detach()
        return loss.mean() if weights is None else (weights * loss).mean()
