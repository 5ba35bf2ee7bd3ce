"""Our backbone in somebody else's project: nothing of mmengine's, and nothing global, is changed by it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmpelk.models import PeLK
from tests.paths import ROOT

BARE = """
import json, logging, signal, sys, threading
import torch
from mmengine import registry
from mmengine.analysis import complexity_analysis
from mmengine.fileio.backends import registry_utils
from mmengine.hooks import CheckpointHook
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_local
import mmseg.models
from mmseg.registry import MODELS

def name(value):
    return f'{getattr(value, "__module__", "")}.{getattr(value, "__qualname__", value)}'

def everything():
    registries = {key: value for key, value in vars(registry).items() if hasattr(value, '_module_dict')}
    tables = {f'registry {key}': value._module_dict for key, value in registries.items()}
    tables['FLOPs'] = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    tables['activations'] = complexity_analysis._DEFAULT_SUPPORTED_ACT_OPS
    tables['loaders'] = CheckpointLoader._schemes
    tables['file backends'] = registry_utils.backends
    tables['prefixes'] = registry_utils.prefix_to_backends
    found = {key: {str(entry): name(value) for entry, value in table.items()} for key, table in tables.items()}
    found['methods'] = {
        f'{owner.__name__}.{key}': name(value)
        for owner in (CheckpointHook, CheckpointLoader, torch.nn.Module, torch.nn.Conv2d, torch.utils.data.DataLoader)
        for key, value in vars(owner).items()
    }
    found['functions'] = {key: name(getattr(torch, key)) for key in ('load', 'save', 'manual_seed')}
    found['settings'] = dict(
        threads=torch.get_num_threads(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        dtype=str(torch.get_default_dtype()),
        grad=torch.is_grad_enabled(),
        logging=logging.getLogger().level,
        handlers=len(logging.getLogger().handlers),
        signals=[str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
        hook=name(sys.excepthook),
        started=threading.active_count(),
    )
    return found

def own(path, map_location=None):
    return load_from_local(path, map_location)

CheckpointLoader.register_scheme('', own, force=True)  # the user's
before = everything()
import mmpelk.analysis, mmpelk.engine, mmpelk.models
imported = everything()
arch = dict(depths=(1, 1), channels=(8, 12), kernel_sizes=(13, 11))
head = dict(type='FCNHead', in_channels=12, channels=4, in_index=1, num_classes=2, norm_cfg=dict(type='BN'))
for init_cfg in (None, dict(type='Pretrained', checkpoint=sys.argv[2])):
    backbone = dict(type='mmpelk.PeLK', arch=arch, out_indices=(0, 1), gap_before_final_norm=False, init_cfg=init_cfg)
    model = MODELS.build(dict(type='EncoderDecoder', backbone=backbone, decode_head=head, test_cfg=dict(mode='whole')))
    model.init_weights()
    model(torch.rand(1, 3, 32, 32), mode='tensor')
built = everything()

def changed(before, after):
    return [
        f'{table} {key}'
        for table in after
        for key in before[table].keys() | after[table].keys()
        if before[table].get(key) != after[table].get(key)
    ]

json.dump([changed(before, imported), changed(imported, built)], open(sys.argv[1], 'w'))
"""


@pytest.mark.slow
def test_a_bare_project_is_as_before(tmp_path: Path) -> None:
    """Registries, loaders (one of them the user's), file backends, methods, settings, signals, threads."""
    pytest.importorskip('mmseg')
    weights, report = tmp_path / 'weights.pth', tmp_path / 'changed.json'
    torch.save(PeLK(dict(depths=(1, 1), channels=(8, 12), kernel_sizes=(13, 11))).state_dict(), weights)
    words = [sys.executable, '-c', BARE, str(report), str(weights)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    by_import, by_building = json.loads(report.read_text())
    assert by_import == []
    # What the toolboxes' get_flops.py counts.
    assert sorted(by_building) == ['FLOPs mmpelk::peripheral_conv2d', 'activations mmpelk::peripheral_conv2d']
