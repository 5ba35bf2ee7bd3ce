"""Every Triton kernel on small maps, in the interpreter; :mod:`triton_cases` has the larger ones, and takes minutes.

The interpreter has to be chosen before Triton is imported: here it is imported once more, beside the compiler's.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpelk.ops.backends import triton as backend
from mmpelk.ops.reference import peripheral_conv2d_reference
from tests.ops.inputs import LAYOUTS, output_and_gradients, relative_error

pytest.importorskip('triton', minversion='3.4')
if (reason := backend._interpreter_reason()) is not None:
    pytest.skip(reason, allow_module_level=True)


def _is_of_triton(name: str) -> bool:
    ours = name.startswith((f'{backend.__name__}.', 'tests.ops.triton_cases'))
    return ours or (name.split('.')[0] == 'triton' and not name.startswith('triton._C'))


def _forget(modules: dict[str, ModuleType]) -> None:
    for name in modules:
        del sys.modules[name]
        parent, _, child = name.rpartition('.')
        if parent == backend.__name__:
            delattr(backend, child)


@pytest.fixture(scope='module')
def cases() -> Iterator[ModuleType]:
    """:mod:`triton_cases` of the interpreter."""
    before = {name: module for name, module in sys.modules.items() if _is_of_triton(name)}
    _forget(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRITON_INTERPRET', '1')
        yield importlib.import_module('tests.ops.triton_cases')
    _forget({name: module for name, module in sys.modules.items() if _is_of_triton(name)})
    sys.modules.update(before)
    for name, module in before.items():
        if name.startswith(f'{backend.__name__}.'):
            setattr(backend, name.rpartition('.')[2], module)


@pytest.fixture(autouse=True)
def _few_programs(cases: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.few_programs(monkeypatch)


#: Kernels; images, channels, rows, columns; grid; bias; dtype; layout. Of grids of five rings rows reach fewer.
CONVOLUTIONS = {
    'tiles of two images, two a program': ('launch', (5, 1, 17, 7), (4, 1), 'map', torch.bfloat16, 'channels last'),
    'tiles of rows': ('launch', (2, 1, 66, 4), (18, 1, 18), 'channel', torch.float32, 'channel slice'),
    'tiles of columns, a channel at a time': (
        *('launch', (1, 2, 4, 70), (1, 4, 1, 2, 1), 'none', torch.float16, 'every second column'),
    ),
    'transforms of two images': ('dft', (3, 1, 20, 18), (2, 1, 4), 'map', torch.bfloat16, 'channel slice'),
    'transforms of few numbers, an image at a time': (
        *('dft', (2, 1, 2, 12), (2, 2, 1, 2, 2), 'channel', torch.bfloat16, 'transposed'),
    ),
    'transforms of tiles of rows': ('dft', (1, 1, 66, 2), (2, 1, 2), 'none', torch.bfloat16, 'channels last'),
    'transforms of tiles of columns': ('dft', (1, 1, 16, 70), (3, 1, 3), 'none', torch.float16, 'contiguous'),
    'transforms of a high map': ('dft', (1, 1, 100, 2), (36, 1, 36), 'map', torch.bfloat16, 'contiguous'),
}


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_convolution_and_its_gradients(case: str, cases: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    of, shape, grid, of_bias, dtype, layout = CONVOLUTIONS[case]
    kernels = getattr(cases, of)
    if 'channel at a time' in case:
        monkeypatch.setattr(cases.launch, 'WORKSPACE', 1)
    if 'image at a time' in case:
        monkeypatch.setattr(cases.launch, 'workspace_limit', lambda device_type: 1)
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator).add(mean).to(dtype) for mean in (1.0, 0.0))
    x, out = LAYOUTS[layout](x), torch.empty_like(grad)  # whose layouts differ
    weight = torch.randn(shape[1], 1, len(grid), len(grid), generator=generator).to(dtype)
    weight = (weight - weight.flip(-1)).mT.contiguous().mT  # taps that cancel
    biases = {'none': None, 'channel': torch.arange(2 * shape[1], dtype=dtype)[::2], 'map': 3 * grad[0]}
    bias, of_x, planes = biases[of_bias], torch.empty_like(x), []
    kernels.forward(x, weight, bias, grid, out)
    kernels.input_grad(grad, weight, grid[::-1], of_x, planes)
    of_weight = kernels.weight_grad(x, grad, grid, planes if of_bias == 'channel' else ())

    def exact(x: Tensor, weight: Tensor) -> Tensor:
        return peripheral_conv2d_reference(x, weight, grid, None if bias is None else bias.double())

    wanted = output_and_gradients(exact, [x.double(), weight.double()], grad)
    for got, want in zip((out, of_x, of_weight), wanted, strict=True):
        assert got.dtype == dtype
        # The rounding of the result alone takes a quarter of it.
        assert relative_error(got, want) <= torch.finfo(dtype).eps * (16 if dtype == torch.float32 else 0.5)


INFINITY = float('inf')
NON_FINITE = 'non_finite_value_stays_in_its_plane'
CASES: list[tuple[str, dict[str, Any]]] = [
    (NON_FINITE, dict(shape=(4, 1, 17, 7), image=1, value=-INFINITY, kernels='launch')),
    (NON_FINITE, dict(shape=(4, 1, 17, 7), image=2, value=INFINITY, kernels='launch')),
    (NON_FINITE, dict(shape=(3, 1, 7, 70), image=1, value=float('nan'), kernels='launch')),
    (NON_FINITE, dict(shape=(3, 1, 7, 9), image=1, value=-INFINITY, kernels='dft')),
    (NON_FINITE, dict(shape=(2, 1, 65, 3), image=1, value=float('nan'), kernels='dft')),
    ('float16_box_sums_beyond_its_range', dict(kernels='launch')),
    ('float16_box_sums_beyond_its_range', dict(kernels='dft')),
    ('transforms_of_numbers_of_any_size', {}),
    ('numbers_that_lie_in_memory_with_the_other_sign', {}),
    ('norms_of_a_block', dict(shape=(2, 7, 3, 5), mixed=3, branches=2, dtype='bfloat16')),
    ('norms_of_a_block', dict(shape=(3, 6, 3, 1), mixed=2, branches=1, dtype='float32')),
    ('norms_of_pixels_beyond_32_bits', dict(tmp_path='folder')),
    ('norms_of_what_the_kernel_does_not_read', {}),
    ('norms_of_a_block_in_training', dict(shape=(2, 51, 7, 5), mixed=0.375, dtype='float32')),
    ('empty', dict(shape=(2, 2, 0, 5), kernels='launch')),
]


@pytest.mark.parametrize(('case', 'arguments'), CASES, ids=str)
def test_some_of_the_cases(case: str, arguments: dict[str, Any], cases: ModuleType, tmp_path: Path) -> None:
    run: Callable[..., None] = getattr(cases, f'test_{case}')
    modules = dict(launch=cases.launch, dft=cases.dft, folder=tmp_path)
    run(**{name: modules.get(value, value) if isinstance(value, str) else value for name, value in arguments.items()})
