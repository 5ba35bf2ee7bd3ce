"""What a kept launch and a compiled kernel of Triton's depend on, and what the kernels take; nothing is launched."""

import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from mmpelk.ops import sharing_grid
from mmpelk.ops.backends import triton as backend

pytest.importorskip('triton', minversion='3.4')

from mmpelk.ops.backends.triton import dft, launch, norm, training_norm

GRID = sharing_grid(13)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """How many launches a call makes, of which nothing is launched."""
    for module in (launch, norm):
        monkeypatch.setattr(module, 'start', lambda *_, **__: lambda *tensors: None)
    monkeypatch.setattr(launch, '_calls', calls := {})
    monkeypatch.setattr(launch, 'is_hopper', lambda device: True)

    def count(call: Callable[[], object]) -> int:
        before = len(calls)
        call()
        return len(calls) - before

    return count


def _shifted(x: Tensor) -> Tensor:
    """The same, at another place between two multiples of 16 bytes."""
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride())


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _maps(dtype: torch.dtype) -> dict[str, Any]:
    x, rings = torch.zeros(2, 3, 16, 16, dtype=dtype), len(GRID)
    return dict(x=x, weight=torch.zeros(3, 1, rings, rings, dtype=dtype), bias=None, grid=GRID, out=torch.zeros_like(x))


#: Changes of a call of the convolution, each of which needs another launch.
OF_A_CALL: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    'a map in channels last': lambda a: dict(x=_channels_last(a['x'])),
    'a map between two places': lambda a: dict(x=_shifted(a['x'])),
    'a result in channels last': lambda a: dict(out=_channels_last(a['out'])),
    'a result between two places': lambda a: dict(out=_shifted(a['out'])),
    'a transposed weight': lambda a: dict(weight=a['weight'].mT.contiguous().mT),
    'a weight of another dtype': lambda a: dict(weight=a['weight'].double()),
    'numbers as a bias': lambda a: dict(bias=a['x'][0, :, 0, 0].contiguous()),
    'a map as a bias': lambda a: dict(bias=a['x'][0].clone()),
    'a transposed map as a bias': lambda a: dict(bias=a['x'][0].mT.contiguous().mT),
    'a bias of another dtype': lambda a: dict(bias=a['x'][0].double()),
    'another grid': lambda a: dict(grid=[*GRID[1:], GRID[0]] if GRID[0] != GRID[1] else [*GRID[:-2], 1, 1]),
    'other maps': lambda a: dict(x=a['x'][:1].clone(), out=a['out'][:1].clone()),
    'another dtype': lambda a: {k: a[k].bfloat16() for k in ('x', 'weight', 'out')},
}


