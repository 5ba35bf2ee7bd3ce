"""Adapting a config to a machine without a GPU; real training with two processes is in ``tests/tools``."""

import os
import subprocess
from datetime import timedelta

import pytest
import torch
import torch.distributed
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from torch import nn

from mmpelk.engine import CPUDistributedDataParallel, adapt_to_machine, distributed
from mmpelk.fault_tolerance.networks import unwrap_model
from mmpelk.registry import MODEL_WRAPPERS

# In which each launcher says the rank, the number of processes, and the rank on the machine.
VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def amp_config(kind: object = 'AmpOptimWrapper', launcher: str = 'none') -> Config:
    wrapper = dict(type=kind, loss_scale='dynamic', dtype='float16', use_fsdp=False, optimizer=dict(type='SGD', lr=0.1))
    return Config(dict(launcher=launcher, optim_wrapper=wrapper))


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper], ids=str)
def test_amp_becomes_float32(kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    cfg = amp_config(kind)
    adapt_to_machine(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    assert 'model_wrapper_cfg' not in cfg


def test_nothing_changes_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    cfg = amp_config(launcher='pytorch')
    adapt_to_machine(cfg)
    assert cfg.to_dict() == amp_config(launcher='pytorch').to_dict()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_each_launcher_starts_gloo(launcher: str, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(os, 'environ', {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port)})
    os.environ.update(zip(VARIABLES[launcher], ('0', '1', '0'), strict=True))
    cfg = amp_config(launcher=launcher)
    try:
        adapt_to_machine(cfg)
        assert torch.distributed.get_backend() == 'gloo'
    finally:
        torch.distributed.destroy_process_group()
    assert os.environ['LOCAL_RANK'] == '0'
    assert MODEL_WRAPPERS.get(cfg.model_wrapper_cfg.type) is CPUDistributedDataParallel


def test_a_process_group_that_is_there_stays(one_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    group, cfg = torch.distributed.group.WORLD, Config(dict(launcher='pytorch'))  # without an optimizer, as of a test
    adapt_to_machine(cfg)
    assert torch.distributed.group.WORLD is group
    assert cfg.model_wrapper_cfg.type == 'mmpelk.CPUDistributedDataParallel'


@pytest.mark.parametrize('launcher', VARIABLES)
def test_settings_reach_process_group_and_wrapper(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, object] = {}
    given = dict(zip(VARIABLES[launcher], ('5', '8', '1'), strict=True))
    given |= dict(SLURM_NODELIST='node[7-8]') if launcher == 'slurm' else dict(MASTER_ADDR='node7', MASTER_PORT='1234')
    monkeypatch.setattr(os, 'environ', dict(given))
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, **words: started.update(words))
    names = {'node[7-8]': 'node7\nnode8\n'}
    monkeypatch.setattr(subprocess, 'check_output', lambda command, **_: names[command[-1]])
    cfg = amp_config(launcher=launcher)
    adapt_to_machine(cfg)
    assert not cfg.model_wrapper_cfg.find_unused_parameters
    assert started == dict(timeout=None)
    cfg.update(find_unused_parameters=True, env_cfg=dict(dist_cfg=dict(timeout=77)))
    adapt_to_machine(cfg)
    assert cfg.model_wrapper_cfg.find_unused_parameters
    assert started == dict(timeout=timedelta(seconds=77))
    port = '29500' if launcher == 'slurm' else '1234'
    wanted = dict(RANK='5', WORLD_SIZE='8', LOCAL_RANK='1', MASTER_ADDR='node7', MASTER_PORT=port)
    assert os.environ == given | wanted


def test_wrapper_replaces_sync_bn(one_process: None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    # mmengine gives every wrapper the local rank as device_ids.
    options = dict(find_unused_parameters=True)
    wrapped = MODEL_WRAPPERS.build(
        dict(type='mmpelk.CPUDistributedDataParallel', module=model, device_ids=[0], **options)
    )
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in wrapped.modules())
    wrapped(torch.rand(2, 3, 4, 4)).sum().backward()
    assert wrapped.module[0].weight.grad is not None
    assert wrapped.find_unused_parameters
    assert unwrap_model(wrapped) is wrapped.module
    assert wrapped.broadcast_buffers, 'running statistics of the first process, before every step'
