"""Figures in hand-written pages are those of the result files that the pages name."""

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from reproduction.paper import TABLES
from tests.commands import load_tool
from tests.paths import ROOT

RESULTS = ROOT / 'benchmarks' / 'results'


def _read(name: str) -> Any:
    return json.loads((RESULTS / f'{name}.json').read_text())


def _page(name: str) -> str:
    return (ROOT / 'docs' / f'{name}.md').read_text()


def _script(name: str) -> ModuleType:
    return load_tool(ROOT / 'benchmarks' / f'{name}.py')


def _time(milliseconds: float) -> str:
    return f'{milliseconds / 1e3:.1f} s' if milliseconds >= 1e3 else f'{milliseconds:.1f} ms'


# Page, script, its results, and what of them its table takes.
TABLES_OF_PAGES: list[tuple[str, str, str, Callable[[Any], tuple[Any, ...]]]] = [
    ('operator', 'peripheral_conv', 'peripheral_conv_cpu_float32', lambda results: (results['cases'],)),
    ('operator', 'backbone', 'backbone_cpu_float32', lambda results: (results['runs'],)),
    ('sparsity', 'sparsity_accuracy', 'sparsity_accuracy', lambda results: (results['results'],)),
    ('sparsity', 'sparsity_speed', 'sparsity_speed', lambda results: (results['runs'],)),
    ('inflation', 'inflation', 'inflation', lambda results: (results['variants'], results['iterations'])),
    ('reliability', 'reliability', 'reliability_cpu', lambda results: (results,)),
]


@pytest.mark.parametrize(('page', 'script', 'results', 'of_table'), TABLES_OF_PAGES)
def test_page_has_the_table_of_the_benchmark(page: str, script: str, results: str, of_table: Callable) -> None:
    assert _script(script).make_table(*of_table(_read(results))).markdown() in _page(page)


def test_operator_page_has_the_ratios_of_the_errors() -> None:
    methods = [case['methods'] for case in _read('peripheral_conv_cpu_float32')['cases']]
    ratios = [each['matrix dft']['error'] / each['mmpelk channels last']['error'] for each in methods]
    assert f'is {min(ratios):.0f} to {max(ratios):.0f} times that of ours' in _page('operator')


def test_deployment_page_has_the_tables_of_the_benchmark() -> None:
    script, results = _script('runtimes'), _read('runtimes')['networks']
    for table in script.PAGE_TABLES:
        assert table(list(results.values())).markdown() in _page('deployment')
    for network in results.values():
        assert set().union(*network['operators'].values()) <= script.TENSORRT
        for runtime in network.get('parity', {}).values():
            assert runtime['difference'] <= 1e-4
            assert runtime['same_labels'] >= 0.9999


def test_front_page_has_the_figures_of_the_benchmark() -> None:
    case = next(
        case for case in _read('peripheral_conv_cpu_float32')['cases'] if case['case'][:5] == [1, 46, 128, 512, 51]
    )
    methods = case['methods']
    page = (ROOT / 'README.md').read_text()
    for name in ('mmpelk', 'mmpelk channels last', 'conv2d channels last', 'conv2d'):
        assert _time(methods[name]['forward_ms']) in page


def test_front_page_has_the_targets_of_the_paper() -> None:
    """One table for Tables 2 to 4: a row for a metric and an image size, a column for a network."""
    lines = [line for line in (ROOT / 'README.md').read_text().splitlines() if line.startswith('|')]
    shown = {cells[0]: cells[1:] for line in lines for cells in [[cell.strip() for cell in line.strip('|').split('|')]]}
    methods = shown['']  # the heading of the last table
    rows = {'ImageNet-1K top-1, 224²': (4, 'top1', 224), 'ImageNet-1K top-1, 384²': (4, 'top1', 384)}
    rows |= {'ADE20K mIoU, UperNet': (2, 'mIoU', 512)}
    rows |= {f'COCO {part} AP, Cascade Mask R-CNN': (3, f'AP_{part}', 800) for part in ('box', 'mask')}
    for label, (number, metric, height) in rows.items():
        printed = {row.method: row.scores[metric] for row in TABLES[number] if row.input_size[0] == height}
        assert shown[label] == [str(printed.get(method, '-')) for method in methods], label
