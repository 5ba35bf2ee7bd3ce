"""The peers of the peripheral convolution compute what they are compared with; nothing is timed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import peripheral_conv
from benchmarks.peripheral_conv import (
    OURS,
    PEERS,
    fastest_peer,
    make_case,
    make_table,
    methods,
    stage_cases,
    stages_table,
)

OTHERS = ('stripes', '7x7')  # which compute other functions


@pytest.mark.parametrize('spec', [(2, 3, 9, 12, 7, 5), (1, 16, 8, 11, 13, 5), (1, 5, 6, 7, 19, 3)], ids=str)
def test_every_method_computes_the_dense_kernel(spec: tuple[int, ...]) -> None:
    """Of maps of even and odd sides, smaller than the kernel, too; and so do the gradients of those that learn it."""
    case = make_case(spec, 'cpu', torch.float32)
    channels, padding = spec[1], spec[4] // 2
    dense = case.dense.detach().double().requires_grad_()
    x = case.x.detach().double().requires_grad_()
    expected = F.conv2d(x, dense, padding=padding, groups=channels)
    wanted = dict(zip(('x', 'dense'), torch.autograd.grad(expected, (x, dense), case.grad.double()), strict=True))
    table = methods(case)
    assert {*PEERS, *OURS, *OTHERS, 'plain fft'} <= table.keys()
    for name, (function, inputs) in table.items():
        out = function()
        if name in OTHERS:
            assert out.shape == expected.shape
            continue
        torch.testing.assert_close(out[:, :channels].double(), expected, rtol=1e-4, atol=2e-4, msg=name)
        assert not out[:, channels:].any()
        assert peripheral_conv.relative_error(function, case) < 1e-5
        grad = F.pad(case.grad, (0, 0, 0, 0, 0, out.shape[1] - channels))
        found = torch.autograd.grad(out, inputs, grad)
        torch.testing.assert_close(found[0][:, :channels].double(), wanted['x'], rtol=1e-4, atol=2e-3, msg=name)
        if found[1].shape[1:] == dense.shape[1:]:
            torch.testing.assert_close(found[1][:channels].double(), wanted['dense'], rtol=1e-4, atol=2e-3, msg=name)


@pytest.mark.parametrize(('channels', 'filled'), [(1, 16), (15, 16), (16, 16), (17, 32), (46, 48)])
def test_channels_are_filled_up_to_a_multiple_of_16(channels: int, filled: int) -> None:
    x, dense = peripheral_conv.fill_channels(make_case((1, channels, 3, 4, 5, 3), 'cpu', torch.float32))
    assert x.shape == (1, filled, 3, 4)
    assert dense.shape == (filled, 1, 5, 5)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_stages_are_those_of_the_networks() -> None:
    """Of the strides 4 to 32, with three eighths of the channels."""
    cases = dict(stage_cases())
    assert len(cases) == 2 * 5 * 4
    assert cases['tiny, 512x2048, stage 1'] == (1, 46, 128, 512, 51, 5)
    assert cases['tiny, 224x224, stage 4'] == (1, 374, 7, 7, 13, 5)
    assert cases['base, 384x384, stage 2'][2:] == (48, 48, 49, 5)
    spec = {case[:4] for case in peripheral_conv.CPU_CASES if case[:1] == (2,)}
    assert spec == {(2, *cases[f'tiny, 224x224, stage {stage}'][1:4]) for stage in (1, 2, 3, 4)}


def figures(**times: tuple[float, float | None]) -> dict[str, Any]:
    return {
        name.replace('_', ' '): dict(forward_ms=forward, forward_backward_ms=both)
        for name, (forward, both) in times.items()
    }


def test_tables_say_how_many_times_as_fast_as_the_fastest_peer() -> None:
    assert fastest_peer({'conv2d': 3.0, 'matrix dft': 2.0, 'plain fft': 1.0}) == 'matrix dft'
    assert fastest_peer({'plain fft': 1.0}) is None
    measured = figures(
        mmpelk=(2.0, 5.0),
        mmpelk_channels_last=(1.0, 4.0),
        conv2d=(1500.0, None),
        conv2d_channels_last=(4.0, None),
        matrix_dft=(3.0, 6.0),
    )
    row = dict(case=(2, 46, 56, 57, 51, 5), methods=measured, stage='tiny, stage 1')
    assert [list(cells) for cells in stages_table([row]).rows] == [
        ['tiny, stage 1', '46x56x57, K = 51', '3.00', '1.50', 'matrix dft', '1.50', '1.20', 'matrix dft']
    ]
    assert list(make_table([row]).rows[0]) == [
        *(
            '2\N{MULTIPLICATION SIGN}46\N{MULTIPLICATION SIGN}56\N{MULTIPLICATION SIGN}57',
            '51',
            '1.0 ms',
            '4.0 ms',
            '-',
            '3.0 ms',
            '1.5 s',
            '3.0',
        ),
        *('4.0 ms', '-', '-', '6.0 ms', '1.5'),
    ]


def test_backward_is_left_out_of_peers_that_take_longer_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def medians(calls: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
        asked.append(([*calls], rounds))
        return {name: 0.5 if name == 'conv2d' else 0.004 if name in OURS else 0.001 for name in calls}

    asked: list[tuple[list[str], int]] = []
    monkeypatch.setattr(peripheral_conv, 'interleaved_medians', medians)
    monkeypatch.setattr(peripheral_conv, 'peak_memory', lambda call, device: 7)
    case = make_case((1, 2, 5, 6, 7, 5), 'cpu', torch.float32)
    found = peripheral_conv.measure(case, 'cpu', 9, ('conv2d', 'conv2d channels last', '7x7', *OURS))
    assert {name: row['forward_ms'] for name, row in found.items()}['conv2d'] == 500
    assert {name: row['forward_backward_ms'] for name, row in found.items()} == {
        'conv2d': None, 'conv2d channels last': 1, '7x7': 1, 'mmpelk': 4, 'mmpelk channels last': 4
    }  # fmt: skip
    assert [rounds for _, rounds in asked] == [9, 1, 9]
    assert {name: row['peak_memory'] for name, row in found.items()}['conv2d'] is None
    assert found['7x7']['error'] is None
    assert found['mmpelk']['error'] < 1e-5
