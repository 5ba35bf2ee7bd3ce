"""What the host's measurement counts and times, without the driver that launches nothing."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_host
from mmpelk.ops import peripheral_conv2d
from tests.ops.inputs import needs_custom_op

ONES, WEIGHT = torch.ones(2, 3, 4, 4), torch.ones(5, 4)
#: What is called, and how many operators that are no views it dispatches.
COUNTED: dict[str, tuple[Callable[[], object], int]] = {
    'a sum': (lambda: ONES + 1, 1),
    'a view': (lambda: ONES.view(-1).detach(), 0),
    'memory': (lambda: torch.empty_like(ONES), 0),
    'a copy': (lambda: ONES.to(torch.float16), 1),
    'a copy that is none': (lambda: ONES.to(torch.float32).contiguous(), 0),
    'a composite one, which inference mode hands over whole': (
        lambda: torch.inference_mode()(torch.nn.functional.linear)(ONES.view(-1, 4), WEIGHT),
        1,
    ),
}


@pytest.mark.parametrize('name', COUNTED)
def test_operators_that_are_counted(name: str) -> None:
    call, count = COUNTED[name]
    with gpu_host._OperatorCounter({}) as inside:
        call()
    assert inside.count == count


@needs_custom_op
def test_our_operator_counts_as_those_that_it_calls() -> None:
    with gpu_host._OperatorCounter({'mmpelk::peripheral_conv2d': lambda x, *_: (x + 1).view(x.shape) * 2}) as inside:
        out = peripheral_conv2d(ONES, torch.ones(3, 1, 1, 1), [1])
    assert inside.count == 2 + 1  # the weight is made here
    assert torch.equal(out, (ONES + 1) * 2)


def test_microseconds_are_those_of_the_fastest_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    clock = iter([each for i in range(40) for each in (i, i + (40 - i) * 1e-6)])
    monkeypatch.setattr(gpu_host, 'time', SimpleNamespace(perf_counter=lambda: next(clock)))
    assert gpu_host.microseconds(lambda: calls.append(1), 40) == pytest.approx(5, rel=1e-3)
    assert len(calls) == 20 + 40
