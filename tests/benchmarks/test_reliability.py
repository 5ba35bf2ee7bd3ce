"""The benchmark of the hooks runs; no timing is judged."""

import json
from pathlib import Path

import pytest

from tests.commands import call
from tests.paths import ROOT


@pytest.mark.slow
def test_it_measures_steps_and_checkpoints(tmp_path: Path) -> None:
    words = ['--arch', 'convnext-tiny', '--size', 32, '--batch', 2, '--pairs', 2, '--out', 'results.json']
    printed = call(ROOT / 'benchmarks' / 'reliability.py', *words, '--folder', tmp_path, cwd=tmp_path)
    assert 'training step' in printed
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['setting']['checkpoint_bytes'] > 3e8  # weights, and two moments of each
    assert all(row['ours'] > 0 and row['without'] > 0 for row in results['rows'].values())
