"""Two-process training with gloo through the launchers, stopped, resumed and tested: what runs on eight GPUs."""

import os
import re
import shutil
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mmpelk.fault_tolerance.preemption import PREEMPTED
from mmpelk.fault_tolerance.safe_loading import check_integrity
from tests.commands import call, run
from tests.paths import CONFIGS, TOOLS
from tests.tools.test_signals import Command

pytestmark = pytest.mark.slow

# Registers a hook that stores what each rank trained on, and its parameters after every iteration.
HOOK = """
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StoreRank(Hook):
    seen, statistics = [], []

    def before_train(self, runner):
        network = runner.model.module
        self.start = {name: value.clone() for name, value in network.named_parameters()}
        means = [value for name, value in network.named_buffers() if name.endswith('running_mean')]

        def look(module, inputs):
            if module.training:
                self.statistics.append(torch.cat(means))

        network.register_forward_pre_hook(look)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(sorted(sample.img_path for sample in data_batch['data_samples']))
        end = dict(runner.model.module.named_parameters())
        found = dict(start=self.start, end=end, seen=self.seen, statistics=self.statistics)
        torch.save(found, f'rank{get_rank()}.pth')
"""


@pytest.fixture(scope='module')
def config(tiny_config: Path) -> Path:
    folder = tiny_config.parent
    (folder / 'store_rank.py').write_text(HOOK)
    config = folder / 'two_ranks.py'
    config.write_text(
        f"_base_ = './{tiny_config.name}'\ncustom_hooks = [dict(type='StoreRank')]\n"
        "custom_imports = dict(imports=['store_rank'], allow_failed_imports=False)\n"
    )
    return config


@pytest.fixture(scope='module')
def trained(config: Path) -> tuple[Path, str]:
    """Work folder and log of a training on two ranks that a signal stopped; test_exact_resume.py resumes one."""
    folder = config.parent
    endless = ['--work-dir', 'work', '--cfg-options', 'train_cfg.max_iters=4000', 'train_cfg.val_interval=4000']
    command = Command(TOOLS / 'dist_train.sh', config, 2, *endless, folder=folder, PYTHONPATH=folder)
    command.wait_for((folder / 'work' / 'iter_2.pth').exists)
    command.process.send_signal(signal.SIGUSR1)
    assert command.end() == PREEMPTED, command.log.read_text()[-3000:]
    printed = command.log.read_text()
    stopped = int(re.findall(r'Stopped by SIGUSR1 after iteration (\d+)', printed)[-1])
    assert '--resume goes on from there' in printed
    assert 'Traceback' not in printed
    last = newest(folder / 'work')
    assert last.name == f'iter_{stopped}.pth'
    check_integrity(last)
    return folder / 'work', printed


def newest(work: Path) -> Path:
    return work.parent / (work / 'last_checkpoint').read_text()


def test_both_ranks_end_with_the_same_parameters(trained: tuple[Path, str]) -> None:
    folder, log = trained[0].parent, trained[1]
    if not torch.cuda.is_available():
        assert 'AMP needs a GPU: training in float32' in log
        assert 'SyncBN runs on GPUs only' in log
    first, second = (torch.load(folder / f'rank{rank}.pth') for rank in (0, 1))
    assert first['seen'] != second['seen'], 'each rank trains on images of its own'
    moved = 0
    for name, value in first['end'].items():
        # Equal to the bit: both apply the same averaged gradient to the same start.
        assert torch.equal(first['start'][name], second['start'][name]), name
        assert torch.equal(value, second['end'][name]), name
        moved += not torch.equal(value, first['start'][name])
    assert moved > 0.9 * len(first['end'])
    # Without SyncBN each rank has its own statistics; rank 0's are broadcast before every step.
    assert len(first['statistics']) == len(first['seen']) > 1
    torch.testing.assert_close(first['statistics'], second['statistics'], rtol=0, atol=0)
    assert not torch.equal(first['statistics'][0], first['statistics'][1])


