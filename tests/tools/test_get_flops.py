"""The command that counts: what it prints and writes."""

import json
from pathlib import Path

import pytest
import torch

from mmpelk.models import PeLK
from tests.commands import call
from tests.paths import TOOLS

NANO = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7))


@pytest.mark.parametrize('options', [['--density', 0.5], ['--checkpoint', 'nano.pth']], ids=lambda options: options[0])
def test_writes_what_it_counts(tmp_path: Path, options: list[object]) -> None:
    config = tmp_path / 'nano.py'
    config.write_text(f"model = dict(type='mmpelk.PeLK', arch={NANO!r}, norm_cfg=dict(type='BN'))\n")
    torch.save(dict(state_dict=PeLK(NANO).state_dict()), tmp_path / 'nano.pth')
    printed = call(TOOLS / 'get_flops.py', config, '--shape', 64, 48, '--json', 'flops.json', *options, cwd=tmp_path)
    report = json.loads((tmp_path / 'flops.json').read_text())
    assert 'large_kernels' in printed
    assert 'chosen on a CPU' in printed
    for key in ('params', 'params_sparse', 'flops', 'flops_sparse'):
        assert report[key] == sum(component[key] for component in report['components'])
    factor = 0.5 if '--density' in options else 1
    assert report['flops_sparse'] == pytest.approx(factor * report['flops'], abs=10)
