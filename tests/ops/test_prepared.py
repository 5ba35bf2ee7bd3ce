"""Prepared convolutions, and the cache of them: never an entry of other numbers, few sizes, few bytes."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from mmpelk.ops import force_backend, prepared, sharing_grid
from mmpelk.ops.backends import BACKENDS, fastest_backend
from mmpelk.ops.prepared import Prepared, PreparedCache, prepare
from mmpelk.ops.reference import peripheral_conv2d_reference
from mmpelk.ops.sharing_grid import mirror_half_grid
from tests.ops.inputs import Recording, needs_custom_op

GRID = sharing_grid(13, 3)


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 5, 9, 12), torch.randn(3, 1, len(GRID), len(GRID)), torch.randn(3)


@pytest.mark.parametrize('backend', [None, *sorted(name for name in BACKENDS if not name.startswith('triton'))])
@pytest.mark.parametrize('channels_last', [False, True])
def test_is_the_convolution(backend: str | None, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = tensors()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr('mmpelk.ops.backends.calls.BACKENDS', table := Recording())
    prepared = prepare(x, weight.requires_grad_(), GRID, bias.requires_grad_(), backend)
    got = prepared(x)
    assert not got.requires_grad
    assert set(table.used) == {backend or prepared.backend or fastest_backend(x[:, :3], GRID)}
    want = peripheral_conv2d_reference(x[:, :3].double(), weight.double(), GRID, bias.double())
    torch.testing.assert_close(got, torch.cat([want.float(), x[:, 3:]], 1))
    assert got.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize('backend', [name for name in BACKENDS if not name.startswith('triton')])
def test_autocast_rounds_the_tensors_and_no_more(backend: str) -> None:
    x, (_, weight, bias) = torch.randn(2, 5, 20, 20), tensors()  # so large that sums are in float32
    want = prepare(x.bfloat16(), weight.bfloat16(), GRID, bias.bfloat16(), backend)(x.bfloat16())
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(prepare(x, weight, GRID, bias, backend)(x), want)


@needs_custom_op
def test_gradients_are_refused() -> None:
    x, weight, bias = tensors()
    out = prepare(x, weight, GRID, bias, 'dft')(x.requires_grad_())
    with pytest.raises(RuntimeError, match='has no gradients'):
        out.sum().backward()


def fail(*_: object) -> Tensor:
    raise FAILURES[0]


FAILURES: list[Exception] = []


@pytest.mark.parametrize(
    ('error', 'compiled', 'named', 'raises'),
    [
        (RuntimeError('compiler'), True, False, False),  # the call itself goes on with another backend
        (RuntimeError('compiler'), True, True, False),  # and raises there, where it is named
        (torch.cuda.OutOfMemoryError('memory'), True, False, True),
        (RuntimeError('mistake'), False, False, True),
    ],
    ids=str,
)
def test_only_what_is_compiled_may_fail(
    error: Exception, compiled: bool, named: bool, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = tensors()
    FAILURES[:] = [error]
    backend = replace(BACKENDS['dft'], prepare=fail, kernel_key=BACKENDS['triton'].kernel_key if compiled else None)
    monkeypatch.setitem(BACKENDS, 'dft', backend)
    monkeypatch.setattr(prepared, 'fastest_backend', lambda *_: 'dft')
    if raises:
        with pytest.raises(type(error), match=str(error)):
            prepare(x, weight, GRID, bias)
        return
    made = prepare(x, weight, GRID, bias, 'dft' if named else None)
    assert (made.kernel, made.backend) == (None, 'dft' if named else None)


def get(cache: PreparedCache, x: Tensor, weight: Tensor, made: list[Prepared], grid: Sequence[int] = GRID) -> Prepared:
    def make() -> Prepared:
        made.append(prepare(x, weight, grid, None))
        return made[-1]

    return cache.get(x, [weight, None], None, make, grid)


def test_makes_again_what_was_written_to() -> None:
    x, weight, _ = tensors()
    cache, made = PreparedCache(), []
    assert get(cache, x, weight, made) is get(cache, x, weight, made)
    weight.data[0, 0, 0, 0] += 1  # torch counts no such write
    assert get(cache, x, weight, made) is made[1]
    get(cache, x.contiguous(memory_format=torch.channels_last), weight, made)
    get(cache, x.double(), weight.double(), made)
    get(cache, x, weight, made, mirror_half_grid([4, 2, 1, 1]))
    assert (len(made), len(cache)) == (5, 4)


def test_what_an_entry_is_of() -> None:
    x, weight, bias = tensors()
    cache, made = PreparedCache(), []

    def count(tensors: Sequence[Tensor | None], backend: str | None = None) -> int:
        for _ in range(2):  # the second time it is kept
            cache.get(x, tensors, backend, lambda: made.append(prepare(x, weight, GRID, bias, backend)) or made[-1])
        return len(made)

    assert count([weight, bias]) == 1
    assert count([weight, bias], 'fft') == 2
    with force_backend('dft'):
        assert count([weight, bias]) == 3
        assert made[-1].backend == 'dft'
    with torch.autocast('cpu', torch.bfloat16):
        assert count([weight, bias]) == 4
    assert count([weight, bias]) == 4
    for other in (None, bias + 1, bias):
        before = len(made)
        assert count([weight, other]) == before + 1


def test_what_does_not_fit_together_is_refused() -> None:
    x, weight, bias = tensors()
    for given, message in (
        ((x, weight[:, :, 1:], GRID, bias), 'weight must be'),
        ((x, weight, GRID, bias[1:]), 'bias must be'),
        ((x, weight.double(), GRID, bias), 'they must agree'),
        ((x, weight, [2, *GRID[1:]], bias), 'odd sum'),
        ((x, weight, GRID, bias, 'magic'), "unknown backend 'magic'"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(*given)


@pytest.mark.parametrize('spare', [0, -1])
def test_all_bytes_of_an_entry_count(spare: int) -> None:
    x, weight, bias = tensors()
    made = prepare(x, weight, GRID, bias, 'dft')
    held = [weight, bias, made.weight, made.bias, made.kernel]  # the first two are copied
    cache = PreparedCache()
    with mock.patch.object(prepared, '_BYTES', sum(each.nbytes for each in held if each is not None) + spare):
        cache.get(x, [weight, bias], 'dft', lambda: made)
    assert len(cache) == 1 + spare


def test_an_entry_makes_room_before_it_is_kept() -> None:
    x, weight, _ = tensors()
    made, cache = prepare(x, weight, GRID, None, 'dft'), PreparedCache()
    size = sum(each.nbytes for each in (weight, made.weight, made.kernel) if each is not None)
    with mock.patch.object(prepared, '_BYTES', 5 * size // 2):
        for name in ('a', 'b', 'c'):
            cache.get(x, [weight], name, lambda: made)
        assert len(cache) == 2
        weight += 1
        cache.get(x, [weight], 'c', lambda: made)
    assert len(cache) == 2, 'an entry is exchanged'
    for frozen in (True, False):
        cache.freeze(frozen)
        assert len(cache) == 0
        cache.get(x, [weight], 'a', lambda: made)
        assert len(cache) == 1


def test_another_dtype_of_the_same_numbers_is_another_tensor() -> None:
    x, weight, _ = tensors()
    cache, numbers, made = PreparedCache(), weight.round(), []
    for each in (numbers, numbers.double(), numbers.bfloat16()):
        cache.get(x, [each], None, lambda: made.append(prepare(x, weight, GRID, None)) or made[-1])
    assert len(made) == 3


def test_frozen_it_keeps_on_every_device_but_what_a_graph_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = (each.to('meta') for each in tensors()[:2])
    cache = PreparedCache()
    for frozen, capturing, counts in ((False, False, (12, 0)), (True, True, (12, 0)), (True, False, (8, 4))):
        made: list[Prepared] = []
        cache.freeze(frozen)
        monkeypatch.setattr(prepared, 'is_capturing', lambda _, capturing=capturing: capturing)
        for size in range(3, 9):
            get(cache, x[:, :, :size], weight, made)
            get(cache, x[:, :, :size], weight, made)
        assert (len(made), len(cache)) == counts


@pytest.mark.parametrize('frozen', [False, True])
def test_a_write_while_it_is_made_leaves_nothing_wrong(frozen: bool) -> None:
    x, weight, _ = tensors()
    cache = PreparedCache()
    cache.freeze(frozen)

    def make() -> Prepared:
        made = prepare(x, weight, GRID, None)
        weight.mul_(2)  # another thread's
        return made

    cache.get(x, [weight], None, make)
    again = prepare(x, weight, GRID, None)
    with pytest.raises(RuntimeError, match='have changed') if frozen else nullcontext():
        assert cache.get(x, [weight], None, lambda: again) is again


def test_keeps_few_sizes_and_few_bytes() -> None:
    x, weight, _ = tensors()
    cache, made = PreparedCache(), []
    for extra in range(6):
        get(cache, x[:, :, : 3 + extra], weight, made)
        get(cache, x[:, :, :3], weight, made)
    assert len(cache) == 4
    assert len(made) == 6, 'what is used most stays'
    with mock.patch.object(prepared, '_BYTES', 10):
        get(cache, x, weight, made)
    assert len(cache) == 0
