"""The driver of the ablations: its commands, Slurm with a stand-in for ``srun``, and tiny trainings on the CPU."""

import json
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmpelk.analysis.runs import planned_steps
from mmpelk.engine import trainings
from reproduction import collect_ablations, run_ablations
from reproduction.ablations import METRICS, recipe_path
from reproduction.collect_ablations import collect, load, recipe, run_folder, summary, values
from reproduction.run_ablations import batch_options
from tests.paths import CONFIGS, ROOT, TOOLS
from tests.training_logs import write_start

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

Driver = Callable[..., int]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Run the command in an empty folder, in this process, and return its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHON', sys.executable)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setattr(trainings, '_POLL', 0.05)

    def drive(*words: object) -> int:
        monkeypatch.setattr(sys, 'argv', ['run_ablations', *map(str, words)])
        try:
            run_ablations.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return drive


def finish(folder: Path, stage: str, name: str) -> None:
    """Leave behind what a finished training leaves behind."""
    planned, unit = planned_steps(recipe(stage, name))
    lines = [{METRICS[stage][0]: 50.0, 'step': planned}]
    write_start(folder, lines, f'_base_ = {str(recipe_path(stage, name))!r}')
    (folder / f'{unit[:5].replace("itera", "iter")}_{planned}.pth').touch()


# The batch


def test_batch_is_made_up_as_the_documentation_says() -> None:
    lines = (ROOT / 'docs' / 'classification.md').read_text().splitlines()
    rows = {int(match[1]): line for line in lines if (match := re.match(r'\| (32|8|4|1) \|', line))}
    assert rows.keys() == {32, 8, 4, 1}
    options = {gpus: batch_options(recipe('cls', 'pelk_t'), gpus) for gpus in rows}
    for gpus in (8, 1):
        assert ' '.join(f'{key}={value}' for key, value in options[gpus].items()) in rows[gpus]
    assert ', '.join(f'`{value}`' for value in options[4].values()) in rows[4]
    assert options[4].keys() == options[8].keys()
    assert options[32] == {}


COUNTS = 'optim_wrapper.accumulative_counts'
HALVED = {'train_dataloader.batch_size': 64}


@pytest.mark.parametrize(
    ('recipe_of', 'changes', 'gpus', 'given', 'expected'),
    [
        (('cls', 'table5_5_exponential'), {}, 8, (), {COUNTS: 4, 'custom_hooks.0.interval': 4}),
        (
            *(('cls', 'pelk_t'), HALVED, 8, ()),
            {COUNTS: 8, 'custom_hooks.0.update_interval': 16000, 'custom_hooks.1.interval': 8},
        ),
        (('cls', 'pelk_t'), HALVED, 8, (COUNTS,), {}),
        (('seg', 'table1_slak_51'), {}, 8, (), {}),
        (('seg', 'table1_slak_51'), {}, 4, (), {'train_dataloader.batch_size': 4}),
        (('seg', 'table1_slak_51'), {}, 16, (), {'train_dataloader.batch_size': 1}),
    ],
    ids=['without-sparsity', 'fewer-images', 'given', 'segmentation', 'on-4', 'on-16'],
)
def test_batch_of_other_recipes(recipe_of: tuple, changes: dict, gpus: int, given: tuple, expected: dict) -> None:
    cfg = recipe(*recipe_of)
    cfg.merge_from_dict(changes)
    assert batch_options(cfg, gpus, given) == expected


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--gpus', 5], '5 GPUs x 128 images cannot add up to the 4096 of a step of pre-training; pass a --gpus that'),
        (['--gpus', 64], 'pass a --gpus that divides 32'),
        (['--gpus', 32, '--seg-gpus', 3], '3 GPUs x 2 images are not the 16 of a step of segmentation'),
        (['--gpus', 8, '--rows', 'table9'], "no row 'table9' in the tables 1, 5, 6, 7, fig2; known: table1_slak_51"),
        (['--gpus', 8, '--launcher', 'slurm'], 'needs a --partition'),
        (['--gpus', 8, '--jobs', 2], '--jobs is for Slurm'),
        (['--gpus', 8, '--cls-options', 'batch'], "KEY=VALUE pairs without spaces, got 'batch'"),
        (['--gpus', 8, '--cls-options', 'train_dataloader.batchsize=3'], "did you mean 'train_dataloader.batch_size'?"),
        (['--gpus', 8, '--tables', '5'], "the data 'data/imagenet' of train_dataloader.dataset does not exist"),
    ],
    ids=['no_divisor', 'too_many', 'segmentation', 'row', 'partition', 'jobs', 'option', 'typing_error', 'no_data'],
)  # fmt: skip
def test_mistakes_are_told_in_a_sentence(
    words: list[object], said: str, driver: Driver, capsys: pytest.CaptureFixture
) -> None:
    assert driver(*words) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith('error: ')
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ''


# The commands


