"""The sentences about a user's mistakes, and what must not be taken for one."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import PretrainedInit

import mmpelk
from mmpelk.engine.checks import check_checkpoint, check_data, check_option_names, check_weights
from mmpelk.engine.command_line import exit_on_user_error
from mmpelk.errors import DataError, UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint


@pytest.fixture(scope='module')
def recipe() -> Config:
    return mmpelk.get_config('seg/upernet_pelk_t_ade20k.py')


def test_names_of_options(recipe: Config) -> None:
    for key, meant in (
        ('train_dataloder.batch_size', 'train_dataloader'),
        ('model.backbon.init_cfg', 'model.backbone'),
        ('train_dataloader.dataset.pipeline.3.cropsize', 'train_dataloader.dataset.pipeline.3.crop_size'),
        ('optim_wrapper.optimiser.lr', 'optim_wrapper.optimizer'),
        ('param_scheduler.0.ends', 'param_scheduler.0.end'),
        (f'param_scheduler.{len(recipe.param_scheduler) - 1}.ends', 'param_scheduler.1.end'),
    ):
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            check_option_names(recipe, {key: 0})
    good = (
        'model.backbone.arch.depths',  # below a value that the recipe gives as a name
        'model.backbone.with_cp',
        'randomness.seed',
        'train_dataloader.dataset.indices',
        'train_dataloader.dataset.pipeline.3.crop_size',
        'param_scheduler.0.end',
        'optim_wrapper.clip_grad.max_norm',
        'custom_hooks.0.type',
    )
    check_option_names(recipe, dict.fromkeys(good, 0))
    with pytest.raises(ValueError, match="did you mean 'model'"):  # of several, the last as well
        check_option_names(recipe, dict.fromkeys((*good, 'modl.backbone'), 0))


def test_missing_weights(recipe: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'model\.backbone\.init_cfg=None'):
        check_weights(recipe)
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / 'pelk_t_in1k.pth').touch()
    check_weights(recipe)


@pytest.mark.parametrize('kind', ['mmengine.Pretrained', PretrainedInit], ids=str)
def test_missing_weights_however_they_are_named(kind: object) -> None:
    init_cfg = [dict(type='TruncNormal', layer='Linear'), dict(type=kind, checkpoint='absent.pth')]
    for given in (init_cfg, tuple(init_cfg)):
        with pytest.raises(FileNotFoundError, match=r"'absent\.pth' do not exist.*model\.backbone\.init_cfg\.1=None"):
            # Also below what names a checkpoint of its own, as a teacher does.
            check_weights(Config(dict(model=dict(checkpoint='teacher.pth', backbone=dict(init_cfg=given)))))


def test_folder_of_weights_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('MMPELK_CHECKPOINTS', str(tmp_path))
    cfg = mmpelk.get_config('seg/upernet_pelk_t_ade20k.py')
    assert cfg.model.backbone.init_cfg.checkpoint == f'{tmp_path}/pelk_t_in1k.pth'


def test_missing_data(recipe: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'train_dataloader\.dataset\.data_root=FOLDER'):
        check_data(recipe, ['train_dataloader', 'val_dataloader'])
    root = tmp_path / 'data' / 'ade' / 'ADEChallengeData2016'
    for folder in ('images/training', 'annotations/training'):
        (root / folder).mkdir(parents=True)
    check_data(recipe, ['train_dataloader'])
    with pytest.raises(FileNotFoundError, match='images/validation'):
        check_data(recipe, ['val_dataloader'])


def test_data_of_wrapped_and_remote_sets(tmp_path: Path) -> None:
    wrapped = dict(
        type='RepeatDataset', dataset=dict(type='CocoDataset', data_root=str(tmp_path), ann_file='gone.json')
    )
    with pytest.raises(FileNotFoundError, match=r'gone\.json.*train_dataloader\.dataset\.dataset\.data_root'):
        check_data(Config(dict(train_dataloader=dict(dataset=wrapped))), ['train_dataloader'])
    (tmp_path / 'empty.json').touch()
    for dataset in (
        dict(data_root='s3://bucket/coco', ann_file='a.json'),
        dict(data_root=None, ann_file=str(tmp_path / 'empty.json')),  # of which the data set itself tells
    ):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ['train_dataloader'])
    alone = dict(data_prefix=dict(img=str(tmp_path / 'images')))
    with pytest.raises(FileNotFoundError, match=r"/images' of val_dataloader\.dataset does not exist"):
        check_data(Config(dict(val_dataloader=dict(dataset=alone))), ['train_dataloader', 'val_dataloader'])


def test_a_folder_may_be_named_alone_and_pipelines_name_their_own(tmp_path: Path) -> None:
    pipeline = [dict(type='Other', ann_file='gone.txt', data_root='gone')]
    dataset = dict(data_root=str(tmp_path), data_prefix='images', pipeline=pipeline)
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    with pytest.raises(FileNotFoundError, match=r"/images' of train_dataloader\.dataset does not exist"):
        check_data(cfg, ['train_dataloader'])
    (tmp_path / 'images').mkdir()
    check_data(cfg, ['train_dataloader'])


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_the_log_reports_errors_again(code: int, capsys: pytest.CaptureFixture) -> None:
    reported: list[bool] = []

    def fill() -> None:
        reported.append(logging.raiseExceptions)
        raise OSError(code, os.strerror(code))

    with pytest.raises(SystemExit), exit_on_user_error(running=True):
        fill()
    # Each line of a log on a full disk would print a traceback.
    assert [*reported, logging.raiseExceptions] == [False, True]
    assert capsys.readouterr().err.startswith('error: the disk is full: ')


def test_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ('gone.pth', str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=f"'{path}' does not exist"):
            check_checkpoint(path)
    for path in (None, 'https://host/weights.pth', __file__):
        check_checkpoint(path)
    # The readers take ~ for the home folder, which no shell replaces within a config.
    monkeypatch.setenv('HOME', str(tmp_path))
    cfg = Config(dict(model=dict(init_cfg=dict(type='Pretrained', checkpoint='~/mine.pth'))))
    for check in (lambda: check_checkpoint('~/mine.pth'), lambda: check_weights(cfg)):
        with pytest.raises(FileNotFoundError, match=r"'~/mine\.pth' do"):
            check()
    torch.save(dict(state_dict={}), tmp_path / 'mine.pth')
    check_checkpoint('~/mine.pth')
    check_weights(cfg)
    assert read_checkpoint('~/mine.pth') == dict(state_dict={})


def test_an_error_becomes_one_line_of_rank_0(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ('0', '1'):
        monkeypatch.setenv('RANK', rank)
        with pytest.raises(SystemExit, match='1'), exit_on_user_error():
            check_checkpoint('gone.pth')
        assert len(capsys.readouterr().err.splitlines()) == (rank == '0')
    monkeypatch.setenv('MMPELK_TRACEBACK', '1')
    with pytest.raises(FileNotFoundError), exit_on_user_error():
        check_checkpoint('gone.pth')


@pytest.mark.parametrize(
    ('error', 'shown'),
    [
        (UserError('what is wrong'), 'error: what is wrong'),
        (DataError('a bad file'), 'error: a bad file'),
        (FileNotFoundError('it is not there'), 'error: it is not there'),
        (KeyError('b ad'), 'error: KeyError: b ad (MMPELK_TRACEBACK=1 shows where)'),
        (TypeError('of another type'), 'error: TypeError: of another type (MMPELK_TRACEBACK=1 shows where)'),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize('running', [False, True])
@pytest.mark.parametrize('variable', ['RANK', 'SLURM_PROCID'])
def test_which_errors_become_one_line_and_of_which_process(
    variable: str, running: bool, error: Exception, shown: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample or a file that one process alone reads is told by it; other errors of a running training are ours."""
    is_ours = not running or isinstance(error, UserError | FileNotFoundError)
    for rank in ('0', '3'):
        monkeypatch.setenv(variable, rank)
        with pytest.raises(SystemExit if is_ours else type(error)), exit_on_user_error(running):
            raise error
        printed = capsys.readouterr().err.splitlines()
        assert printed == [shown] * (is_ours and (rank == '0' or isinstance(error, DataError)))


