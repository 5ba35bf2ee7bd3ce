"""The Triton backends, on tensor cores, for NVIDIA GPUs but the data centre's Blackwell.

``triton`` multiplies box sums by Toeplitz matrices (:mod:`.launch`), ``triton_dft`` transforms by products of matrices
(:mod:`.dft`). Beside them stand kernels for the norms of a block, in inference (:mod:`.norm`) and in training
(:mod:`.training_norm`). Importing this package does not import Triton; the first call does. With
``TRITON_INTERPRET=1`` in the environment before that, the same kernels run on CPU tensors, slowly, for tests.

Where the dense kernel spreads a non-finite input over the outputs within its reach, these kernels spread it, as NaN,
over every output of the tiles that read it: at most its plane (one channel of one image). In float16 a weight times the
width of its ring must stay finite.
"""

import importlib.metadata
import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ...sharing_grid import reach

__all__ = [
    'DFT_MARGIN',
    'DFT_TILE',
    'allows_tf32',
    'capability',
    'dft_unsupported_reason',
    'interpreted',
    'unavailable_reason',
    'unsupported_reason',
]

_OLDEST_TRITON = (3, 4)  # torch 2.8 brings it; 3.0 to 3.3 compile none of the kernels
_NUMPY_BEYOND_THE_INTERPRETER = (2, 5)  # seen with Triton 3.6
# Major compute capabilities that the kernels were compiled for: Ampere and Ada, Hopper, GeForce Blackwell. On the data
# centre's Blackwell, 10, the compiler of Triton 3.6 crashes on one of them and traps another.
_DEVICES = (8, 9, 12)
DFT_TILE = 64
"""Rows and columns of the tiles that ``triton_dft`` cuts larger maps into; twice as many for one of a whole map."""
DFT_MARGIN = 32
"""Rows and columns that such a tile reads beyond its own, on either side."""
# Compute capabilities with the shared memory that larger maps take: 163 KB and more.
_LARGE_DEVICES = ((8, 0), (8, 7), (9, 0))
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter; settled when they are first imported."""
    return os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'on', 'yes', 'y')


@lru_cache(maxsize=64)
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU: every call asks, and torch takes as long as half a launch."""
    return torch.cuda.get_device_capability(device)


def allows_tf32() -> bool:
    """Whether products of float32 matrices may be as exact as TF32's."""
    matmul = torch.backends.cuda.matmul
    # ``fp32_precision`` (torch 2.9) reflects ``allow_tf32`` too, and reading that one raises once the new name was set.
    try:
        return bool(matmul.fp32_precision == 'tf32')
    except (AttributeError, AssertionError):  # torch 2.1 raises the latter
        return bool(matmul.allow_tf32)


def unavailable_reason() -> str | None:
    """What this machine lacks to run the kernels, or ``None``."""
    try:
        version = importlib.metadata.version('triton')
    except importlib.metadata.PackageNotFoundError:
        return 'triton is not installed (pip install triton)'
    if tuple(int(part) for part in version.split('.')[:2]) < _OLDEST_TRITON:
        oldest = '.'.join(map(str, _OLDEST_TRITON))
        return f'triton {version} is older than {oldest}, the oldest that compiles the kernels (torch 2.8 brings it)'
    if interpreted():
        return _interpreter_reason()
    if torch.version.cuda is None or not torch.cuda.is_available():
        return 'there is no CUDA device (TRITON_INTERPRET=1 in the environment runs the kernels on the CPU, for tests)'
    return None


def _interpreter_reason() -> str | None:
    try:
        version = importlib.metadata.version('numpy')
    except importlib.metadata.PackageNotFoundError:
        return "Triton's interpreter needs numpy (pip install 'numpy<2.5')"
    if tuple(int(part) for part in version.split('.')[:2]) >= _NUMPY_BEYOND_THE_INTERPRETER:
        return f"Triton's interpreter does not run with numpy {version} (pip install 'numpy<2.5')"
    return None


def unsupported_reason(x: Tensor, weight: Tensor, grid: Sequence[int]) -> str | None:
    """Why the kernels cannot take these inputs, or ``None``. Shapes as in :func:`mmpelk.ops.peripheral_conv2d`."""
    if x.dtype not in _DTYPES:
        return f'it computes in float32, float16 and bfloat16, not {x.dtype}'
    if (x.is_cuda and capability(x.device)[0] in _DEVICES) or interpreted():
        return None
    if not x.is_cuda:
        return f'x is on {x.device}, the kernels run on a CUDA device (or anywhere with TRITON_INTERPRET=1)'
    known = ', '.join(f'{major}.x' for major in _DEVICES)
    return f'{x.device} has compute capability {".".join(map(str, capability(x.device)))}; the kernels are for {known}'


def dft_unsupported_reason(x: Tensor, grid: Sequence[int]) -> str | None:
    """Why ``triton_dft`` cannot take inputs that :func:`unsupported_reason` has nothing against, or ``None``."""
    if x.dtype == torch.float32:
        return 'its products have factors in float16, which are not exact enough for float32'
    larger = max(x.shape[-2:])
    if larger <= DFT_TILE:
        return None
    of_device = None if interpreted() else capability(x.device)
    in_one_tile = reach(sum(grid), larger) > DFT_MARGIN
    if x.dtype == torch.float16 and of_device is not None and (of_device == (9, 0) or in_one_tile):  # spilled registers
        return (
            f'in float16 it takes maps of up to {DFT_TILE} rows and columns on {x.device}, '
            f'not {larger} with kernels of {sum(grid)}'
        )
    if larger > 2 * DFT_TILE and in_one_tile:
        return (
            f'it takes maps of more than {2 * DFT_TILE} rows or columns with kernels of up to {2 * DFT_MARGIN + 1}, '
            f'not {larger} with {sum(grid)}'
        )
    if of_device is not None and of_device not in _LARGE_DEVICES:
        return f'{x.device} has too little shared memory for maps of more than {DFT_TILE} rows or columns'
    return None