def test_dry_run_prints_the_commands_that_are_left(driver: Driver, capsys: pytest.CaptureFixture) -> None:
    rows = ['table1_slak_51', 'table1_replk_51_no_sparsity', 'fig2_dense_51', 'table6_center_5', 'table7_51_224']
    work = Path('work dirs')
    command = ['--dry-run', '--gpus', 8, '--seeds', 0, 1, '--work-dir', work, '--rows', *rows]
    finish(run_folder(work, 'cls', 'table1_slak_51', 0), 'cls', 'table1_slak_51')
    finish(run_folder(work, 'cls', 'table6_center_5', 1), 'cls', 'table6_center_5')
    before = sorted(work.rglob('*'))
    assert driver(*command) == 0
    printed = capsys.readouterr()
    sparse = 'optim_wrapper.accumulative_counts=4 custom_hooks.0.update_interval=8000 custom_hooks.1.interval=4'

    def train(stage: str, name: str, seed: int, options: str = '') -> str:
        weights = f" 'model.backbone.init_cfg.checkpoint=work dirs/cls/{name}/seed_{seed}/epoch_120.pth'"
        return (
            f'{shlex.quote(str(TOOLS / "dist_train.sh"))} {CONFIGS}/{stage}/ablations/{name}.py 8 '
            f"--work-dir 'work dirs/{stage}/{name}/seed_{seed}' --resume --cfg-options randomness.seed={seed}"
            f'{" " + options if options else ""}{weights if stage == "seg" else ""}'
        )

    dense = 'table1_replk_51_no_sparsity'
    dense_options = 'optim_wrapper.accumulative_counts=4 custom_hooks.0.interval=4'
    assert printed.out.splitlines() == [
        train('seg', 'table1_slak_51', 0),
        train('cls', 'table1_slak_51', 1, sparse),
        train('seg', 'table1_slak_51', 1),
        train('cls', dense, 0, dense_options),
        train('seg', dense, 0),
        train('cls', dense, 1, dense_options),
        train('seg', dense, 1),
        train('cls', 'table6_center_5', 0, sparse),
    ]
    assert printed.err == ''
    assert sorted(work.rglob('*')) == before, 'nothing is started or changed'


def test_what_was_stopped_before_its_last_test_goes_on_one_epoch_before(
    driver: Driver, capsys: pytest.CaptureFixture
) -> None:
    """Its last checkpoint has nothing left to train, and so would never be tested."""
    folder = run_folder(Path('work'), 'cls', 'table6_center_1', 0)
    finish(folder, 'cls', 'table6_center_1')
    log = next(folder.glob('*/vis_data/scalars.json'))
    log.write_text(json.dumps({'accuracy/top1': 50.0, 'step': 119}))
    command = ['--dry-run', '--gpus', 32, '--work-dir', 'work', '--rows', 'table6_center_1']
    assert driver(*command) == 1
    assert "to train again, remove 'work/cls/table6_center_1/seed_0/epoch_120.pth'" in capsys.readouterr().err
    for number in (9, 119):
        (folder / f'epoch_{number}.pth').touch()
    assert driver(*command) == 0
    assert ' --resume work/cls/table6_center_1/seed_0/epoch_119.pth --cfg-options ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('option', 'said'),
    [('train_cfg.max_epochs=10', 'another schedule'), ('model.head.in_channels=1', 'another model')],
)
def test_another_training_in_the_folder_is_refused(
    option: str, said: str, driver: Driver, capsys: pytest.CaptureFixture
) -> None:
    finish(run_folder(Path('work'), 'cls', 'table6_center_1', 0), 'cls', 'table6_center_1')
    command = ['--gpus', 32, '--work-dir', 'work', '--rows', 'table6_center_1', '--cls-options', option]
    assert driver(*command) == 1
    assert f'cls/table6_center_1 seed 0 was started with {said}; give another --work-dir' in capsys.readouterr().err


def test_stopped_driver_says_how_to_go_on(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_ablations, 'run_trainings', stopped)
    assert driver('--gpus', 32, '--launcher', 'slurm', '--partition', 'gpu', '--rows', 'table6_center_1') == 130
    assert capsys.readouterr().err == 'stopped; the same command goes on\n'


# Slurm

