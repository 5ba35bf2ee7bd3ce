"""How much transient memory the fast backends may take, and the pieces of work that follow from it."""

import os
from collections.abc import Iterator

from torch import Tensor

_ENVIRONMENT_VARIABLE = 'MMPELK_WORKSPACE_MB'
_DEFAULT_MB = {'cpu': 64.0}
_DEFAULT_ACCELERATOR_MB = 512.0
# On a CPU, pieces that stay in the cache run up to twice as fast as pieces as large as the limit allows.
_CACHE_FRIENDLY_MB = 8

_limit_mb: float | None = None  # set_workspace_limit's


def _from_environment() -> float | None:
    text = os.environ.get(_ENVIRONMENT_VARIABLE)
    if not text:
        return None
    try:
        megabytes = float(text)
    except ValueError:
        megabytes = 0.0
    if megabytes <= 0:
        raise ValueError(f'{_ENVIRONMENT_VARIABLE}={text!r} is not a positive number of megabytes')
    return megabytes


def workspace_limit(device_type: str) -> int:
    """Bytes that one call may use beside its inputs and its output."""
    megabytes = _DEFAULT_MB.get(device_type, _DEFAULT_ACCELERATOR_MB)
    if device_type != 'meta':  # operations are counted there, which shall not depend on a process's settings
        megabytes = _limit_mb or _from_environment() or megabytes
    return int(megabytes * 2**20)


def set_workspace_limit(megabytes: float | None) -> None:
    """Bound the transient memory of the fast backends; the environment variable ``MMPELK_WORKSPACE_MB`` does the same.

    A call works through images and channels in pieces of at most this size; on a CPU of at most 8 MB, which stay in the
    cache and run faster than larger ones. One image of one channel is never split.

    Args:
        megabytes: The bound; ``None`` gives back the default, 64 on a CPU and 512 on an accelerator.

    Raises:
        ValueError: If it is not positive.
    """
    global _limit_mb
    if megabytes is not None and megabytes <= 0:
        raise ValueError(f'the workspace limit must be positive, got {megabytes}')
    _limit_mb = megabytes


def _budget(x: Tensor) -> int:
    limit = workspace_limit(x.device.type)
    return min(limit, _CACHE_FRIENDLY_MB * 2**20) if x.device.type == 'cpu' else limit


def channel_chunks(x: Tensor, plane_bytes: int) -> Iterator[slice]:
    """Slices of the channels of ``(N, C, H, W)`` whose images all fit the budget, or one channel each."""
    size = max(1, _budget(x) // (plane_bytes * max(1, x.shape[0])))
    return (slice(start, start + size) for start in range(0, x.shape[1], size))


def image_chunks(x: Tensor, plane_bytes: int) -> Iterator[slice]:
    """Slices of the images of a channel slice ``(N, c, H, W)`` that fit the budget, or one image each."""
    size = max(1, _budget(x) // (plane_bytes * max(1, x.shape[1])))
    return (slice(start, start + size) for start in range(0, x.shape[0], size))


def piece_sizes(x: Tensor, plane_bytes: int, touched_bytes: int) -> tuple[int, int]:
    """Images and channels of ``(N, C, H, W)`` at a time: all channels of a few images, or some channels of one.

    Args:
        x: The maps.
        plane_bytes: What a plane takes at most at a time, for the limit.
        touched_bytes: What of it is worth keeping in a cache.
    """
    planes = max(1, workspace_limit(x.device.type) // plane_bytes)
    channels = min(x.shape[1], planes)
    if channels < x.shape[1]:
        channels -= channels % 8 if channels > 8 else 0  # whole vectors
    channels = max(1, channels)
    # All channels of one image reuse the matrices; images beyond what the cache holds only take its room.
    images = min(planes // channels, 2 * _budget(x) // (touched_bytes * channels))
    return max(1, images), channels
