"""The results file of whole backbones; nothing is timed."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import backbone


def test_a_setting_replaces_its_own_figures_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backbone, 'RESULTS', tmp_path)
    names = ('PeLK-T', 'PeLK-101-T', backbone.DENSE, backbone.CEILING, 'SLaK-T', 'ConvNeXt-T')
    for speed, batch in enumerate((4, 1, 4), start=1):
        monkeypatch.setattr(
            backbone, 'measure', lambda *_, s=speed: {name: dict(images_per_second=s) for name in names}
        )
        monkeypatch.setattr(sys, 'argv', ['', '--device', 'cpu', '--batch', str(batch), '--size', '224'])
        backbone.main()
    runs = json.loads((tmp_path / 'backbone_cpu_float32.json').read_text())['runs']
    found = {(run['batch'], run['step']): run['models']['PeLK-T']['images_per_second'] for run in runs}
    assert found == {(batch, step): speed for batch, speed in ((1, 2), (4, 3)) for step in backbone.STEPS}
    assert len(runs) == 4