@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
def test_what_a_kept_call_depends_on(
    kernels: ModuleType, made: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = _maps(torch.float16)

    def forward(**changes: Any) -> Tensor:
        return kernels.forward(**arguments | changes)

    assert (made(forward), made(forward)) == (1, 0)
    for name, change in OF_A_CALL.items():
        changes = change(arguments)
        assert (made(lambda: forward(**changes)), made(lambda: forward(**changes))) == (1, 0), name  # noqa: B023
    x, weight, grid, out = (arguments[name] for name in ('x', 'weight', 'grid', 'out'))
    for call in (
        lambda: kernels.input_grad(x, weight, grid, out, []),  # of a flipped kernel
        lambda: kernels.prepare(weight, grid, x),
        lambda: kernels.prepare(weight.mT.contiguous().mT, grid, x),
        lambda: kernels.prepare(weight, grid, x[:, :, :8]),
        lambda: kernels.weight_grad(x, out, grid),
        lambda: kernels.weight_grad(_channels_last(x), out, grid),
        lambda: kernels.weight_grad(x, _channels_last(out), grid),
        lambda: kernels.weight_grad(x, _shifted(out), grid),
    ):
        assert (made(call), made(call)) == (1, 0)
    monkeypatch.setattr(launch, 'workspace_limit', lambda device_type: 1)
    assert made(forward) > 0


def test_few_calls_are_kept(made: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, '_MOST_CALLS', 2)
    for size in range(1, 9):
        x = torch.zeros(1, 1, size, size)
        launch.forward(x, torch.zeros(1, 1, 1, 1), None, [1])
        assert 1 <= len(launch._calls) <= 2


def test_what_float32_depends_on(made: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = _maps(torch.float32)
    x, weight, grid, out = (arguments[name] for name in ('x', 'weight', 'grid', 'out'))
    keys = []
    for allows in (False, True):
        monkeypatch.setattr(launch, 'allows_tf32', lambda allows=allows: allows)
        for call in (
            lambda: launch.forward(**arguments),
            lambda: launch.weight_grad(x, out, grid),
            lambda: launch.prepare(weight, grid, x),
        ):
            assert (made(call), made(call)) == (1, 0)
        keys.append(launch.kernel_key(x, grid))
    assert keys[0] != keys[1]


def test_what_tells_compiled_convolutions_apart(made: Callable[..., int]) -> None:
    x = torch.zeros(8, 16, 20, 24, dtype=torch.float16)
    maps = [
        *(x, _shifted(x), x[:4], x[:, :, :, :16].contiguous(), torch.zeros(8, 16, 90, 24, dtype=x.dtype)),
        *(_channels_last(x), _channels_last(x[:, :14]), _channels_last(x[:, :15])),
    ]
    for kernels in (launch, dft):
        keys = [kernels.kernel_key(each, GRID) for each in maps]
        assert keys == [kernels.kernel_key(each, GRID) for each in maps]
        assert len(set(keys)) == len(maps)
        assert kernels.kernel_key(x[:, :8], GRID) == keys[0], 'of any number of channels'


def _norm_inputs(branches: int = 2) -> dict[str, Any]:
    large, small, x = (torch.zeros(2, 4, 4, channels).permute(0, 3, 1, 2) for channels in (4, 4, 8))
    norms = [([torch.zeros(4) for _ in range(4)], 1e-5 * (1 + i)) for i in range(branches)]
    layer = [torch.zeros(8), torch.zeros(8)], 1e-6
    return dict(large=large, small=small if branches > 1 else None, x=x, norms=norms, norm=layer, dtype=torch.float32)


def _half(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


def _odd(x: Tensor) -> Tensor:
    return x[:1, :, :3, :3].contiguous(memory_format=torch.channels_last)


#: Changes of the norms' kernel in inference; whether they need another compiled one, too.
OF_NORMS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], bool]] = {
    'the first epsilon': (lambda a: dict(norms=[(a['norms'][0][0], 1.0), a['norms'][1]]), False),
    'the second epsilon': (lambda a: dict(norms=[a['norms'][0], (a['norms'][1][0], 1.0)]), False),
    "the layer norm's epsilon": (lambda a: dict(norm=(a['norm'][0], 1.0)), False),
    'fewer images': (lambda a: {k: a[k][:1] for k in ('large', 'small', 'x')}, False),
    'one branch': (lambda a: dict(norms=a['norms'][:1], small=None), True),
    'no norms': (lambda a: dict(norms=[], small=None), True),
    'the dtype of the result': (lambda a: dict(dtype=torch.float16), True),
    'the dtype of the map': (lambda a: dict(x=_half(a['x'])), True),
    'the dtype of the mixed channels': (lambda a: dict(large=_half(a['large'])), True),
    'the dtype of the small branch': (lambda a: dict(small=_half(a['small'])), True),
    "the dtype of a batch norm's": (
        lambda a: dict(norms=[([*map(_half, a['norms'][0][0])], 1e-5), a['norms'][1]]),
        True,
    ),
    "the dtype of the layer norm's": (lambda a: dict(norm=([*map(_half, a['norm'][0])], 1e-6)), True),
    'a slice of the mixed channels': (lambda a: dict(large=torch.cat([a['large']] * 2, 1)[:, :4]), True),
    'a map between two places': (lambda a: dict(x=_shifted(a['x'])), True),
    'an odd number of pixels': (lambda a: {k: _odd(a[k]) for k in ('large', 'small', 'x')}, True),
}


