"""Prefix sums that hold their promises on every device."""

import torch
from torch import Tensor

__all__ = ['prefix_sum']


def prefix_sum(x: Tensor, dim: int) -> Tensor:
    """Inclusive prefix sums of a floating-point tensor along ``dim``.

    ``cumsum`` has no deterministic kernel on CUDA; under ``torch.use_deterministic_algorithms(True)`` the sums are
    taken there as a product with a triangular matrix, in float64 so that TensorFloat-32 cannot round it.
    """
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return x.cumsum(dim)
    length = x.shape[dim]
    triangle = torch.ones(length, length, dtype=torch.float64, device=x.device).triu()
    return (x.movedim(dim, -1).double() @ triangle).movedim(-1, dim).to(x.dtype)