def test_two_machines_measure_what_one_process_measures(
    trained: tuple[Path, str], tiny_config: Path, free_port: int
) -> None:
    folder, checkpoint = tiny_config.parent, newest(trained[0])

    def machine(rank: int) -> str:
        variables = dict(NNODES=2, NODE_RANK=rank, MASTER_ADDR='127.0.0.1', PORT=free_port)
        return run(TOOLS / 'dist_test.sh', tiny_config, checkpoint, 1, '--work-dir', 'test2', cwd=folder, **variables)

    with ThreadPoolExecutor() as pool:
        two = ''.join(pool.map(machine, (0, 1)))
    options = ['--work-dir', 'test1', '--out', 'labels', '--show-dir', 'painted']
    one = call(TOOLS / 'test.py', tiny_config, checkpoint, *options, cwd=folder)
    measured = re.findall(r'aAcc: [\d.]+  mIoU: [\d.]+', one)
    assert len(measured) == 1
    # Rank 0 alone reports.
    assert re.findall(r'aAcc: [\d.]+  mIoU: [\d.]+', two) == measured
    assert len(list((folder / 'labels').glob('*.png'))) == 2
    assert len(list(folder.glob('test1/*/painted/**/*.png')) or list(folder.glob('painted/**/*.png'))) == 2
    options = ['--tta', '--out', 'predictions.pkl', '--work-dir', 'tta']
    assert 'mIoU' in call(TOOLS / 'test.py', tiny_config, checkpoint, *options, cwd=folder)
    assert (folder / 'predictions.pkl').stat().st_size > 0


SRUN = """#!/bin/sh
# Slurm's srun, as far as this test needs it: all tasks on this machine.
echo "$@" > srun_arguments
while [ "$1" != "$PYTHON" ]; do [ "$1" = --ntasks ] && tasks=$2; shift; done
export SLURM_NTASKS=$tasks SLURM_NODELIST=node
for task in $(seq $((tasks - 1))); do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
"""