def test_what_the_norms_of_a_block_depend_on(made: Callable[..., int]) -> None:
    arguments = _norm_inputs()

    def key(changes: dict[str, Any]) -> object:
        return norm.kernel_key(**arguments | changes)

    def call(changes: dict[str, Any]) -> Tensor:
        assert norm.takes(**{name: value for name, value in (arguments | changes).items() if name != 'dtype'})
        return norm.mixed_norm(**arguments | changes)

    assert (made(lambda: call({})), made(lambda: call({}))) == (1, 0)
    for name, (change, is_compiled) in OF_NORMS.items():
        changes = change(arguments)
        assert (made(lambda: call(changes)), made(lambda: call(changes))) == (1, 0), name  # noqa: B023
        assert (key(changes) != key({})) == is_compiled, name


def _training_inputs() -> dict[str, Any]:
    large, small, x = (torch.zeros(2, 4, 4, channels).permute(0, 3, 1, 2) for channels in (4, 4, 8))
    running = [torch.zeros(4), torch.zeros(4), torch.zeros((), dtype=torch.int64)] * 2
    return dict(
        maps=[large, small, x],
        parameters=[torch.zeros(size) for size in (4, 4, 4, 4, 8, 8)],
        running=running,
        momenta=[0.1, 0.1],
        epsilons=[1e-5, 1e-5, 1e-6],
        dtype=torch.float32,
    )


def _with(values: Sequence[Any], index: int, value: Any) -> list[Any]:
    return [value if i == index else each for i, each in enumerate(values)]


OF_TRAINING: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    **{f'momentum {i}': (lambda a, i=i: dict(momenta=_with(a['momenta'], i, 0.5))) for i in range(2)},
    **{f'epsilon {i}': (lambda a, i=i: dict(epsilons=_with(a['epsilons'], i, 0.5))) for i in range(3)},
    **{f'the dtype of map {i}': (lambda a, i=i: dict(maps=_with(a['maps'], i, _half(a['maps'][i])))) for i in range(3)},
    'the dtype of the parameters': lambda a: dict(parameters=[*map(_half, a['parameters'])]),
    'the dtype of a running mean': lambda a: dict(running=_with(a['running'], 0, _half(a['running'][0]))),
    'the dtype of the result': lambda a: dict(dtype=torch.bfloat16),
    'a map between two places': lambda a: dict(maps=_with(a['maps'], 2, _shifted(a['maps'][2]))),
    'an odd number of pixels': lambda a: dict(maps=[*map(_odd, a['maps'])]),
}


def test_what_the_norms_in_training_depend_on(made: Callable[..., int]) -> None:
    arguments = _training_inputs()

    def forward(changes: dict[str, Any]) -> None:
        training_norm.forward(**arguments | changes)

    assert (made(lambda: forward({})), made(lambda: forward({}))) == (1, 0)
    for name, change in OF_TRAINING.items():
        changes = change(arguments)
        assert (made(lambda: forward(changes)), made(lambda: forward(changes))) == (1, 0), name  # noqa: B023

    grad, stats = torch.zeros(2, 4, 4, 8), torch.zeros(6, 4)

    def backward(grad: Tensor, maps: Sequence[Tensor], parameters: Sequence[Tensor], eps: float) -> None:
        training_norm.backward(grad, maps, stats, parameters, eps)

    maps, parameters = arguments['maps'], arguments['parameters']
    for call in (
        (grad, maps, parameters, 1e-6),
        (grad, maps, parameters, 1e-5),
        (_half(grad), maps, parameters, 1e-6),
        (_shifted(grad), maps, parameters, 1e-6),
        *((grad, _with(maps, i, _half(maps[i])), parameters, 1e-6) for i in range(3)),
        (grad, maps, [*map(_half, parameters)], 1e-6),
        (grad[:1], [each[:1] for each in maps], parameters, 1e-6),
    ):
        assert (made(lambda: backward(*call)), made(lambda: backward(*call))) == (1, 0), call[3]  # noqa: B023


