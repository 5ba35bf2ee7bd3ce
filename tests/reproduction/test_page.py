"""docs/reproduction.md: its figures say where they come from, and what is not measured is marked.

That the page is what computations and results files give is tested in ``test_counts``, which has counted most of it.
"""

import json
from pathlib import Path

import pytest

from mmpelk.analysis.complexity import Complexity, Component
from mmpelk.analysis.table import Table
from reproduction import counts, page
from reproduction.counts import counts_table
from reproduction.marks import Results, deviation, share_marks
from reproduction.page import TEMPLATE
from reproduction.steps import STEPS

MACHINE = dict(device='a CPU', threads=2, torch='2.11', python='3.11', date='2026-01-01')


def test_deviations() -> None:
    for ours, theirs, places, text in (
        (101, 100, 1, '**+1.0 %**'),
        (99.5, 100, 1, '-0.5 %'),
        (150, 100, 1, '**+50.0 %**'),  # of the printed figure
        (99.99, 100, 1, '0.0 %'),
        (28.4, 28, 0, '+1.4 %'),  # rounds to the printed figure
        (28.6, 28, 0, '**+2.1 %**'),
        (None, 100, 1, '-'),
        (1, None, 1, '-'),
    ):
        assert deviation(ours, theirs, places) == text


def test_most_frequent_mark_of_a_column_stands_in_its_heading() -> None:
    table = Table(['net', 'score', 'flops', 'AP'])
    for row in (
        ('a', '1 (p)', '2 (c), **+9 %**', '7 (target); 8 (m1)'),
        ('b', '3 (p)', '-', '9 (target)'),
        ('c', '4 (target); 5 (m1)', '6 (c)', '1 (target)'),
    ):
        table.add(*row)
    shared = share_marks(table)
    assert shared.columns == ['net', 'score (p)', 'flops (c)', 'AP (target)']
    assert shared.rows == [
        ['a', '1', '2, **+9 %**', '7 (target); 8 (m1)'], ['b', '3', '-', '9'], ['c', '4 (target); 5 (m1)', '6', '1']
    ]  # fmt: skip


def test_runs_are_numbered_as_they_appear() -> None:
    results = Results()
    assert results.measured(1.25, MACHINE, 'first', 2) == '1.25 (m1)'
    assert results.measured(2.0, MACHINE, 'second', spread=0.5) == '2.0 ± 0.5 (m2)'
    assert results.measured('3 px', MACHINE, 'first') == '3 px (m1)'
    assert results.measured(None, MACHINE, 'third') == '-'
    assert results.measured(7.0, MACHINE | dict(device='a GPU'), 'first', 0) == '7 (m3)'
    assert [row[:3] for row in results.listing().rows] == [
        ('m1', 'first', 'a CPU'), ('m2', 'second', 'a CPU'), ('m3', 'first', 'a GPU')
    ]  # fmt: skip
    assert [step.name for step in STEPS if f'${{{step.name}}}' not in TEMPLATE.read_text()] == []


def test_what_is_not_measured_is_marked(tmp_path: Path) -> None:
    nothing = Results(tmp_path)
    assert page.receptive_fields('erf_random', nothing) == 'Not measured yet.'
    assert [row[0] for row in page.throughput(nothing).rows] == ['A100, the paper']
    assert page.mixers(nothing) == 'Not run yet: `python -m benchmarks.mixer_comparison`.'
    states = page.states(nothing, {})
    assert (states['state_erf'], states['state_throughput'], states['state_mixers']) == ('none', 'nothing', 'not run')
    assert all('0 of ' in states[f'state_{key}'] for key in ('1', '2', '3', '4', '5', '6', '7', 'fig2'))


def test_throughput_is_that_of_the_faster_layout_and_a_multiple_of_the_first_network(tmp_path: Path) -> None:
    def run(device: str, speeds: dict[str, tuple[float | None, float | None]]) -> None:
        rows = [
            dict(
                model=name,
                measurements=[dict(images_per_second=one, failure=None if one else 'no memory') for one in both],
            )
            for name, both in speeds.items()
        ]
        setting = dict(compiled=device == 'cuda', precision='float32', batch=8, size=224)
        content = dict(runs=[dict(setting=setting, machine=MACHINE | dict(device=device), rows=rows)])
        (tmp_path / f'throughput_{device}.json').write_text(json.dumps(content))

    run('cpu', {'PeLK-T': (2.0, 1.0), 'SLaK-T': (0.5, 1.0)})
    run('cuda', {'PeLK-T': (100.0, None), 'PeLK-101-T': (None, 50.0), 'SLaK-T': (None, None)})
    results = Results(tmp_path)
    table = page.throughput(results)
    assert table.columns == ['setting', 'PeLK-T', 'SLaK-T', 'PeLK-101-T']
    assert [list(row) for row in table.rows] == [
        ['A100, the paper', '1138 (p)', '754 (p), 0.66', '1077 (p), 0.95'],
        ['CPU, float32, eager, 8 x 224²', '2.00 (m1)', '1.00 (m1), 0.50', '-'],
        ['CUDA, float32, compiled, 8 x 224²', '100.00 (m2)', 'no memory', '50.00 (m2), 0.50'],
    ]
    assert page.states(results, {})['state_throughput'] == 'cpu, cuda'


def test_measured_scores_enter_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, '_count', lambda *_: Complexity((Component('ffn', 'backbone', 1, 1, 1, 1),), (), ()))
    results = Results(tmp_path)
    content = dict(machine=MACHINE, results=dict(upernet_pelk_t_ade20k=dict(mIoU=48.04)))
    (tmp_path / 'ade20k.json').write_text(json.dumps(content))
    assert '1 of 4 accuracies' in page.states(results, {})['state_2']
    row = next(row for row in counts_table(2, results).rows if row[0] == 'PeLK-T')
    assert row[-1] == '48.1 (target); 48.0 (m1)'
    assert results.listing().rows[0][1:3] == ('Table 2', 'a CPU')
