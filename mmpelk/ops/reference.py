"""The paper's equations as literal loops in float64: slow, obvious, and what every fast version is tested against."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def peripheral_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    grid: Sequence[int],
    bias: Tensor | None = None,
    embedding: Tensor | None = None,
    embedding_mode: Literal['in_bounds', 'constant'] = 'in_bounds',
) -> Tensor:
    """Depthwise peripheral convolution with kernel-wise positional embedding, Eq. 1 and 3.

    Every step is an ordinary differentiable operation, so autograd gives the reference gradients.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(C, 1, k', k')``.
        grid: ``k'`` ring widths that sum to the odd kernel size ``K``.
        bias: ``(C,)`` or ``(C, H, W)``.
        embedding: ``(C, K, K)``, the ``h`` of Eq. 3.
        embedding_mode: ``'in_bounds'`` leaves positions outside the map out of the sum; ``'constant'`` runs over the
            whole kernel everywhere.

    Returns:
        ``(N, C, H, W)`` in float64.
    """
    x, weight = x.double(), weight.double()
    kernel_size = sum(grid)
    radius = kernel_size // 2
    height, width = x.shape[-2:]
    ring = [a for a, ring_width in enumerate(grid) for _ in range(ring_width)]
    out = torch.zeros_like(x)
    for i in range(kernel_size):
        for j in range(kernel_size):
            tap = weight[:, 0, ring[i], ring[j]].view(-1, 1, 1)
            dy, dx = i - radius, j - radius
            # Outputs (y, x) whose input (y + dy, x + dx) lies on the map.
            top, bottom = max(0, -dy), min(height, height - dy)
            left, right = max(0, -dx), min(width, width - dx)
            inside = torch.zeros(height, width, dtype=x.dtype, device=x.device)
            if top < bottom and left < right:
                inside[top:bottom, left:right] = 1
                shifted = torch.zeros_like(x)
                shifted[:, :, top:bottom, left:right] = x[:, :, top + dy : bottom + dy, left + dx : right + dx]
                out = out + tap * shifted
            if embedding is not None:
                where = inside if embedding_mode == 'in_bounds' else torch.ones_like(inside)
                out = out + tap * embedding.double()[:, i, j].view(-1, 1, 1) * where
    if bias is not None:
        out = out + (bias.double().view(-1, 1, 1) if bias.dim() == 1 else bias.double())
    return out
