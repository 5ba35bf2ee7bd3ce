"""The sharing grid: which positions of a large kernel share one parameter (Eq. 1 and 2 of the PeLK paper)."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def sharing_grid(kernel_size: int, center_size: int = 5, base: int = 2) -> tuple[int, ...]:
    """Ring widths of a peripheral kernel along one axis (Eq. 2).

    The middle ``center_size`` rings are one position wide. Outward the rings grow as ``base, base**2, ...``, and the
    outermost takes what remains of the kernel; a remainder below half of the ring before it joins that ring. A kernel
    no larger than its centre gets ones only: an ordinary dense kernel.

    Args:
        kernel_size: Side ``K`` of the dense kernel, odd.
        center_size: Side of the fine-grained centre, odd.
        base: Growth ``m`` of the rings, at least 1.

    Returns:
        A symmetric tuple that sums to ``kernel_size``.

    Raises:
        ValueError: If ``kernel_size`` or ``center_size`` is even or not positive, or ``base`` is below 1.

    Example:
        >>> sharing_grid(31, center_size=5)
        (7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 7)
    """
    for name, value in (('kernel_size', kernel_size), ('center_size', center_size)):
        if not isinstance(value, int) or value < 1 or value % 2 == 0:
            raise ValueError(f'{name} must be an odd positive integer, got {value!r}')
    if not isinstance(base, int) or base < 1:
        raise ValueError(f'base must be an integer of at least 1, got {base!r}')
    if kernel_size <= center_size:
        return (1,) * kernel_size

    rings: list[int] = []  # from the centre outwards
    remaining, width = (kernel_size - center_size) // 2, base
    while remaining >= width:
        rings.append(width)
        remaining -= width
        width *= base
    if remaining:
        if rings and 2 * remaining < rings[-1]:
            rings[-1] += remaining
        else:
            rings.append(remaining)
    return (*reversed(rings), *(1,) * center_size, *rings)


def mirror_half_grid(half: Sequence[int]) -> tuple[int, ...]:
    """Full grid of a half grid written from the rim to the centre, as Tables 5 and 6 print them.

    The last element is the centre and is not doubled.

    Example:
        >>> mirror_half_grid([4, 4, 4, 2, 1, 1, 1])
        (4, 4, 4, 2, 1, 1, 1, 1, 1, 2, 4, 4, 4)
    """
    return (*half, *reversed(half[:-1]))


def check_sharing_grid(grid: Sequence[int], kernel_size: int | None = None) -> tuple[int, ...]:
    """Validate an explicit grid.

    Args:
        grid: Ring widths along one axis, of the whole kernel.
        kernel_size: Side of the dense kernel that the grid must sum to; ``None`` accepts any odd sum.

    Returns:
        The grid as a tuple.

    Raises:
        ValueError: If a width is not a positive integer, the grid is not symmetric, or its sum is not
            ``kernel_size`` (or is even).
    """
    grid = tuple(grid)
    if not grid or not all(isinstance(width, int) and width > 0 for width in grid):
        raise ValueError(f'a sharing grid is a sequence of positive integers, got {grid!r}')
    if grid != grid[::-1]:
        raise ValueError(f'a sharing grid is symmetric about its centre, got {list(grid)}')
    total = sum(grid)
    if kernel_size is not None and total != kernel_size:
        raise ValueError(f'the sharing grid {list(grid)} sums to {total}, but the kernel size is {kernel_size}')
    if total % 2 == 0:
        raise ValueError(f'the sharing grid {list(grid)} sums to {total}; a kernel size is odd')
    return grid


def resolve_sharing_grid(kernel_size: int, grid: Sequence[int] | None, center_size: int) -> tuple[int, ...]:
    """Grid of a kernel from what a config gives: nothing (the rule), a full grid, or a half grid from rim to centre.

    Raises:
        ValueError: If the grid is none of the three, or the rule's arguments are invalid.
    """
    if grid is None:
        if center_size > kernel_size:
            raise ValueError(
                f'center_size {center_size} is larger than kernel_size {kernel_size}; give a centre of at most that'
            )
        return sharing_grid(kernel_size, center_size)
    if kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be an odd positive integer, got {kernel_size!r}')
    full = mirror_half_grid(grid) if sum(grid) != kernel_size else tuple(grid)
    if sum(full) != kernel_size:
        raise ValueError(
            f'the sharing grid {list(grid)} sums to {sum(grid)} as a full grid and to {sum(full)} as a half grid '
            f'mirrored about its last element; kernel_size {kernel_size} needs one of the two to match'
        )
    return check_sharing_grid(full, kernel_size)


def _ring_of_position(grid: Sequence[int], device: torch.device) -> Tensor:
    """Index of the ring that each of the ``K`` positions belongs to, shape ``(K,)``."""
    if device.type == 'cuda':
        return _ring_without_copy(grid, device)
    return torch.tensor([ring for ring, width in enumerate(grid) for _ in range(width)], device=device)


def _ring_without_copy(grid: Sequence[int], device: torch.device) -> Tensor:
    """:func:`_ring_of_position` made on the device: a CUDA graph can capture no copy from the host."""
    ring = torch.zeros(sum(grid), dtype=torch.int64, device=device)
    for edge in accumulate(grid[:-1]):
        ring[edge:].add_(1)
    return ring


def expand_kernel(weight: Tensor, grid: Sequence[int]) -> Tensor:
    """Dense kernel of a peripheral one (Eq. 1): ``W[..., y, x] = w[..., a, b]`` for ``(y, x)`` in ``Z_ab``.

    Args:
        weight: ``(..., k', k')`` with ``k' = len(grid)``.
        grid: Ring widths that sum to ``K``.

    Returns:
        ``(..., K, K)``, differentiable in ``weight``.

    Raises:
        ValueError: If the weight's last two sizes are not ``len(grid)``.
    """
    if tuple(weight.shape[-2:]) != (len(grid),) * 2:
        raise ValueError(
            f'weight has spatial size {tuple(weight.shape[-2:])}, a grid of {len(grid)} rings needs {(len(grid),) * 2}'
        )
    ring = _ring_of_position(grid, weight.device)
    return weight.index_select(-2, ring).index_select(-1, ring)


def reduce_kernel(dense: Tensor, grid: Sequence[int]) -> Tensor:
    """Adjoint of :func:`expand_kernel`: sum a ``(..., K, K)`` tensor over the regions ``Z_ab`` to ``(..., k', k')``."""
    ring = _ring_of_position(grid, dense.device)
    rings = len(grid)
    rows = dense.new_zeros(*dense.shape[:-2], rings, dense.shape[-1]).index_add_(-2, ring, dense)
    return rows.new_zeros(*dense.shape[:-2], rings, rings).index_add_(-1, ring, rows)


def project_kernel(dense: Tensor, grid: Sequence[int]) -> Tensor:
    """The kernel on a grid that is nearest to a dense one in least squares: the mean over each region.

    Args:
        dense: ``(..., K, K)``.
        grid: ``k'`` ring widths that sum to ``K``.

    Returns:
        ``(..., k', k')``. :func:`expand_kernel` of it is the projection of ``dense`` onto the kernels of the grid.

    Raises:
        ValueError: If the grid does not sum to ``K``.
    """
    if tuple(dense.shape[-2:]) != (sum(grid), sum(grid)):
        raise ValueError(f'a grid of sum {sum(grid)} needs a kernel of that side, got {tuple(dense.shape)}')
    widths = torch.tensor(list(grid), dtype=dense.dtype, device=dense.device)
    return reduce_kernel(dense, grid) / (widths[:, None] * widths)


def reach(kernel_size: int, extent: int) -> int:
    """Taps on either side of the middle that read inside a map of ``extent`` for some output."""
    return min(kernel_size // 2, max(extent - 1, 0))


def reachable_positions(kernel_size: int, extent: int) -> slice:
    """The positions of a kernel within its :func:`reach`."""
    margin = kernel_size // 2 - reach(kernel_size, extent)
    return slice(margin, kernel_size - margin)


def reachable_rings(grid: Sequence[int], extent: int) -> tuple[slice, tuple[int, ...]]:
    """Rings that meet a map of ``extent`` positions, and where they begin and end.

    A tap ``u`` positions away from the kernel's centre reads outside the map for every output once
    ``abs(u) >= extent``, so outer rings may be cut or dropped without changing any result.

    Args:
        grid: Ring widths along one axis.
        extent: Number of positions of the map along that axis.

    Returns:
        The slice of rings that are left, and their ``n + 1`` edges as offsets from the centre: ring ``a`` covers the
        taps ``edges[a] <= u < edges[a + 1]``.
    """
    radius = sum(grid) // 2
    edges = [edge - radius for edge in accumulate(grid, initial=0)]
    low, high = 1 - extent, extent  # taps low <= u < high are inside the map for some output
    first = sum(edge <= low for edge in edges[1:])
    last = len(grid) - sum(edge >= high for edge in edges[:-1])
    clipped = (min(max(edge, low), high) for edge in edges[first : last + 1])
    return slice(first, last), tuple(clipped)
