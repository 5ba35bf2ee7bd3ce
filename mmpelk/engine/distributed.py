"""Training on a machine without a GPU with the launchers and the recipes that are written for GPUs.

mmengine's ``init_dist`` sets a CUDA device with every backend, its default wrapper passes ``device_ids``, its AMP
wrapper asks for a GPU, and ``SyncBN`` runs on GPUs only. :func:`adapt_to_machine` changes these four, and nothing else.
"""

import os
import subprocess
from datetime import timedelta
from typing import Any

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn

from mmpelk.registry import MODEL_WRAPPERS

# Variables in which each launcher gives a process its rank, the number of processes, and its rank on its machine.
_RANK_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """``MMDistributedDataParallel`` for models on the CPU.

    ``SyncBN`` becomes ``BN``. Each process then has its own batch statistics, so rank 0's running statistics are
    broadcast before every training step: all processes hold the same ones, up to the last step's update.

    Args:
        module: The model.
        device_ids: What mmengine passes to every wrapper; a CPU model has none, so it is not used.
        **kwargs: Those of ``MMDistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, device_ids: object = None, **kwargs: Any) -> None:
        if any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()):
            print_log('SyncBN runs on GPUs only: BN takes its place, with statistics per process', 'current')
        super().__init__(revert_sync_batchnorm(module), broadcast_buffers=True, **kwargs)


def adapt_to_machine(cfg: Config) -> None:
    """Make a config run on the machine at hand. With a GPU nothing changes.

    Without one, ``AmpOptimWrapper`` becomes ``OptimWrapper`` (float32); with a launcher, the process group is started
    with gloo and the model is wrapped by :class:`CPUDistributedDataParallel`.

    Args:
        cfg: A config whose ``launcher`` is set; changed in place, as mmengine's own tools do.
    """
    if get_device() != 'cpu':
        return
    _train_in_float32(cfg)
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    cfg.model_wrapper_cfg = dict(
        type='mmpelk.CPUDistributedDataParallel', find_unused_parameters=cfg.get('find_unused_parameters', False)
    )
    # The runner leaves an existing process group alone.
    if not torch.distributed.is_initialized():
        _start_gloo(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout'))


def _train_in_float32(cfg: Config) -> None:
    wrapper = cfg.get('optim_wrapper') or {}
    # A name in text configs, a class in pure-Python ones.
    kind = wrapper.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    if name.rpartition('.')[-1] == 'AmpOptimWrapper':
        print_log('AMP needs a GPU: training in float32', 'current')
        wrapper['type'] = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)


def _start_gloo(launcher: str, timeout: float | None) -> None:
    rank, world_size, local_rank = (os.environ[variable] for variable in _RANK_VARIABLES[launcher])
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=local_rank)
    os.environ.setdefault('MASTER_PORT', '29500')
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        nodes = subprocess.check_output(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], text=True)
        os.environ['MASTER_ADDR'] = nodes.split()[0]
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout) if timeout else None)
