"""docs/reproduction.md is what computations and results files give, and its figures say where they come from."""

import re
import sys

import pytest

from tests.paths import ROOT, TOOLS

sys.path.insert(0, str(TOOLS / 'analysis'))  # as when its scripts are run
import cells

MACHINE = dict(device='a CPU', threads=2, torch='2.11', python='3.11', date='2026-01-01')


def page() -> str:
    return (ROOT / 'docs' / 'reproduction.md').read_text()


def test_page_is_what_the_data_gives() -> None:
    pytest.importorskip('mmseg')
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    import report

    assert report.render() == page(), 'make report writes the page anew'


def test_pictures_of_the_page_exist() -> None:
    pictures = re.findall(r'!\[[^\]]+\]\(([^)]+)\)', page())
    assert len(pictures) > 5
    assert [picture for picture in pictures if not (ROOT / 'docs' / picture).is_file()] == []


def test_links_within_the_page_have_targets() -> None:
    headings = re.findall(r'^#+ (.+)$', page(), re.MULTILINE)
    anchors = {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}
    assert set(re.findall(r'\]\(#([^)]+)\)', page())) <= anchors


def test_commands_of_the_page_exist() -> None:
    scripts = set(re.findall(r'(?:tools|benchmarks)/[\w/]+\.(?:py|sh)', page()))
    assert len(scripts) > 8
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []


def test_no_decimal_figure_is_without_a_mark() -> None:
    shown = [
        cell.strip() for line in page().splitlines() if line.startswith('|') for cell in line.strip('|').split('|')
    ]
    marks = r'\((p|c|target|m\d+|by hand)\)'
    figures = [cell for cell in shown if re.search(r'\d\.\d', cell) and not re.search(marks, cell)]
    # Deviations follow from two marked cells; a precision's name and versions are no figures.
    assert [cell for cell in figures if not re.fullmatch(r'(\*\*)?[+-]?\d+\.\d %(\*\*)?|[\w.+]+', cell)] == []
    assert [cell for cell in figures if re.fullmatch(r'\d+\.\d+', cell)] == []


def test_deviations() -> None:
    assert cells.deviation(101, 100) == '**+1.0 %**'
    assert cells.deviation(99.5, 100) == '-0.5 %'
    assert cells.deviation(99.99, 100) == '0.0 %'
    assert cells.deviation(28.4, 28, 0) == '+1.4 %', 'rounds to the printed figure'
    assert cells.deviation(28.6, 28, 0) == '**+2.1 %**'
    assert cells.deviation(None, 100) == cells.deviation(1, None) == '-'


def test_runs_are_numbered_as_they_appear() -> None:
    runs = cells.Runs()
    assert runs.measured(1.25, MACHINE, 'first', 2) == '1.25 (m1)'
    assert runs.measured(2.0, MACHINE, 'second', spread=0.5) == '2.0 ± 0.5 (m2)'
    assert runs.measured('3 px', MACHINE, 'first') == '3 px (m1)'
    assert runs.measured(None, MACHINE, 'third') == '-'
    assert [line.split('|')[1].strip() for line in runs.listing().splitlines()] == ['run', '---', 'm1', 'm2']


def test_table_refuses_rows_of_another_length() -> None:
    assert cells.table(['a', 'b'], [['1', 'x|y']]).splitlines()[2] == r'| 1 | x\|y |'
    with pytest.raises(ValueError, match='2 columns, but a row of 1'):
        cells.table(['a', 'b'], [['1']])


def test_steps_of_the_report_are_in_the_template() -> None:
    import report

    template = report.TEMPLATE.read_text()
    assert [step.name for step in report.STEPS if f'${{{step.name}}}' not in template] == []
