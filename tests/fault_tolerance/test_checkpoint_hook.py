"""In which order a checkpoint is written, synced, named and makes room, and who waits for the disk."""

import errno
import hashlib
import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader, Runner

from mmpelk.errors import UserError
from mmpelk.fault_tolerance import agreement, checkpoint_hook, safe_loading
from mmpelk.fault_tolerance.checkpoint_hook import CheckpointHook
from mmpelk.fault_tolerance.resumable import Run
from mmpelk.fault_tolerance.resume import ResumeHook
from mmpelk.fault_tolerance.safe_loading import CheckpointError, load_data
from mmpelk.fault_tolerance.saving import SavesOnAll
from tests.fault_tolerance.tiny import hook_of, make_runner, names, train


class Disk:
    """A disk that finishes a write when the test allows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.allowed, self.fails = threading.Event(), threading.Event(), False
        monkeypatch.setattr(checkpoint_hook, 'sync', self._sync)

    def _sync(self, path: str) -> None:
        self.asked.set()
        assert self.allowed.wait(60)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """One iteration was trained; the next checkpoint is that of the second."""
    return train(tmp_path, 1, hooks=(), max_keep_ckpts=1)


@pytest.fixture
def disk(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """It is asked for nothing yet, and allows nothing."""
    disk = Disk(monkeypatch)
    yield disk
    disk.allowed.set()


def here(folder: Path) -> tuple[list[str], str]:
    """Checkpoints that are there, and the one that is named as the last."""
    return names(folder), Path((folder / 'last_checkpoint').read_text()).name


@pytest.mark.parametrize('fails', [False, True])
@pytest.mark.parametrize('later', ['_save_checkpoint', 'after_train', 'save_now'])
def test_training_goes_on_while_the_disk_takes_the_file(
    later: str, fails: bool, disk: Disk, runner: Runner, tmp_path: Path
) -> None:
    """Until the next checkpoint, the end or a signal, which wait for it, and say so if the disk does not take it."""
    hook = hook_of(runner)
    assert here(tmp_path) == (['iter_1.pth'], 'iter_1.pth')
    hook._save_checkpoint(runner)
    # It is there, whole, at once, but until the disk has it the one before counts.
    assert disk.asked.wait(60)
    assert here(tmp_path) == (['iter_1.pth', 'iter_2.pth'], 'iter_1.pth')
    assert torch.load(tmp_path / 'iter_2.pth', weights_only=False)['meta']['iter'] == 2
    runner.train_loop._iter += later == '_save_checkpoint'
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(getattr(hook, later), runner)
        assert wait([waiting], 0.2).not_done
        assert not (tmp_path / 'iter_3.pth').exists()
        disk.fails = fails
        disk.allowed.set()
        if fails:
            said = r"iter_2\.pth' cannot be written: Input.*the last good one is .*iter_1"
            with pytest.raises(UserError, match=said):
                waiting.result(60)
            assert here(tmp_path) == (['iter_1.pth', 'iter_2.pth'], 'iter_1.pth')
        else:
            waiting.result(60)
            hook._wait()
            assert here(tmp_path) == ([f'iter_{runner.iter + 1}.pth'], f'iter_{runner.iter + 1}.pth')


def test_a_write_that_fails_names_the_last_good_one(runner: Runner) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = r"iter_2\.pth' cannot be written: No space.*last good one is .*iter_1"
    with mock.patch.object(runner, 'save_checkpoint', side_effect=full), pytest.raises(UserError, match=said):
        hook_of(runner)._save_checkpoint(runner)


def test_an_outdated_checkpoint_is_removed_when_it_is_named_no_more(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    remove = CheckpointHook._remove
    monkeypatch.setattr(CheckpointHook, '_remove', lambda *args: (named.append(here(tmp_path)[1]), remove(*args)))
    hook_of(runner)._save_checkpoint(runner)
    hook_of(runner)._wait()
    assert named == ['iter_2.pth']
    assert here(tmp_path) == (['iter_2.pth'], 'iter_2.pth')


def test_the_best_one_before_goes_when_the_new_one_stands(disk: Disk, runner: Runner, tmp_path: Path) -> None:
    hook = CheckpointHook(by_epoch=False, interval=1, save_best='score', rule='greater')
    hook.before_train(runner)
    disk.allowed.set()
    hook.after_val_epoch(runner, dict(score=0.1))
    hook._wait()
    runner.train_loop._iter += 1
    disk.allowed.clear()
    hook.after_val_epoch(runner, dict(score=0.2))
    assert sorted(path.name for path in tmp_path.glob('best*')) == ['best_score_iter_1.pth', 'best_score_iter_2.pth']
    disk.allowed.set()
    hook._wait()
    assert [path.name for path in tmp_path.glob('best*')] == ['best_score_iter_2.pth']


def test_each_of_several_metrics_keeps_its_best_one(runner: Runner, tmp_path: Path) -> None:
    hook = CheckpointHook(by_epoch=False, interval=1, save_best=['a', 'b'], rule=['greater', 'less'])
    hook.before_train(runner)
    for a, b in ((1.0, 1.0), (2.0, 2.0), (1.5, 0.5)):
        hook.after_val_epoch(runner, dict(a=a, b=b))
        runner.train_loop._iter += 1
    hook._wait()
    best = ['best_a_iter_2.pth', 'best_b_iter_3.pth']
    assert sorted(path.name for path in tmp_path.glob('best*')) == best
    # A resumed training knows both, and makes room for what is better.
    resumed = CheckpointHook(by_epoch=False, interval=1, save_best=['a', 'b'], rule=['greater', 'less'])
    resumed._run, runner._resume = hook_of(runner)._run, True
    runner.message_hub.update_info('best_score_b', float('nan'))  # as if nothing was measured
    # The folder may have been moved since.
    runner.message_hub.update_info('best_ckpt_a', '/elsewhere/best_a_iter_2.pth')
    resumed.before_train(runner)
    assert 'best_score_b' not in runner.message_hub.runtime_info
    runner.message_hub.update_info('best_score_b', 0.5)
    assert resumed.best_ckpt_path_dict == dict(zip('ab', (str(tmp_path / name) for name in best), strict=True))
    resumed.after_val_epoch(runner, dict(a=3.0, b=1.0))
    resumed._wait()
    assert sorted(path.name for path in tmp_path.glob('best*')) == ['best_a_iter_4.pth', 'best_b_iter_3.pth']


def test_a_better_score_of_the_same_iteration_keeps_the_file(runner: Runner, tmp_path: Path) -> None:
    hook = CheckpointHook(by_epoch=False, interval=1, save_best='score', rule='greater')
    hook.before_train(runner)
    for score in (0.1, 0.2):
        hook.after_val_epoch(runner, dict(score=score))
        hook._wait()
    assert [path.name for path in tmp_path.glob('best*')] == ['best_score_iter_1.pth']
    hook._save_checkpoint(runner)
    hook.after_val_epoch(runner, dict(score=0.3))
    hook._wait()
    (best,) = tmp_path.glob('best*')
    assert not {'run_state', 'optimizer'} & load_data(best).keys(), 'no training resumes from it'
    assert load_data(best)['run_id'] == load_data(tmp_path / 'iter_1.pth')['run_id']


def test_what_has_to_make_room_is_in_the_file(runner: Runner, tmp_path: Path) -> None:
    """A training that was killed before it was deleted deletes it after a resume."""
    hook_of(runner)._save_checkpoint(runner)
    hook_of(runner)._wait()
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)['message_hub']['runtime_info']
    assert (saved['keep_ckpt_ids'], Path(saved['last_ckpt']).name) == ([1, 2], 'iter_2.pth')


def test_a_signal_after_a_checkpoint_writes_no_second_one(runner: Runner, tmp_path: Path) -> None:
    hook = hook_of(runner)
    with mock.patch.object(runner, 'save_checkpoint', wraps=runner.save_checkpoint) as written:
        hook._save_checkpoint(runner)
        assert hook.save_now(runner) == str(tmp_path / 'iter_2.pth')
        assert written.call_count == 1
        runner.train_loop._iter += 1
        assert hook.save_now(runner) == str(tmp_path / 'iter_3.pth')
        assert written.call_count == 2


@pytest.mark.parametrize(('missing', 'warned'), [(1, True), (0, False)])
def test_a_disk_that_has_no_room_for_the_next_one(
    missing: int, warned: bool, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = hook_of(runner)
    size = os.path.getsize(str(hook.last_ckpt))
    usage = namedtuple('Usage', 'total used free')(10 * size, 9 * size, size - missing)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
    said: list[str] = []
    monkeypatch.setattr(runner.logger, 'warning', said.append)
    hook._warn_of_a_full_disk(runner)
    assert [('does not fit' in line) for line in said] == [True] * warned


class Stops(Hook):
    """Saves in the middle of an epoch and ends the training, as a signal does."""

    priority = 'LOWEST'

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter == 1:
            hook_of(runner).save_now(runner)
            raise KeyboardInterrupt


def test_a_checkpoint_in_the_middle_of_an_epoch_gives_way_to_the_next(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, 0, hooks=(), by_epoch=True)
    runner.register_hook(Stops())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert names(tmp_path) == ['epoch_0_iter_2.pth']
    saved = torch.load(tmp_path / 'epoch_0_iter_2.pth', weights_only=False)
    assert (saved['meta']['epoch'], saved['meta']['iter']) == (0, 2)
    state = saved['run_state']
    seed = runner.train_dataloader.sampler.seed
    assert (state['place'], state['batches'], state['batch_size'], state['sampler_seed']) == (2, 4, 1, seed)
    assert len(state['ranks']) == 1
    for lock in hook_of(runner)._locks:
        lock.release()
    resumed = train(tmp_path, 0, hooks=(), by_epoch=True, resume=True)
    hook_of(resumed)._wait()
    assert here(tmp_path) == (['epoch_1.pth'], 'epoch_1.pth')


def test_a_checkpoint_that_is_written_again_stays(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, 0, hooks=(), by_epoch=True)
    runner.register_hook(Stops())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    hook = hook_of(runner)
    hook._saved = -1
    assert hook.save_now(runner) == str(tmp_path / 'epoch_0_iter_2.pth')
    assert here(tmp_path) == (['epoch_0_iter_2.pth'], 'epoch_0_iter_2.pth')
    for lock in hook._locks:
        lock.release()


def test_no_function_of_a_scheduler_is_saved(runner: Runner) -> None:
    """Neither a function nor a method nor one that is written in C."""
    state = dict(here=names, there=runner.train, built_in=len, last_step=3)
    for schedulers in ([dict(state)], dict(a=[dict(state)], b=[dict(state)])):
        hook_of(runner).before_save_checkpoint(runner, dict(param_schedulers=schedulers))
        lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers]
        assert [*lists] == [[dict(last_step=3)]] * len(lists)


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('hooks', [(), ('mmpelk.ResumeHook',)])
def test_the_seed_of_the_sampler_is_saved(by_epoch: bool, hooks: tuple[str, ...], tmp_path: Path) -> None:
    """Whose batches the resume hook has numbered, too."""
    runner = train(tmp_path, 1, hooks=hooks, by_epoch=by_epoch)
    (name,) = names(tmp_path)
    seed = runner.train_dataloader.batch_sampler.sampler.seed
    state = torch.load(tmp_path / name, weights_only=False)['run_state']
    assert state['sampler_seed'] == seed is not None
    assert state['place'] == (0 if by_epoch else 1), 'an epoch that has ended begins anew'


def test_what_is_published_stands_beside_its_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, 2, published_keys=['state_dict', 'message_hub'])
    (published,) = (path for path in tmp_path.glob('iter_2-*.pth'))
    content = load_data(published)
    assert content.keys() == {'state_dict', 'message_hub'}
    whole = load_data(tmp_path / 'iter_2.pth')
    assert torch.equal(content['state_dict']['weight'], whole['state_dict']['weight'])
    assert published.stem == f'iter_2-{hashlib.sha256(published.read_bytes()).hexdigest()[:8]}', (
        'as torch.hub compares it'
    )
    assert names(tmp_path) == ['iter_1.pth', published.name, 'iter_2.pth']
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    hook = CheckpointHook(published_keys=['meta'])
    with mock.patch.object(checkpoint_hook, 'get_file_backend', side_effect=full), pytest.raises(UserError):
        hook._publish_model(mock.Mock(), str(tmp_path / 'iter_2.pth'))


@pytest.mark.parametrize(('kept', 'refused'), [(3, True), (1, True), (-1, False)])
def test_folders_of_deepspeed_make_no_room(kept: int, refused: bool, runner: Runner) -> None:
    class DeepSpeedStrategy:
        pass

    hook = CheckpointHook(by_epoch=False, interval=1, max_keep_ckpts=kept)
    runner.strategy = DeepSpeedStrategy()  # type: ignore[attr-defined]
    if refused:
        with pytest.raises(UserError, match='max_keep_ckpts=-1'):
            hook.before_train(runner)
    else:
        hook.before_train(runner)
    runner.strategy = object()  # type: ignore[attr-defined]
    CheckpointHook(by_epoch=False, interval=1, max_keep_ckpts=1).before_train(runner)


def test_the_disk_is_looked_at_after_every_checkpoint(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, looked = hook_of(runner), []
    monkeypatch.setattr(hook, '_warn_of_a_full_disk', lambda runner: looked.append(hook.last_ckpt))
    for _ in range(2):
        path = hook.save_now(runner)
        assert looked.pop() == path
        runner.train_loop._iter += 1
    assert not looked


@pytest.mark.parametrize(('left_out', 'keys'), [
    ('save_optimizer', {'optimizer'}),
    ('save_param_scheduler', {'param_schedulers'}),
    (None, set()),
])  # fmt: skip
def test_what_is_left_out_of_checkpoints(left_out: str | None, keys: set[str], tmp_path: Path) -> None:
    scheduler = dict(type='PolyLR', by_epoch=False, end=10)
    train(tmp_path, 1, param_scheduler=scheduler, **({left_out: False} if left_out else {}))
    assert {'optimizer', 'param_schedulers'} - load_data(tmp_path / 'iter_1.pth').keys() == keys


@pytest.mark.parametrize('step', ['before_run', 'before_train', '_save_checkpoint', '_wait', 'SavesOnAll'])
def test_what_the_first_process_cannot_write_ends_all(
    step: str, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = hook_of(runner)
    if step == '_save_checkpoint':  # which waits before
        monkeypatch.setattr(hook, '_wait', lambda: None)
    monkeypatch.setattr(agreement, 'from_main', lambda function: 'no room there')
    call = getattr(hook, step, lambda _: SavesOnAll(runner, None).save_checkpoint(runner.work_dir, 'best.pth', meta={}))
    with pytest.raises(UserError, match='no room there'):
        call(*([] if step == '_wait' else [runner]))


def test_a_hook_lets_mmengine_read_checkpoints_as_data() -> None:
    with mock.patch.object(CheckpointLoader, '_schemes', {}):
        CheckpointHook()
        assert CheckpointLoader._schemes.keys() == safe_loading._LOADERS.keys()


def test_a_folder_in_which_is_only_tested_is_not_locked(tmp_path: Path) -> None:
    """While a training writes there."""
    testing = make_runner(tmp_path, 1)
    hook_of(testing).before_run(testing)
    assert not (tmp_path / '.lock').exists()


def test_every_training_is_a_run_of_its_own(runner: Runner, tmp_path: Path) -> None:
    ids = {(tmp_path / 'run_id').read_text()}
    for _ in range(2):
        hook_of(runner).before_train(runner)
        ids.add((tmp_path / 'run_id').read_text())
    assert len(ids) == 3


def test_which_files_of_the_folder_are_of_the_run(runner: Runner, tmp_path: Path) -> None:
    """Its own and those of the runs that it branched off, up to there, by their names and what they hold."""
    hook, path = hook_of(runner), tmp_path / 'iter_1.pth'
    shutil.copy(path, tmp_path / 'iter_1.pth.bak')
    assert hook._own_name(str(path), hook._name) == 'iter_1.pth'
    assert hook._own_name(f'{path}.bak', hook._name) is None
    assert [each.name for each in hook._candidates(runner)] == ['iter_1.pth']
    for run, ours in (
        (Run('f' * 32, {hook._run.id: 1}), True),
        (Run('f' * 32, {hook._run.id: 0}), False),
        (Run('f' * 32), False),
        (None, False),
        (hook._run, True),
    ):
        hook._run = run
        assert hook._is_of_run('iter_1.pth') is ours
    for content in (torch.ones(1), [], 'x', dict(meta={}), dict(meta=dict(iter='x')), None):
        torch.save(content, path)
        assert not hook._is_of_run('iter_1.pth')
    path.write_bytes(b'')
    assert not hook._is_of_run('iter_1.pth')


def test_checkpoints_in_a_store_are_taken_by_their_address(runner: Runner, tmp_path: Path) -> None:
    hook = CheckpointHook(by_epoch=False, interval=1, out_dir='s3://bucket/runs')
    assert hook._folders(runner) == [tmp_path], 'no folder here is locked for it'
    for pointed, chosen in (('s3://bucket/runs/x/iter_9.pth', None), ('s3://other/iter_9.pth', 'iter_1.pth')):
        (tmp_path / 'last_checkpoint').write_text(pointed)
        assert hook._choose(runner) == (str(tmp_path / chosen) if chosen else pointed)
    runner._resume, runner._load_from = True, 's3://bucket/runs/x/iter_3.pth'
    hook.before_run(runner)
    assert runner._load_from == 's3://bucket/runs/x/iter_3.pth'
    # It is looked at when it was read.
    content = load_data(tmp_path / 'iter_1.pth')
    hook.after_load_checkpoint(runner, content)
    assert not {'run_id', 'run_id_ancestors'} & content.keys()
    content['state_dict'] = dict(weight=torch.ones(2))
    with pytest.raises(CheckpointError, match='is of another network'):
        hook.after_load_checkpoint(runner, content)
    hook.file_backend = mock.Mock(**{'join_path.side_effect': lambda *parts: '/'.join(map(str, parts))})
    hook._remove('iter_3.pth')
    hook.file_backend.remove.assert_called_once_with('s3://bucket/runs/iter_3.pth')


def test_states_of_a_strategy_are_its_own(runner: Runner) -> None:
    runner._resume, runner.strategy = True, object()  # type: ignore[attr-defined]
    hook, checkpoint = CheckpointHook(), dict(run_id='a' * 32, run_id_ancestors={'b' * 32: 3}, other=1)
    for _ in range(2):
        hook.after_load_checkpoint(runner, checkpoint)
        assert hook._run == Run('a' * 32, {'b' * 32: 3})
        assert checkpoint == dict(other=1)


def test_a_checkpoint_of_a_validation_holds_the_numbers_of_training(tmp_path: Path) -> None:
    with mock.patch.object(ResumeHook, 'training_state', return_value=dict(of='training')):
        train(tmp_path, 1)
    assert load_data(tmp_path / 'iter_1.pth')['run_state']['ranks'] == [dict(of='training')]