def test_what_tells_compiled_norms_in_training_apart() -> None:
    x, parameters = _training_inputs()['maps'][2], _training_inputs()['parameters']
    key = training_norm.kernel_key
    others = [
        key(_half(x), parameters),
        key(_shifted(x), parameters),
        key(x, [*map(_half, parameters)]),
        key(x, [each[:3] for each in parameters]),
        key(x, parameters, torch.float16),
        key(_odd(x), parameters),
        key(torch.zeros(2, 3, 3, 8).permute(0, 3, 1, 2), parameters),  # an even number, but an odd one in each image
        key(torch.zeros(2, 4, 4, 10).permute(0, 3, 1, 2), parameters),
    ]
    assert len({key(x, parameters), *others}) == 1 + len(others)
    assert key(x[:, :, :2].contiguous(memory_format=torch.channels_last), parameters) == key(x, parameters)


#: What the kernels in training do not take, in the place of what they take.
NOT_TAKEN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    'a map in planes': lambda a: dict(x=a['x'].contiguous()),
    'a slice of a map': lambda a: dict(x=torch.cat([a['x']] * 2, 1)[:, :8]),
    'parameters of two dtypes': lambda a: dict(parameters=_with(a['parameters'], 5, _half(a['parameters'][5]))),
    'parameters of another dtype': lambda a: dict(parameters=[each.half() for each in a['parameters']]),
    'a running mean of another dtype': lambda a: dict(running=_with(a['running'], 3, a['running'][3].double())),
    'a running mean with gaps': lambda a: dict(running=_with(a['running'], 0, torch.zeros(8)[::2])),
    'a longer running variance': lambda a: dict(running=_with(a['running'], 4, torch.zeros(5))),
    'a longer weight': lambda a: dict(parameters=_with(a['parameters'], 2, torch.zeros(5))),
    'a weight with gaps': lambda a: dict(parameters=_with(a['parameters'], 1, torch.zeros(8)[::2])),
    'a longer weight of the layer norm': lambda a: dict(parameters=_with(a['parameters'], 4, torch.zeros(9))),
    'a bias of the layer norm with gaps': lambda a: dict(parameters=_with(a['parameters'], 5, torch.zeros(16)[::2])),
    'a count in another dtype': lambda a: dict(running=_with(a['running'], 5, torch.zeros(()))),
    'parameters on another device': lambda a: dict(parameters=_with(a['parameters'], 0, torch.zeros(4, device='meta'))),
    'a mean on another device': lambda a: dict(running=_with(a['running'], 0, torch.zeros(4, device='meta'))),
}


