"""Figures in hand-written pages are those of the result files that the pages name."""

import json
from typing import Any

from reproduction.paper import TABLES
from tests.commands import load_tool
from tests.paths import ROOT

RESULTS = ROOT / 'benchmarks' / 'results'


def _read(name: str) -> Any:
    return json.loads((RESULTS / f'{name}.json').read_text())


def _time(milliseconds: float) -> str:
    return f'{milliseconds / 1e3:.1f} s' if milliseconds >= 1e3 else f'{milliseconds:.1f} ms'


def test_operator_page_has_the_figures_of_the_benchmark() -> None:
    cases = _read('peripheral_conv_cpu_float32')['cases']
    table = load_tool(ROOT / 'benchmarks' / 'peripheral_conv.py').make_table(cases)
    page = (ROOT / 'docs' / 'operator.md').read_text()
    assert table.markdown() in page
    ratios = [
        case['methods']['matrix dft']['error'] / case['methods']['mmpelk channels last']['error'] for case in cases
    ]
    assert f'is {min(ratios):.0f} to {max(ratios):.0f} times that of ours' in page
    networks = load_tool(ROOT / 'benchmarks' / 'backbone.py').make_table(_read('backbone_cpu_float32')['runs'])
    assert networks.markdown() in page


def test_sparsity_page_has_the_tables_of_the_benchmarks() -> None:
    page = (ROOT / 'docs' / 'sparsity.md').read_text()
    for name, key in (('sparsity_accuracy', 'results'), ('sparsity_speed', 'runs')):
        assert load_tool(ROOT / 'benchmarks' / f'{name}.py').make_table(_read(name)[key]).markdown() in page


def test_inflation_page_has_the_table_of_the_benchmark() -> None:
    results = _read('inflation')
    table = load_tool(ROOT / 'benchmarks' / 'inflation.py').make_table(results['variants'], results['iterations'])
    assert table.markdown() in (ROOT / 'docs' / 'inflation.md').read_text()


def test_deployment_page_has_the_tables_of_the_benchmark() -> None:
    script, results = load_tool(ROOT / 'benchmarks' / 'runtimes.py'), _read('runtimes')['networks']
    page = (ROOT / 'docs' / 'deployment.md').read_text()
    for table in script.PAGE_TABLES:
        assert table(list(results.values())).markdown() in page
    for network in results.values():
        assert set().union(*network['operators'].values()) <= script.TENSORRT
        for runtime in network.get('parity', {}).values():
            assert runtime['difference'] <= 1e-4
            assert runtime['same_labels'] >= 0.9999


def test_reliability_page_has_the_table_of_the_benchmark() -> None:
    table = load_tool(ROOT / 'benchmarks' / 'reliability.py').make_table(_read('reliability_cpu'))
    assert table.markdown() in (ROOT / 'docs' / 'reliability.md').read_text()


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
