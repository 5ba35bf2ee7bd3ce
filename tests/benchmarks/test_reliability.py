"""The benchmark of the hooks runs; no timing is judged."""

import json
from pathlib import Path

import pytest

from mmpelk.models import ARCHITECTURES, PeLK
from tests.commands import call
from tests.paths import ROOT

NANO = dict(depths=(1, 1), channels=(64, 128), kernel_sizes=(13, 9), center_size=5)


@pytest.mark.slow
def test_it_measures_steps_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, 'nano', NANO)
    words = ['--arch', 'nano', '--size', 32, '--batch', 2, '--pairs', 2, '--out', 'results.json']
    printed = call(ROOT / 'benchmarks' / 'reliability.py', *words, '--folder', tmp_path, cwd=tmp_path)
    assert 'training step' in printed
    results = json.loads((tmp_path / 'results.json').read_text())
    weights = sum(4 * parameter.numel() for parameter in PeLK('nano').parameters())
    assert results['setting']['checkpoint_bytes'] > 3 * weights, 'and two moments of each'
    assert all(row['ours'] > 0 and row['without'] > 0 for row in results['rows'].values())
