"""The driver of the ablations: its commands, Slurm with a stand-in for ``srun``, and tiny trainings on the CPU."""

import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from reproduction import run_ablations, trainings
from reproduction.ablations import METRICS, recipe_path
from reproduction.collect_ablations import collect, load, recipe, run_folder, summary
from reproduction.run_ablations import batch_options
from reproduction.runs import planned_steps
from tests.commands import call
from tests.paths import CONFIGS, TOOLS
from tests.training_logs import write_start

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

Driver = Callable[..., str]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Run the command in an empty folder, in this process; what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHON', sys.executable)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setattr(trainings, '_POLL', 0.05)
    return partial(call, 'reproduction.run_ablations', cwd=tmp_path)


def finish(folder: Path, stage: str, name: str) -> None:
    """Leave behind what a finished training leaves behind."""
    planned, unit = planned_steps(recipe(stage, name))
    lines = [{METRICS[stage][0]: 50.0, 'step': planned}]
    write_start(folder, lines, f'_base_ = {str(recipe_path(stage, name))!r}')
    (folder / f'{unit[:5].replace("itera", "iter")}_{planned}.pth').touch()


# The batch


COUNTS = 'optim_wrapper.accumulative_counts'
SEG = 'upernet_pelk_t_80k'


def test_batch() -> None:
    for name, images, gpus, given, expected in (
        ('pelk_t', 128, 32, (), {}),
        ('pelk_t', 128, 1, (), {COUNTS: 32, 'custom_hooks.0.update_interval': 64000, 'custom_hooks.1.interval': 32}),
        ('table5_5_exponential', 128, 8, (), {COUNTS: 4, 'custom_hooks.0.interval': 4}),
        ('pelk_t', 64, 32, (), {COUNTS: 2, 'custom_hooks.0.update_interval': 4000, 'custom_hooks.1.interval': 2}),
        ('pelk_t', 64, 8, (COUNTS,), {}),
        (SEG, 2, 8, (), {}),
        (SEG, 2, 4, (), {'train_dataloader.batch_size': 4}),
        (SEG, 2, 16, (), {'train_dataloader.batch_size': 1}),
    ):
        cfg = recipe('seg' if name == SEG else 'cls', name)
        cfg.train_dataloader.batch_size = images
        assert batch_options(cfg, gpus, given) == expected


def test_mistakes_end_in_one_line(driver: Driver) -> None:
    for words, said in (
        (['--gpus', 5], '5 GPUs x 128 images cannot add up to the 4096 of a step of pre-training; pass a --gpus that'),
        (['--gpus', 64], 'pass a --gpus that divides 32'),
        (['--gpus', 32, '--seg-gpus', 3], '3 GPUs x 2 images are not the 16 of a step of segmentation'),
        (['--gpus', 8, '--rows', 'table9'], "no row 'table9' in the tables 1, 5, 6, 7, fig2; known: table1_slak_51"),
        (['--gpus', 8, '--launcher', 'slurm'], 'needs a --partition'),
        (['--gpus', 8, '--jobs', 2], '--jobs is for Slurm'),
        (['--gpus', 8, '--cls-options', 'batch'], "KEY=VALUE pairs without spaces around the =, got 'batch'"),
        (['--gpus', 8, '--cls-options', 'train_dataloader.batchsize=3'], "did you mean 'train_dataloader.batch_size'?"),
        (['--gpus', 8, '--tables', '5'], "the data 'data/imagenet' of train_dataloader.dataset does not exist"),
    ):
        printed = driver(*words, code=1)
        assert printed.startswith('error: ')
        assert said in printed
        assert len(printed.splitlines()) == 1


# The commands


def test_dry_run_prints_the_commands_that_are_left(driver: Driver) -> None:
    rows = ['table1_slak_51', 'table1_replk_51_no_sparsity', 'fig2_dense_51', 'table6_center_5', 'table7_51_224']
    finish(run_folder(Path('w'), 'cls', 'table1_slak_51', 0), 'cls', 'table1_slak_51')
    before = sorted(Path('w').rglob('*'))
    dense = 'table1_replk_51_no_sparsity'
    seg = 'model.backbone.init_cfg.checkpoint=w/cls/{}/seed_0/epoch_120.pth'
    sparse = f'{COUNTS}=4 custom_hooks.0.update_interval=8000 custom_hooks.1.interval=4'
    assert driver('--dry-run', '--gpus', 8, '--work-dir', 'w', '--rows', *rows).splitlines() == [
        f'{TOOLS / "dist_train.sh"} {CONFIGS}/{stage}/ablations/{name}.py 8 --work-dir w/{stage}/{name}/seed_0 '
        f'--resume --cfg-options randomness.seed=0 {options}'
        for stage, name, options in (
            ('seg', 'table1_slak_51', seg.format('table1_slak_51')),
            ('cls', dense, f'{COUNTS}=4 custom_hooks.0.interval=4'),
            ('seg', dense, seg.format(dense)),
            ('cls', 'table6_center_5', sparse),
        )
    ]
    assert sorted(Path('w').rglob('*')) == before, 'nothing is started or changed'


