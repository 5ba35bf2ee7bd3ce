"""How the operator behaves under autocast: as ``conv2d``, and no further."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_HAS_DTYPE_BY_DEVICE = hasattr(torch, 'get_autocast_dtype')  # torch 2.4
NO_CONTEXT: AbstractContextManager = nullcontext()
"""One for all: every call of the operator enters several."""


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast casts to on a device, or ``None`` where it is off."""
    if _HAS_DTYPE_BY_DEVICE:
        has_autocast = device_type != 'meta' and torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if has_autocast else None
    if device_type == 'cuda':
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def cast_under_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inputs as autocast hands them to ``conv2d``: in its dtype, but float64 as it is."""
    dtype = autocast_dtype(x.device.type)
    if dtype is None or x.dtype == torch.float64:
        return x, weight, bias
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def without_autocast(device_type: str) -> AbstractContextManager:
    """The backends choose their own precision; autocast would round their intermediate results."""
    return NO_CONTEXT if autocast_dtype(device_type) is None else torch.autocast(device_type, enabled=False)
