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


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('kernels', [launch, dft], ids=['triton', 'triton_dft'])
def test_later_calls_launch_with_their_own_tensors(
    kernels: ModuleType, dtype: torch.dtype, made: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first launch of a kernel and those after it take the same arguments, in the same places."""
    launches: list[list[str]] = []
    tensors: dict[str, Tensor] = {}

    def note(*launched: Tensor) -> None:
        names = {each.data_ptr(): name for name, each in tensors.items()}
        launches.append([names.get(each.data_ptr(), 'another') for each in launched])

    def start(kernel: object, programs: object, launched: Sequence[Tensor], *_: Any, **__: Any) -> Callable[..., None]:
        note(*launched)
        return note

    monkeypatch.setattr(launch, 'start', start)
    for size, width in itertools.product(((), (3,), (3, 16, 16)), (16, 13)):
        found = []
        for _ in range(2):
            tensors = {name: torch.zeros(2, 3, 16, width, dtype=dtype) for name in ('x', 'out', 'grad', 'of_x')}
            tensors['weight'] = torch.zeros(3, 1, len(GRID), len(GRID), dtype=dtype)
            tensors['bias'] = torch.zeros(size, dtype=dtype)
            bias = None if size == () else tensors['bias'][..., :width]
            x, out, grad, of_x, weight, _ = tensors.values()
            launches.clear()
            kernels.forward(x, weight, bias, GRID, out)
            kernels.input_grad(grad, weight, GRID, of_x, [])
            kernels.weight_grad(x, grad, GRID)
            found.append([*launches])
        assert found[0] == found[1]
        read = {name for names in found[0] for name in names}
        assert read >= ({*tensors} if size and width == 16 else {*tensors} - {'bias'})


def test_a_compiled_kernel_is_launched_again_with_all_it_was_launched_with() -> None:
    launched: list[Any] = []

    class Kernel:
        arg_names = ('x', 'out', 'rows', 'columns', 'SECOND', 'FIRST')

        def __getitem__(self, programs: tuple[int, ...]) -> Callable[..., Any]:
            return lambda *arguments, **options: {(5, 7, 1): lambda *again: launched.append(again)}

    x, out = torch.zeros(2), torch.zeros(2)
    launch.start(Kernel(), (5, 7), (x, out), (3, 4), FIRST=1, SECOND=2, num_warps=4)(out, x)
    assert [each if isinstance(each, int) else each is x for each in launched[0]] == [False, True, 3, 4, 2, 1]


def test_launches_go_to_the_device_of_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    contexts = [launch.current(torch.device(name)) for name in ('cpu', 'cuda:1', 'cuda:0')]
    assert [getattr(each, 'idx', None) for each in contexts] == [None, None, 0]


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([torch.float16, torch.float32]),
    st.integers(1, 10**5),
)
def test_images_whose_planes_fit_their_workspace(shape: tuple[int, ...], dtype: torch.dtype, limit: int) -> None:
    x = torch.empty(shape, dtype=dtype, device='meta')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, 'workspace_limit', lambda device_type: limit)
        images = launch.images_at_a_time(x)
    both = 2 * x.new_empty(launch.Copy(x[:1], back=False).size).nbytes  # of one image: what is read and what is written
    assert images == max(1, limit // both)


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
        low = x[:, :, :3, :3]
        assert kernels.kernel_key(low, (5, *[1] * 5, 5)) != kernels.kernel_key(low, [1] * 5), 'rings beyond the map'
    more = x.repeat(1, 16, 1, 1)  # enough for two tiles a program
    assert launch.kernel_key(more, GRID) != launch.kernel_key(x, GRID)


def _norm_inputs(branches: int = 2) -> dict[str, Any]:
    large, small, x = (torch.zeros(2, 4, 4, channels).permute(0, 3, 1, 2) for channels in (4, 4, 8))
    norms = [([torch.zeros(4) for _ in range(4)], 1e-5 * (1 + i)) for i in range(branches)]
    layer = [torch.zeros(8), torch.zeros(8)], 1e-6
    return dict(large=large, small=small if branches > 1 else None, x=x, norms=norms, norm=layer, dtype=torch.float32)


def _half(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


def _odd(x: Tensor, images: int = 1) -> Tensor:
    return x[:images, :, :3, :3].contiguous(memory_format=torch.channels_last)


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
    'odd ones of two images': (lambda a: {k: _odd(a[k], 2) for k in ('large', 'small', 'x')}, False),
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
        'a place of 8 bytes': x[..., 4:12],
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
        'memory that begins late': torch.empty(243, dtype=numbers.dtype).as_strided((3, 5, 11), (80, 16, 1), 8),
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
    if 'kernels of up to' in (reason or ''):
        with pytest.raises(ValueError, match='no tile holds 129 positions and 33'):
            dft.make_axis(sharing_grid(kernel), max(size))


def test_tables_of_a_device_lie_on_it() -> None:
    plan = dft._plan(torch.empty(1, 1, 9, 12, device='meta', dtype=torch.float16), (2, 1, 2))
    for name in ('cpu', 'meta'):
        assert {
            each.device.type for axis in dft._tables_of(plan, torch.device(name)) for each in vars(axis).values()
        } == {name}


#: Channels, steps of both branches and of the map, images; whether numbers are moved two at a time.
PAIRS = [
    *((7, (5, 3, 7), 2, True), (7, (5, 3, 7), 1, False), (7, (4, 3, 7), 2, False), (7, (5, 4, 7), 2, False)),
    *((7, (5, 3, 8), 2, False), (8, (5, 3, 9), 2, False)),
]


@pytest.mark.parametrize(('channels', 'steps', 'images', 'two'), PAIRS, ids=str)
def test_norms_that_move_two_numbers_at_a_time(
    channels: int, steps: tuple[int, ...], images: int, two: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every second pixel begins at an even one, and not every pixel."""
    wide = [torch.zeros(images, 3, 5, step).permute(0, 3, 1, 2) for step in steps]
    large, small, x = (each[:, :size] for each, size in zip(wide, (3, 3, channels), strict=True))
    launches: list[dict[str, Any]] = []
    monkeypatch.setattr(norm, 'kept', lambda key, make: launches.append(vars(make())) or (lambda *tensors: None))
    norms, layer = [([torch.zeros(3)] * 4, 1e-5)] * 2, ([torch.zeros(channels)] * 2, 1e-6)
    norm.mixed_norm(large, small, x, norms, layer, x.dtype)
    options, (programs,) = launches[0]['_options'], launches[0]['_programs']
    assert options['TWO'] == two
    assert (options['LARGE_STEP'], options['SMALL_STEP'], options['X_STEP']) == steps
    assert options['BLOCK'] >= channels * (1 + two)
    assert (programs - 1) * options['ROWS'] * (1 + two) < images * 15 <= programs * options['ROWS'] * (1 + two)


def test_pixels_of_many_channels_come_one_by_one() -> None:
    assert [norm.pixels_at_a_time(channels) for channels in (1, 512, 513, 4096, 4097)] == [
        *((8, 1), (8, 512), (4, 1024), (1, 4096), (1, 8192)),
    ]


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 300) | st.integers(1020, 2048), st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 2048),
)
def test_rows_of_the_norms_in_training(shape: tuple[int, int, int, int], fewer: int) -> None:
    """They hold every number once, begin and end at multiples of what is moved at a time, and fit their programs."""
    images, channels, height, width = shape
    mixed, pixels = max(1, channels - fewer), images * height * width
    rows = training_norm._Rows(torch.empty(images, mixed, height, width, device='meta'))
    of_all = training_norm._Pixels(torch.empty(shape, device='meta'), mixed)
    align, of_run = rows.tile['ALIGN'], rows.steps * rows.tile['ROWS'] * rows.pixels_a_row
    assert not rows.length % align
    assert not pixels * mixed % align
    assert not pixels % rows.pixels_a_row
    assert (rows.runs - 1) * of_run < pixels <= rows.runs * of_run
    assert rows.programs[0] == rows.runs
    assert rows.programs[1] * rows.tile['BLOCK'] >= rows.length == rows.pixels_a_row * mixed
    assert max(1, rows.runs - 1) * rows.programs[1] <= max(training_norm.PROGRAMS, rows.programs[1])
    align, pixels_a_row = of_all.tile['ALIGN'], of_all.length // channels
    assert of_all.numbers == (pixels * channels, pixels_a_row * channels, mixed, channels, pixels_a_row)
    assert not any(number % align for number in (pixels * channels, of_all.length, channels - mixed))
    assert (of_all.rows - 1) * pixels_a_row < pixels <= of_all.rows * pixels_a_row
    assert of_all.length <= of_all.tile['BLOCK'] <= 2048
    assert pixels_a_row <= 16