def test_a_lost_process_becomes_one_line_and_other_errors_keep_their_traceback(capsys: pytest.CaptureFixture) -> None:
    for message in (
        '[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242',
        '[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 30000ms for recv operation to complete',
        'Application timeout caused pair closure',
        '[gloo/transport/tcp/pair.cc:154] Read timeout [127.0.0.1]:4242',
        'Connection reset by peer',
        'Broken pipe',
        'Write timeout',
        'Wait timeout',
        'Socket closed',
        'NCCL error: remote process exited or there was a network error',
        'NCCL communicator was aborted. Original reason: Watchdog caught collective operation timeout',
    ):
        with pytest.raises(SystemExit, match='1'), exit_on_user_error(running=True):
            raise RuntimeError(message)
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert '--resume' in line
    with pytest.raises(RuntimeError, match='size of tensor'), exit_on_user_error(running=True):
        raise RuntimeError('The size of tensor a (3) must match the size of tensor b (4)')


@pytest.mark.parametrize('gap', [' ', '\r\n' + ' ' * 40], ids=['one line', 'indented'])
@pytest.mark.parametrize('number', ['NaN', 'Infinity', '-Infinity'])
def test_numbers_that_are_none_in_annotations(number: str, gap: str, tmp_path: Path) -> None:
    path = tmp_path / 'train.json'
    cfg = Config(dict(train_dataloader=dict(dataset=dict(data_root=str(tmp_path), ann_file='train.json'))))
    path.write_text(f'{{"images": [{{"file_name": "{number}.jpg"}}], "annotations": [{{"bbox": [0, 1, 2.5, 3]}}]}}')
    check_data(cfg, ['train_dataloader'])  # a name is no number
    good = path.read_bytes()
    for before, after in ((b' 2.5', gap), (b'[0', f'[{gap}'), (b'[0, 1, 2.5, 3]', gap)):  # in the middle, first, alone
        path.write_bytes(good.replace(before, f'{after}{number}'.encode()))
        with pytest.raises(ValueError, match=f"'{path}' holds {number.lstrip('-')}, which is no number"):
            check_data(cfg, ['train_dataloader'])
