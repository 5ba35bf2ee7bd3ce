"""How calls are timed: by a clock of the test's."""

from collections.abc import Callable, Iterator

import pytest

from benchmarks import timing


def test_calls_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, called = 0.0, []

    def takes(name: str, seconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            now += next(seconds)
            called.append(name)

        return call

    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now)
    functions = {
        'steady': takes('steady', iter([9.0, 1, 1, 1, 2])),  # the first warms up
        'disturbed': takes('disturbed', iter([9.0, 2, 2, 50, 2])),
        'slow': takes('slow', iter([9.0, 5])),
    }
    assert timing.interleaved_medians(functions, 'cpu', 3) == {'steady': 1, 'disturbed': 2, 'slow': 5}
    assert called[6:] == ['steady', 'disturbed'] * 3


@pytest.mark.parametrize(('seconds', 'rounds'), [(0.2, 3), (0.01, 50), (1e-6, 200)])
def test_short_calls_are_repeated_often(seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now, count = 0.0, 0

    def call() -> None:
        nonlocal now, count
        now, count = now + seconds, count + 1

    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now)
    timing.interleaved_medians({'call': call}, 'cpu', 3)
    assert count - 2 in (rounds, rounds - 1)  # which is left of half a second after the first


def test_each_network_has_its_own_faster_layout() -> None:
    seconds = {('a', 'x'): 1.0, ('a', 'y'): 2.0, ('b', 'x'): 4.0, ('b', 'y'): 3.0, ('c', 'y'): 9.0}
    assert timing.faster_layouts(seconds) == dict(a='x', b='y', c='y')