ROW = 'table6_center_1'
COMMAND = ['--gpus', 32, '--work-dir', 'w', '--rows', ROW]


def test_what_was_stopped_before_its_last_test_goes_on_one_epoch_before(driver: Driver) -> None:
    """Its last checkpoint has nothing left to train, and so would never be tested."""
    folder = run_folder(Path('w'), 'cls', ROW, 0)
    finish(folder, 'cls', ROW)
    next(folder.glob('*/vis_data/scalars.json')).write_text(json.dumps({'accuracy/top1': 50.0, 'step': 119}))
    assert f"to train again, remove '{folder / 'epoch_120.pth'}'" in driver('--dry-run', *COMMAND, code=1)
    for number in (9, 119):
        (folder / f'epoch_{number}.pth').touch()
    assert f' --resume {folder / "epoch_119.pth"} --cfg-options ' in driver('--dry-run', *COMMAND)


def test_another_training_in_the_folder_is_refused(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run_folder(Path('w'), 'cls', ROW, 0), 'cls', ROW)
    for option, said in (('train_cfg.max_epochs=10', 'schedule'), ('model.head.topk=1', 'model')):
        printed = driver(*COMMAND, '--cls-options', option, code=1)
        assert f'cls/{ROW} seed 0 was started with another {said}; give another --work-dir' in printed
    shutil.rmtree('w')
    monkeypatch.setattr(run_ablations, 'run_trainings', mock.Mock(side_effect=KeyboardInterrupt))
    printed = driver(*COMMAND, '--launcher', 'slurm', '--partition', 'gpu', code=130)
    assert printed == 'stopped; the same command goes on\n'


# Slurm

# A stand-in: trains nothing, leaves a result behind, or fails on request.
SRUN = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
name, folder = (words[words.index(option) + 1] for option in ('--job-name', '--work-dir'))
with open('commands', 'a') as file:
    file.write(f'PORT={{os.environ["MASTER_PORT"]}} ' + ' '.join(words) + '\\n')
if name == os.environ['FAILS']:
    sys.exit('error: no luck')
data = Path(folder) / '20260102_030405' / 'vis_data'
data.mkdir(parents=True)
recipe = next(word for word in words if f'/configs/{{name[:3]}}/ablations/' in word)
(data / 'config.py').write_text(f'_base_ = {{recipe!r}}')
result = {{'accuracy/top1': 50.0, 'step': 120}} if name[:3] == 'cls' else dict(mIoU=50.0, step=80000)
(data / 'scalars.json').write_text(json.dumps(result))
"""


@pytest.mark.slow
def test_slurm_goes_on_with_the_others_when_one_fails(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'srun').write_text(SRUN)
    (tmp_path / 'srun').chmod(stat.S_IRWXU)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setenv('FAILS', 'cls-table1_slak_51-0')
    monkeypatch.delenv('PORT', raising=False)
    slurm = ('--launcher', 'slurm', '--partition', 'gpu', '--jobs', 2)
    command = ['--gpus', 32, *slurm, '--work-dir', 'w', '--rows', 'table1_slak_51', 'table1_replk_51']

    assert driver(*command, code=1).splitlines()[-3:] == [
        '2 trained, 0 finished before, 2 failed',
        '  cls/table1_slak_51 seed 0: error: no luck; all of it: w/cls/table1_slak_51/seed_0/console.log',
        '  seg/table1_slak_51 seed 0: cls/table1_slak_51 seed 0 failed',
    ]
    log = Path('w/cls/table1_slak_51/seed_0/console.log').read_text(encoding='utf-8')
    assert re.search(r'^\$ GPUS=32 PORT=\d+ \S+slurm_train.sh gpu cls-table1_slak_51-0 ', log, re.MULTILINE)
    given = Path('commands').read_text(encoding='utf-8').splitlines()
    assert len({line.split()[0] for line in given}) == len(given) == 3, 'a port each'
    # 32 processes for the 4096 images, the recipe's 8 for segmentation.
    assert '--job-name cls-table1_replk_51-0 --gres gpu:8 --ntasks 32 --ntasks-per-node 8 ' in ''.join(given)
    assert '--job-name seg-table1_replk_51-0 --gres gpu:8 --ntasks 8 --ntasks-per-node 8 ' in given[-1]
    assert all('--partition gpu' in line and ' --resume ' in line for line in given)

    monkeypatch.setenv('FAILS', '')
    assert driver(*command).splitlines()[-1] == '2 trained, 2 finished before, 0 failed'
    assert driver(*command) == '0 trained, 4 finished before, 0 failed\n'


# Training

# Ends its process as a machine does that is switched off, in the second epoch of Fig. 2's pre-training.
DYING = """
import os, signal
from pathlib import Path
from mmengine.hooks import Hook