def test_slurm(trained: tuple[Path, str], tiny_config: Path, tmp_path: Path, free_port: int) -> None:
    for name, text in (('srun', SRUN), ('scontrol', '#!/bin/sh\necho 127.0.0.1\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    variables = dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS=2, GRES='', PORT=free_port, SRUN_ARGS='--time 1')
    checkpoint = newest(trained[0])
    command = [TOOLS / 'slurm_test.sh', 'short', 'a job', tiny_config, checkpoint, '--work-dir', tmp_path / 'work dir']
    log = run(*command, cwd=tmp_path, **variables)
    assert 'mIoU' in log
    given = (tmp_path / 'srun_arguments').read_text()
    assert '--partition short --job-name a job --ntasks 2 --ntasks-per-node 2 --cpus-per-task 5' in given
    assert '--time 1' in given
    assert list((tmp_path / 'work dir').glob('*/*.json'))


PRINT = '#!/bin/sh\necho "$OMP_NUM_THREADS $MASTER_PORT: $@"\n'
SLURM = '--kill-on-bad-exit=1 PYTHON -u TOOLS/train.py a.py --launcher slurm --work-dir w'
RUN = 'TOOLS/train.py a.py --launcher pytorch --work-dir w'
# What is set, and what the launcher starts; the numbers in front are those of threads and of the port.
STARTED: dict[str, tuple[dict[str, object], str]] = {
    'a node of Slurm': (
        {},
        f'4 29500: --partition p --job-name j --gres gpu:8 --ntasks 8 --ntasks-per-node 8 --cpus-per-task 5 {SLURM}',
    ),
    'a part of a node': (
        dict(GPUS=2, CPUS_PER_TASK=3, PORT=7),
        f'4 7: --partition p --job-name j --gres gpu:2 --ntasks 2 --ntasks-per-node 2 --cpus-per-task 3 {SLURM}',
    ),
    'two nodes': (
        dict(GPUS=16),
        f'4 29500: --partition p --job-name j --gres gpu:8 --ntasks 16 --ntasks-per-node 8 --cpus-per-task 5 {SLURM}',
    ),
    'four nodes, restarted': (
        dict(GPUS=16, GPUS_PER_NODE=4, SLURM_RESTART_COUNT=1),
        '4 29500: --partition p --job-name j --gres gpu:4 --ntasks 16 --ntasks-per-node 4 --cpus-per-task 5 '
        f'{SLURM} --resume',
    ),
    'this machine': ({}, f'4 : TOOLS/torchrun.py --standalone --nproc-per-node 2 {RUN}'),
    'a port of this machine': (
        dict(PORT=7),
        '4 : TOOLS/torchrun.py --nnodes 1 --node-rank 0 --master-addr 127.0.0.1 --master-port 7 --nproc-per-node 2 '
        f'{RUN}',
    ),
    'the second of two machines': (
        dict(NNODES=2, NODE_RANK=1, MASTER_ADDR='host'),
        '4 : TOOLS/torchrun.py --nnodes 2 --node-rank 1 --master-addr host --master-port 29500 --nproc-per-node 2 '
        f'{RUN}',
    ),
}


@pytest.mark.parametrize(('variables', 'expected'), STARTED.values(), ids=STARTED)
def test_what_the_launchers_start(variables: dict[str, object], expected: str, tmp_path: Path) -> None:
    for name in ('srun', 'python'):
        (tmp_path / name).write_text(PRINT)
        (tmp_path / name).chmod(stat.S_IRWXU)
    environment = dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', PYTHON=tmp_path / 'python', OMP_NUM_THREADS=4)
    words = ['slurm_train.sh', 'p', 'j', 'a.py'] if 'partition' in expected else ['dist_train.sh', 'a.py', 2]
    printed = run(TOOLS / words[0], *words[1:], '--work-dir', 'w', cwd=tmp_path, **environment, **variables)
    assert printed.strip().replace(str(tmp_path / 'python'), 'PYTHON').replace(str(TOOLS), 'TOOLS') == expected


@pytest.mark.parametrize(('cores', 'processes', 'gpu', 'given', 'threads'), [
    *((8, 2, False, None, '4'), (8, 3, False, None, '2'), (2, 8, False, None, '1'), (8, 8, False, None, '1')),
    *((8, 2, False, 3, '3'), (8, 2, True, None, '')),
])  # fmt: skip
def test_processes_without_gpus_share_the_cores(
    cores: int, processes: int, gpu: bool, given: int | None, threads: str, tmp_path: Path
) -> None:
    """With GPUs torchrun says how many threads each has; what the user says counts."""
    for name, text in (('python', PRINT), ('nproc', f'#!/bin/sh\necho {cores}\n'), ('nvidia-smi', '#!/bin/sh\n')):
        if gpu or name != 'nvidia-smi':
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(stat.S_IRWXU)
    for name in ('bash', 'dirname', 'env'):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / 'sh').symlink_to('/bin/sh')
    environment = dict(PATH=tmp_path, PYTHON=tmp_path / 'python', OMP_NUM_THREADS='' if given is None else given)
    printed = run(TOOLS / 'dist_train.sh', 'a.py', processes, cwd=tmp_path, **environment)
    assert printed.startswith(f'{threads} :')


def test_mistakes_under_the_launcher_are_told_once(tmp_path: Path) -> None:
    printed = run(TOOLS / 'dist_train.sh', CONFIGS / 'seg/upernet_pelk_t_ade20k.py', 2, cwd=tmp_path, code=1)
    assert "the pretrained weights 'checkpoints/pelk_t_in1k.pth' do not exist" in printed
    assert 'Traceback' not in printed
    assert printed.count('do not exist') == 1, 'rank 0 alone speaks'
    # The sentence, two lines of torchrun's log, and which process stopped first.
    assert len(printed.splitlines()) <= 4
    assert 'dist_train.sh CONFIG N' in run(TOOLS / 'dist_train.sh', cwd=tmp_path, code=2)
