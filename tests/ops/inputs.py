"""Inputs, gradients and errors that the tests of the operator share."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mmpelk.ops import peripheral_conv2d
from mmpelk.ops.backends import BACKENDS as TABLE
from mmpelk.ops.backends import Backend
from mmpelk.ops.custom_op import HAS_CUSTOM_OP

#: Every backend that needs torch alone; :mod:`triton_cases` has the others.
BACKENDS = [name for name in TABLE if not name.startswith('triton')]
FAST = [name for name in BACKENDS if name != 'dense']

needs_custom_op = pytest.mark.skipif(not HAS_CUSTOM_OP, reason='torch.library.custom_op came with torch 2.4')
needs_half_on_cpu = pytest.mark.skipif(not HAS_CUSTOM_OP, reason='older torch has no float16 convolution on a CPU')


def make_inputs(grid: Sequence[int], height: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random ``x`` of two images and three channels, ``weight``, and a map as bias."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    shapes = [(2, 3, height, width), (3, 1, len(grid), len(grid)), (3, height, width)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def convolve(grid: Sequence[int], backend: str | None = None) -> Callable[..., Tensor]:
    """The operator as a function of its tensors."""
    return lambda x, weight, bias=None: peripheral_conv2d(x, weight, grid, bias, backend=backend)


def output_and_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """What ``function`` returns, and the gradient of every input."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def relative_error(got: Tensor, want: Tensor) -> float:
    """In the Euclidean norm."""
    return ((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-300)).item()


def check_no_less_exact_than_dense(
    backends: Sequence[str | None],
    grid: Sequence[int],
    inputs: Sequence[Tensor],
    grad: Tensor,
    exact: Sequence[Tensor],
    floor: float = 0,
) -> None:
    """Output and gradients err at most 1.5 times as far as the dense kernel's in the same dtype, or ``floor``."""
    dense = output_and_gradients(convolve(grid, 'dense'), inputs, grad)
    for backend in backends:
        ours = output_and_gradients(convolve(grid, backend), inputs, grad)
        for name, value, other, want in zip(('output', 'x', 'weight', 'bias'), ours, dense, exact, strict=False):
            assert value.dtype == inputs[0].dtype, name
            error, bound = relative_error(value, want), max(1.5 * relative_error(other, want), floor)
            assert error <= bound, f'{backend}, {name}: relative error {error:.2e}, allowed {bound:.2e}'


class Recording(dict[str, Backend]):
    """The table of backends, which notes the names that are looked up."""

    def __init__(self) -> None:
        super().__init__(TABLE)
        self.used: list[str] = []

    def __getitem__(self, name: str) -> Backend:
        self.used.append(name)
        return TABLE[name]


LAYOUTS = {
    'contiguous': lambda x: x,
    'channel slice': lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    'channels last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'channel slice of channels last': lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[
        :, : x.shape[1]
    ],
    'transposed': lambda x: x.mT.contiguous().mT,
    'every second column': lambda x: x.repeat_interleave(2, -1)[..., ::2],
}
