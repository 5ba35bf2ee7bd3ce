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
