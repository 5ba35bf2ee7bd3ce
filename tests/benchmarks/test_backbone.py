"""The results file of whole backbones; nothing is timed."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import backbone
from benchmarks.ceiling import without_mixer
from mmpelk.models import PeLK


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


def test_figures_are_those_of_the_faster_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the ceiling in its own; what takes minutes has one layout, and what takes seconds no peak."""

    def medians(calls: dict[tuple[str, str], Callable[[], None]], device: str, rounds: int) -> dict[tuple, float]:
        assert rounds == backbone.ROUNDS
        return {key: taken[key[0]] * (2 if key[1] == slower[key[0]] else 1) for key in calls}

    names = ('PeLK-T', backbone.CEILING, backbone.DENSE)
    taken = dict(zip(names, (4.0, 2.0, 50.0), strict=True))
    slower = dict(zip(names, ('channels last', 'channels first', 'channels first'), strict=True))
    networks = {name: (nn.Conv2d(3, 2, 1), 'dense' if name == backbone.DENSE else None) for name in names}
    monkeypatch.setattr(backbone, 'models', lambda device, deploy: networks)
    monkeypatch.setattr(backbone, 'interleaved_medians', medians)
    monkeypatch.setattr(backbone, 'peak_memory', lambda call, device: 5)
    found = backbone.measure(backbone.inference, Namespace(dtype='float32', device='cpu'), 8, 32)
    for row in found.values():
        assert row.pop('dispatched_operators') > 0
    assert found == {
        'PeLK-T': dict(layout='channels first', images_per_second=2, share_of_ceiling=0.5, peak_memory=5),
        backbone.CEILING: dict(layout='channels last', images_per_second=4, share_of_ceiling=1, peak_memory=5),
        backbone.DENSE: dict(layout='channels last', images_per_second=0.16, share_of_ceiling=0.04, peak_memory=None),
    }


def test_views_are_no_operators() -> None:
    x = torch.ones(2, 3)
    assert backbone.dispatched_operators(lambda: (x.mT.mT + 1).view(6)[1:] * 2) == 2


def test_the_ceiling_has_neither_mixers_nor_embeddings() -> None:
    arch = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7))
    ceiling = without_mixer(PeLK(arch, positional_embedding='in_bounds'))
    left = [name for name, _ in ceiling.named_parameters() if 'mixer' in name or 'embedding' in name]
    assert not left
    assert all(stage.positional_embedding is None for stage in ceiling.stages)
