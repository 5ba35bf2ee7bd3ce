"""The costs of the backends on a CPU are found again in times that follow from them; nothing is timed."""

from dataclasses import astuple, replace

import pytest

from benchmarks import cpu_costs
from mmpelk.ops.backends import choice
from mmpelk.ops.backends.choice import Costs

COSTS = Costs(0.05, 0.03, 2.0, 9.0, (4e4, 8e4, 7e4), (2.5, 1.75), 0.4)


def rows(costs: Costs) -> list[cpu_costs.Row]:
    """Nanoseconds of every case."""
    made = []
    for channels, side, kernel_size in cpu_costs.CASES:
        times = {
            name: costs.calls[index] + channels * ns(side, side, kernel_size, costs)
            for index, (name, ns) in enumerate(
                dict(dense=choice.dense_ns, dft=choice.dft_ns, fft=choice.fft_ns).items()
            )
        }
        grads = {
            name: costs.calls[index + 1] + costs.weight_grad[index] * (times[name] - costs.calls[index + 1])
            for index, name in enumerate(('dft', 'fft'))
        }
        made.append(dict(case=(channels, side, kernel_size), forward=times, weight_grad=grads))
    return made


@pytest.mark.parametrize('costs', [COSTS, replace(COSTS, dense_row=0.0), replace(COSTS, calls=(0.0, 0.0, 0.0))],
                         ids=['all', 'no rows', 'no calls'])  # fmt: skip
def test_costs_are_found_again(costs: Costs) -> None:
    for found, wanted in zip(astuple(cpu_costs.fit(rows(costs))), astuple(costs), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-3)


def test_no_cost_is_negative() -> None:
    """Where calls seem to take less than nothing, they take nothing, and the rest is fitted again."""
    times = rows(COSTS)
    for row in times:
        channels, side, kernel_size = row['case']
        row['forward']['fft'] = 0.9 * channels * choice.fft_ns(side, side, kernel_size, COSTS) ** 1.02
    fitted = cpu_costs.fit(times)
    assert fitted.calls[2] >= 0
    assert fitted.fft_number > 0


def test_losses_are_those_of_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choice.PROCESSORS, 'here', COSTS)
    times = rows(COSTS)
    table = cpu_costs.losses(times, 'here')
    assert len(table.rows) == len(times)
    for cells, row in zip(table.rows, times, strict=True):
        assert tuple(cells[:3]) == (str(row['case'][0]), f'{row["case"][1]}x{row["case"][1]}', str(row['case'][2]))
        for name, ratio, what in ((cells[3], cells[4], 'forward'), (cells[5], cells[6], 'weight_grad')):
            assert float(ratio) == pytest.approx(row[what][name] / min(row[what].values()), abs=0.005)
