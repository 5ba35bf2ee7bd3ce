"""The public function: checks, mixed precision, the choice of a backend."""

from collections.abc import Sequence

from torch import Tensor

from .autocast import cast_under_autocast
from .backends import requested_backend
from .custom_op import conv


def peripheral_conv2d(
    x: Tensor,
    weight: Tensor,
    sharing_grid: Sequence[int],
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
    partial: bool = False,
) -> Tensor:
    """Depthwise convolution whose ``K x K`` kernel is constant on the regions of a sharing grid (Eq. 1).

    The result is that of ``F.conv2d(x, expand_kernel(weight, sharing_grid), bias, padding=K // 2, groups=C)``, to
    rounding. Differentiable any number of times in ``x`` and ``weight``. Under autocast the tensors are cast as
    ``conv2d``'s are; every backend but ``dense`` accumulates in at least float32.

    Args:
        x: ``(N, C, H, W)``, floating point, any strides; ``H`` and ``W`` are at least 1.
        weight: ``(C, 1, k', k')``, of the dtype of ``x``; with ``partial`` of fewer channels.
        sharing_grid: ``k'`` ring widths along either axis; their sum is the odd kernel size ``K``.
        bias: ``(C,)``, or ``(C, H, W)`` for a map that is added to every image; ``C`` is the weight's.
        backend: ``None`` takes the fastest for the inputs; a name of :func:`available_backends` forces it.
        partial: Let the channels of ``x`` beyond the weight's pass unchanged (Eq. 4).

    Returns:
        ``(N, C, H, W)`` in the memory format of ``x``, as ``F.conv2d`` keeps it: channels last also for a slice of the
        channels of such a tensor, else contiguous.

    Raises:
        ValueError: If shapes, dtypes or the grid do not fit together, or the backend is unknown or refuses the inputs.
        RuntimeError: If the named backend does not run on this machine.
    """
    grid = [int(width) for width in sharing_grid]
    x, weight, bias = cast_under_autocast(x, weight, bias)
    mixed = x[:, : weight.shape[0]] if partial else x
    check(mixed, weight, grid, bias)
    return conv(x, weight, bias, grid, requested_backend(mixed, weight, grid, backend))


def check(x: Tensor, weight: Tensor, grid: list[int], bias: Tensor | None) -> None:
    """Refuse what does not fit together, as :func:`peripheral_conv2d` says."""
    if min(grid, default=0) < 1 or sum(grid) % 2 == 0:
        raise ValueError(f'a sharing grid holds positive integers with an odd sum, got {grid} with sum {sum(grid)}')
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f'x must be a floating-point tensor (N, C, H, W), got {x.dtype} {tuple(x.shape)}')
    if 0 in x.shape[2:]:
        raise ValueError(f'a map needs at least one row and one column, got x of shape {tuple(x.shape)}')
    channels, rings = x.shape[1], len(grid)
    if tuple(weight.shape) != (channels, 1, rings, rings):
        raise ValueError(
            f'weight must be (C, 1, k, k) = {(channels, 1, rings, rings)} for an input of {channels} channels and a '
            f'grid of {rings} rings, got {tuple(weight.shape)}'
        )
    if bias is not None and tuple(bias.shape) not in ((channels,), tuple(x.shape[1:])):
        raise ValueError(f'bias must be {(channels,)} or {tuple(x.shape[1:])}, got {tuple(bias.shape)}')
    for name, tensor in (('weight', weight), ('bias', bias)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise ValueError(
                f'{name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}; they must agree'
            )
