"""Figures in hand-written pages are those of the result files that the pages name."""

import json
from typing import Any

from tests.commands import load_tool
from tests.paths import ROOT

TIMES = '\N{MULTIPLICATION SIGN}'
RESULTS = ROOT / 'benchmarks' / 'results'


def _read(name: str) -> Any:
    return json.loads((RESULTS / f'{name}.json').read_text())


def _rows(page: str, first: str) -> list[list[str]]:
    """Cells of the rows whose first cell starts with ``first``, in the tables of a page."""
    lines = (ROOT / 'docs' / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith(f'| {first}')]


def _time(milliseconds: float) -> str:
    return f'{milliseconds / 1e3:.1f} s' if milliseconds >= 1e3 else f'{milliseconds:.1f} ms'


def test_operator_page_has_the_figures_of_the_benchmark() -> None:
    expected = []
    for result in _read('peripheral_conv_cpu_float32')['cases']:
        *shape, kernel_size, _ = result['case']
        methods = result['methods']
        native, last, ours = methods['conv2d'], methods['conv2d channels last'], methods['mmpelk']
        times = [_time(method['forward_ms']) for method in (native, last, ours)]
        expected.append(
            [
                TIMES.join(map(str, shape)),
                str(kernel_size),
                *times,
                f'{ours["forward_ratio"]:.1f}',
                _time(ours['forward_backward_ms']),
                f'{ours["forward_backward_ratio"]:.1f}',
            ]
        )
    shown = [row for row in _rows('operator.md', '') if TIMES in row[0] and len(row) == len(expected[0])]
    assert shown == expected


def test_sparsity_page_has_the_tables_of_the_benchmarks() -> None:
    page = (ROOT / 'docs' / 'sparsity.md').read_text()
    for name, key in (('sparsity_accuracy', 'results'), ('sparsity_speed', 'runs')):
        assert load_tool(ROOT / 'benchmarks' / f'{name}.py').make_table(_read(name)[key]).markdown() in page


def test_inflation_page_has_the_table_of_the_benchmark() -> None:
    results = _read('inflation')
    table = load_tool(ROOT / 'benchmarks' / 'inflation.py').make_table(results['variants'], results['iterations'])
    assert table.markdown() in (ROOT / 'docs' / 'inflation.md').read_text()


def test_front_page_has_the_figures_of_the_benchmark() -> None:
    case = next(
        case for case in _read('peripheral_conv_cpu_float32')['cases'] if case['case'][:5] == [1, 46, 128, 512, 51]
    )
    methods = case['methods']
    page = (ROOT / 'README.md').read_text()
    for name in ('mmpelk', 'conv2d channels last', 'conv2d'):
        assert _time(methods[name]['forward_ms']) in page