class Dying(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2 and 'fig2' in runner.work_dir and Path('die').exists():
            os.kill(os.getpid(), signal.SIGKILL)
"""
SHRINK = [
    *('model.backbone.depths=(1,1,1,1)', 'model.backbone.channels=(8,12,16,20)'),
    *('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'),
    *('val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False', 'default_hooks.logger.interval=1'),
]
SHRINK_CLS = [
    *('model.head.in_channels=20', 'train_dataloader.batch_size=4', 'auto_scale_lr.base_batch_size=8'),
    *('train_cfg.max_epochs=2', 'train_dataloader.dataset.pipeline.1.scale=48', 'default_hooks.dying.type=dying.Dying'),
    *('val_dataloader.dataset.pipeline.1.scale=48', 'val_dataloader.dataset.pipeline.2.crop_size=48'),
]
SHRINK_SEG = [
    *('model.decode_head.in_channels=[8,12,16,20]', 'model.decode_head.channels=8', 'model.auxiliary_head.channels=8'),
    *('model.auxiliary_head.in_channels=16', 'model.data_preprocessor.size=(64,64)', 'model.test_cfg.mode=whole'),
    *('auto_scale_lr.base_batch_size=2', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'),
    *('train_dataloader.dataset.pipeline.2.scale=(64,64)', 'train_dataloader.dataset.pipeline.3.crop_size=(64,64)'),
    *('val_dataloader.dataset.pipeline.1.scale=(64,64)', 'default_hooks.checkpoint.interval=2'),
]


@pytest.mark.slow
def test_a_row_from_the_first_start_to_the_table(
    tiny_imagenet: Path, tiny_ade20k: Path, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'dying.py').write_text(DYING)
    (tmp_path / 'die').touch()
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    loaders = ('train_dataloader', 'val_dataloader')
    command = [
        *('--gpus', 1, '--work-dir', 'w', '--rows', 'fig2_stripe_7', '--cfg-options', *SHRINK),
        *('--cls-options', *SHRINK_CLS, *(f'{loader}.dataset.data_root={tiny_imagenet}' for loader in loaders)),
        *('--seg-options', *SHRINK_SEG, *(f'{loader}.dataset.data_root={tiny_ade20k}' for loader in loaders)),
    ]
    folders = {stage: run_folder(Path('w'), stage, 'fig2_stripe_7', 0) for stage in ('cls', 'seg')}

    # Killed in its second epoch; what needs it does not begin.
    assert driver(*command, code=1).splitlines()[-3].startswith('0 trained, 0 finished before, 2 failed')
    assert (folders['cls'] / 'epoch_1.pth').exists()
    assert summary(collect([Path('w')])['cls', 'fig2_stripe_7']) == 'seed 0: epoch 1 of 2'
    assert not folders['seg'].exists()

    # The same command: resumed, then segmented from the end of the pre-training.
    (tmp_path / 'die').unlink()
    assert driver(*command).splitlines()[-1] == '2 trained, 0 finished before, 0 failed'
    log = (folders['cls'] / 'console.log').read_text()
    assert log.count('Epoch(train) [1][1/2]') == 1
    assert log.count('Epoch(train) [2][1/2]') == 1
    assert f"tensors from '{folders['cls'] / 'epoch_2.pth'}'" in (folders['seg'] / 'console.log').read_text()
    starts = sorted(folders['cls'].glob('*/vis_data/config.py'))
    assert len(starts) == 2
    assert 'accumulative_counts=2' in starts[-1].read_text()

    # The table and the JSON.
    collected = partial(call, 'reproduction.collect_ablations', '--out', 'out/ablations.json', cwd=tmp_path)
    printed = collected('w', '--tables', 'fig2')
    assert 'Table 6' not in printed
    stored = load(Path('out/ablations.json'))
    for stage in folders:
        (seed,) = stored[stage, 'fig2_stripe_7']
        assert f'{seed.final:.2f} (n = 1' in ' '.join(printed.split())
        # No hooks: the EMA's interval belongs to the number of processes. Segmentation is not in mixed precision here.
        changed = ['schedule', 'model', 'data', *(['optimizer'] if stage == 'seg' else []), 'test', 'batch']
        assert list(seed.changed) == changed + ['pre-training'] * (stage == 'seg')
        assert re.fullmatch(r'\d+ x .+', seed.machine)
    # Kept by a later call for a folder with nothing in it.
    assert 'every figure is a target' in collected('none')
    assert load(Path('out/ablations.json')) == stored