def test_what_the_norms_in_training_take() -> None:
    inputs = _training_inputs()
    arguments = dict(x=inputs['maps'][2], parameters=inputs['parameters'], running=inputs['running'])
    arguments['dtype'] = torch.bfloat16
    assert training_norm.takes(**arguments)
    halves = [each if each.dtype == torch.int64 else _half(each) for each in arguments['running']]
    assert training_norm.takes(**arguments | dict(running=halves, parameters=[*map(_half, arguments['parameters'])]))
    for name, change in NOT_TAKEN.items():
        assert not training_norm.takes(**arguments | change(arguments)), name
    for channels, takes in ((2048, True), (2049, False)):
        wide = dict(x=torch.zeros(1, channels, 1, 2).to(memory_format=torch.channels_last))
        wide['parameters'] = [*arguments['parameters'][:4], torch.zeros(channels), torch.zeros(channels)]
        assert training_norm.takes(**arguments | wide) == takes


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[int]]:
    """Of maps whose pixels lie one after the other, but for some strides."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 4))
    rows, columns = shape[2:]
    step = draw(st.integers(1, 6))
    strides = [rows * columns * step, 1, columns * step, step]
    for dim in draw(st.sets(st.integers(0, 3), max_size=2)):
        strides[dim] = draw(st.integers(1, 24))
    return shape, strides


@given(_layouts())
@example(((3, 4, 1, 1), [6, 1, 20, 9]))
def test_step_between_pixels(layout: tuple[tuple[int, ...], list[int]]) -> None:
    """All numbers of a pixel next to each other, and all pixels as far apart as the first two."""
    shape, strides = layout
    images, channels, rows, columns = shape
    x = torch.zeros(4096).as_strided(shape, strides)
    step = norm.pixel_step(x)
    offsets = [
        sum(place * stride for place, stride in zip((n, 0, i, j), strides, strict=True))
        for n, i, j in itertools.product(range(images), range(rows), range(columns))
    ]
    gaps = {b - a for a, b in itertools.pairwise(offsets)}
    is_regular = len(gaps) <= 1 and (channels == 1 or strides[1] == 1)
    if gaps:
        assert step == (gaps.pop() if is_regular and min(gaps) >= channels else None)
    else:
        assert (step is not None) == is_regular


@given(
    st.tuples(*[st.integers(1, 17)] * 4),
    st.integers(0, 8),
    st.integers(0, 3),
    st.sampled_from([torch.float16, torch.float32]),
)
def test_numbers_of_channels_last_that_are_moved_at_a_time(
    shape: tuple[int, int, int, int], offset: int, others: int, dtype: torch.dtype
) -> None:
    """Where every pixel's channels begin and end at multiples of so many."""
    images, channels, rows, columns = shape
    numbers = torch.empty(images * rows * columns * channels + 32, dtype=dtype)
    start = -numbers.data_ptr() // numbers.itemsize % 16 + offset
    x = numbers[start:][: images * rows * columns * channels].view(images, rows, columns, channels).permute(0, 3, 1, 2)
    x, taken = x[:, : max(1, channels - others)], max(1, channels - others)
    step = launch.channel_alignment(x)
    assert step in (1, 4 // dtype.itemsize, 16 // dtype.itemsize)
    places = {pixel * channels + offset for pixel in range(images * rows * columns)} | {taken}
    fits = [each for each in (16 // dtype.itemsize, 4 // dtype.itemsize, 1) if not any(p % each for p in places)]
    assert step <= fits[0]
    assert step == fits[0] or min(images, rows, columns) == 1  # whose strides nobody uses


def test_planes_that_are_read_where_they_are() -> None:
    x = torch.empty(2 * 3 * 8 * 16 + 16, dtype=torch.float16)
    x = x[-x.data_ptr() // 2 % 8 :][: 2 * 3 * 8 * 16].view(2, 3, 8, 16)
    assert launch.are_planes(x)
    assert launch.are_planes(x[..., :8])
    assert launch.are_planes(x[1:, 1:])
    for name, other in {
        'channels last': _channels_last(x),
        'rows of another length': x[..., :12],
        'another place': x[..., 1:9],
        'transposed': x.mT,
        'rows that begin elsewhere': x.as_strided((2, 3, 8, 8), (384, 128, 12, 1)),
        'channels that begin elsewhere': x.as_strided((2, 3, 8, 8), (384, 100, 8, 1)),
        'images that begin elsewhere': x.as_strided((2, 2, 8, 8), (300, 64, 8, 1)),
    }.items():
        assert not launch.are_planes(other), name


def test_biases_that_are_read_where_they_are() -> None:
    numbers = torch.empty(3 * 5 * 16 + 16, dtype=torch.float16)
    numbers = numbers[-numbers.data_ptr() // 2 % 8 :][: 3 * 5 * 16].clone()
    bias = numbers.view(3, 5, 16)
    assert launch._is_padded_bias(bias)
    assert launch._is_padded_bias(bias[..., :11])
    assert launch._is_padded_bias(bias[1:, :, :11])
    for name, other in {
        'another place': bias[..., 1:],
        'transposed': bias.mT,
        'one row for all': numbers[:48].view(3, 1, 16).expand(3, 5, 16),
        'rows without room': numbers[: 3 * 5 * 11].view(3, 5, 11),
        'rows that begin elsewhere': numbers.as_strided((3, 3, 8), (40, 12, 1)),
        'channels that begin elsewhere': numbers.as_strided((3, 3, 8), (36, 8, 1)),
        'memory that ends before': numbers[:235].clone().as_strided((3, 5, 11), (80, 16, 1)),
    }.items():
        assert not launch._is_padded_bias(other), name


@pytest.mark.parametrize('bias', [
    torch.arange(6.0), torch.arange(12.0)[::2], torch.arange(8.0)[2:], torch.ones(1).expand(6),
    torch.arange(210.0).view(6, 5, 7), torch.arange(210.0).view(6, 5, 7)[1::2, 1:, 2:],
    torch.ones(6, 1, 7).expand(6, 5, 7),
])  # fmt: skip
def test_biases_are_addressed_by_their_strides(bias: Tensor) -> None:
    """As the kernels do: channels, and rows and columns of a map, whose columns stand side by side."""
    is_map, (channels, rows, height) = launch.bias_layout(bias)
    assert is_map is (bias.dim() == 3)
    numbers, begin = (
        torch.tensor(bias.untyped_storage().tolist(), dtype=torch.uint8).view(torch.float32),
        bias.storage_offset(),
    )
    for place in itertools.product(*map(range, bias.shape)):
        channel, row = place[0], place[1] if is_map else 0
        column = place[2] if is_map else 0
        assert numbers[begin + channel * channels + row * rows + column] == bias[place]
    assert height == (bias.shape[1] if is_map else 0)
    assert launch.bias_layout(None) == (True, (0, 0, 0))


#: Rows and columns of a map, side of the kernel, dtype, compute capability; and a part of the reason.
OF_DFT = [
    ((64, 64), 151, torch.bfloat16, (8, 6), None),
    ((64, 64), 51, torch.float32, (9, 0), 'not exact enough for float32'),
    ((64, 64), 151, torch.float16, (9, 0), None),
    ((65, 20), 13, torch.bfloat16, (9, 0), None),
    ((20, 65), 13, torch.bfloat16, (8, 0), None),
    ((20, 65), 13, torch.bfloat16, (8, 7), None),
    ((20, 65), 13, torch.bfloat16, (8, 6), 'too little shared memory'),
    ((65, 20), 13, torch.bfloat16, (12, 0), 'too little shared memory'),
    ((65, 20), 13, torch.float16, (9, 0), 'in float16 it takes maps of up to 64'),
    ((65, 20), 65, torch.float16, (8, 0), None),
    ((65, 20), 67, torch.float16, (8, 0), 'in float16 it takes maps of up to 64'),
    ((128, 128), 151, torch.bfloat16, (9, 0), None),
    ((129, 20), 65, torch.bfloat16, (9, 0), None),
    ((129, 20), 67, torch.bfloat16, (9, 0), 'kernels of up to 65, not 129 with 67'),
    ((20, 129), 67, torch.bfloat16, (9, 0), 'kernels of up to 65, not 129 with 67'),
]


@pytest.mark.parametrize(('size', 'kernel', 'dtype', 'capability', 'reason'), OF_DFT, ids=str)
def test_maps_that_transforms_take(
    size: tuple[int, int],
    kernel: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, 'capability', lambda device: capability)
    found = backend.dft_unsupported_reason(torch.empty(1, 1, *size, dtype=dtype), sharing_grid(kernel))
    assert found is None if reason is None else reason in (found or '')
    if reason is None:
        dft.make_axis(sharing_grid(kernel), max(size))