# A stand-in: trains nothing, leaves a result behind, or fails where it is told to.
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
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / 'srun').write_text(SRUN)
    (tmp_path / 'srun').chmod(stat.S_IRWXU)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setenv('FAILS', 'cls-table1_slak_51-0')
    monkeypatch.delenv('PORT', raising=False)
    slurm = ('--launcher', 'slurm', '--partition', 'gpu', '--jobs', 2)
    command = ['--gpus', 32, *slurm, '--work-dir', 'w', '--rows', 'table1_slak_51', 'table1_replk_51']

    assert driver(*command) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        '2 trained, 0 finished before, 2 failed',
        '  cls/table1_slak_51 seed 0: error: no luck; all of it: w/cls/table1_slak_51/seed_0/console.log',
        '  seg/table1_slak_51 seed 0: cls/table1_slak_51 seed 0 failed',
    ]
    log = Path('w/cls/table1_slak_51/seed_0/console.log').read_text()
    assert re.search(r'^\$ GPUS=32 PORT=\d+ \S+slurm_train.sh gpu cls-table1_slak_51-0 ', log, re.MULTILINE)
    given = Path('commands').read_text().splitlines()
    assert len({line.split()[0] for line in given}) == len(given) == 3, 'a port each'
    # 32 processes for the 4096 images, the recipe's 8 for segmentation.
    assert '--job-name cls-table1_replk_51-0 --gres gpu:8 --ntasks 32 --ntasks-per-node 8 ' in ''.join(given)
    assert '--job-name seg-table1_replk_51-0 --gres gpu:8 --ntasks 8 --ntasks-per-node 8 ' in given[-1]
    assert all('--partition gpu' in line and ' --resume ' in line for line in given)

    monkeypatch.setenv('FAILS', '')
    assert driver(*command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '2 trained, 2 finished before, 0 failed'
    assert driver(*command) == 0
    assert capsys.readouterr().out == '0 trained, 4 finished before, 0 failed\n'


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
def test_two_rows_from_the_first_start_to_the_table(
    tiny_imagenet: Path,
    tiny_ade20k: Path,
    driver: Driver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / 'dying.py').write_text(DYING)
    (tmp_path / 'die').touch()
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    loaders = ('train_dataloader', 'val_dataloader')
    command = [
        *('--gpus', 1, '--work-dir', 'w', '--rows', 'fig2_stripe_7', 'table5_5_exponential', '--cfg-options', *SHRINK),
        *('--cls-options', *SHRINK_CLS, *(f'{loader}.dataset.data_root={tiny_imagenet}' for loader in loaders)),
        *('--seg-options', *SHRINK_SEG, *(f'{loader}.dataset.data_root={tiny_ade20k}' for loader in loaders)),
    ]
    folders = {stage: run_folder(Path('w'), stage, 'fig2_stripe_7', 0) for stage in ('cls', 'seg')}

    # Killed in its second epoch; the others go on, except what needs it.
    assert driver(*command) == 1
    assert capsys.readouterr().out.splitlines()[-3].startswith('1 trained, 0 finished before, 2 failed')
    assert (folders['cls'] / 'epoch_1.pth').exists()
    trained = collect([Path('w')])
    assert summary(trained['cls', 'fig2_stripe_7']) == 'seed 0: epoch 1 of 2'
    assert values(trained['cls', 'table5_5_exponential'])
    assert not folders['seg'].exists()

    # The same command: resumed, then segmented from the end of the pre-training.
    (tmp_path / 'die').unlink()
    assert driver(*command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '2 trained, 1 finished before, 0 failed'
    log = (folders['cls'] / 'console.log').read_text()
    assert log.count('Epoch(train) [1][1/2]') == 1
    assert log.count('Epoch(train) [2][1/2]') == 1
    assert f"tensors from '{folders['cls'] / 'epoch_2.pth'}'" in (folders['seg'] / 'console.log').read_text()
    starts = sorted(folders['cls'].glob('*/vis_data/config.py'))
    assert len(starts) == 2
    assert 'accumulative_counts=2' in starts[-1].read_text()

    # The table and the JSON.
    def print_tables(*words: str) -> str:
        monkeypatch.setattr(sys, 'argv', ['collect_ablations', *words, '--out', 'out/ablations.json'])
        collect_ablations.main()
        return capsys.readouterr().out

    printed = print_tables('w', '--tables', '5', 'fig2')
    assert 'Table 5' in printed
    assert 'Table 6' not in printed
    stored = load(Path('out/ablations.json'))
    for stage in folders:
        (seed,) = stored[stage, 'fig2_stripe_7']
        assert f'{seed.final:.2f} (n = 1' in ' '.join(printed.split())
        # No hooks: the EMA's interval belongs to the number of processes. Segmentation is not in mixed precision here.
        changed = ['schedule', 'model', 'data', *(['optimizer'] if stage == 'seg' else []), 'test', 'batch']
        assert list(seed.changed) == changed + ['pre-training'] * (stage == 'seg')
        assert re.fullmatch(r'\d+ x .+', seed.machine)
    # Kept by a later call for other folders.
    shutil.copytree('w/cls/table5_5_exponential', 'v/cls/table5_5_exponential')
    print_tables('v')
    assert load(Path('out/ablations.json')) == stored


def test_nothing_measured_leaves_the_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / 'ablations.json'
    out.write_text('earlier')
    monkeypatch.setattr(sys, 'argv', ['collect_ablations', str(tmp_path / 'none'), '--out', str(out)])
    collect_ablations.main()
    printed = capsys.readouterr().out
    assert 'every figure is a target' in printed
    assert printed.count('(target)') == 6 + 4 + 6 + 4 * 2 + 2, 'of Tables 5, 6 and 7, of Table 1, and its gains'
    assert out.read_text() == 'earlier'
