"""A resume goes on with the run of the folder, and deletes nothing but that run's own files."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.resumable import Run, find_fault, find_newest, run_of
from mmpelk.fault_tolerance.safe_loading import CheckpointError, load_data
from mmpelk.fault_tolerance.work_folder import WorkFolderLock
from tests.fault_tolerance.test_checkpoint_hook import Network, hook_of


class Ones(Dataset):
    """Four numbers."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(1)


def make_runner(
    folder: Path,
    iterations: int,
    resume: bool = False,
    load_from: Path | None = None,
    scheduler: Any = None,
    **checkpoint: Any,
):
    """A training of a weight that saves at every iteration."""
    settings = dict(type='mmpelk.CheckpointHook', by_epoch=False, interval=1) | checkpoint
    return Runner(
        Network(),
        work_dir=str(folder),
        train_dataloader=dict(dataset=Ones(), batch_size=1, sampler=dict(type='InfiniteSampler')),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=scheduler,
        default_hooks=dict(checkpoint=settings, logger=None),
        custom_hooks=[dict(type='mmpelk.ResumeHook')],
        resume=resume,
        load_from=None if load_from is None else str(load_from),
        log_level='ERROR',
        experiment_name=f'{folder.name}-{iterations}-{os.urandom(4).hex()}',
    )


def train(folder: Path, iterations: int, **options: Any) -> Runner:
    runner = make_runner(folder, iterations, **options)
    runner.train()
    return runner


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def edit(path: Path, to: Path, **info: Any) -> Path:
    """A checkpoint whose message hub says something else."""
    content = torch.load(path, weights_only=False)
    content['message_hub']['runtime_info'] |= info
    content['message_hub']['resumed_keys'] |= dict.fromkeys(info, True)
    torch.save(content, to)
    return to


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / 'home' / 'precious'
    folder.mkdir(parents=True)
    for name in ('thesis.tex', 'iter_1.pth', 'best_score_iter_1.pth'):
        (folder / name).write_text('x')
    return folder


@pytest.mark.parametrize('given', ['folder', 'file', 'climbing', 'list', 'number', 'of the folder, but no checkpoint'])
@pytest.mark.parametrize('key', ['interrupted_ckpt', 'best_ckpt', 'best_ckpt_score', 'keep_ckpt_ids', 'last_ckpt'])
def test_nothing_that_a_checkpoint_names_is_deleted(key: str, given: str, precious: Path, tmp_path: Path) -> None:
    train(tmp_path / 'first', 2)
    (tmp_path / 'second').mkdir()
    (tmp_path / 'second' / 'notes.txt').write_text('x')
    (tmp_path / 'second' / 'iter_7.pth').mkdir()  # a folder with the name of a checkpoint
    climbing = f'/../../{precious.relative_to(tmp_path)}/iter_1'
    value = {
        'folder': str(precious),
        'file': str(precious / 'iter_1.pth'),
        'climbing': [climbing, climbing, 7] if key == 'keep_ckpt_ids' else f'..{climbing}.pth',
        'list': [str(precious)],
        'number': 7,
        'of the folder, but no checkpoint': str(tmp_path / 'second' / 'notes.txt'),
    }[given]
    evil = edit(tmp_path / 'first' / 'iter_2.pth', tmp_path / 'evil.pth', **{key: value, 'best_score': -1.0})
    before = sorted(tmp_path.glob('home/**/*')) + sorted((tmp_path / 'first').iterdir())
    runner = make_runner(
        tmp_path / 'second', 4, resume=True, load_from=evil, max_keep_ckpts=1, save_best='score', rule='greater'
    )
    runner.train()
    hook = hook_of(runner)
    runner.train_loop._iter -= 1
    hook.after_val_epoch(runner, dict(score=0.5))
    hook.after_val_epoch(runner, dict(score=0.6))
    hook._wait()
    assert sorted(tmp_path.glob('home/**/*')) + sorted((tmp_path / 'first').iterdir()) == before
    assert (tmp_path / 'second' / 'notes.txt').exists()
    assert (tmp_path / 'second' / 'iter_7.pth').is_dir()


def test_a_copy_of_a_run_leaves_the_run_alone(tmp_path: Path) -> None:
    options = dict(max_keep_ckpts=1, save_best='score', rule='greater')
    runner = make_runner(tmp_path / 'run', 2, **options)
    runner.train()
    hook = hook_of(runner)
    runner.train_loop._iter -= 1
    hook.after_val_epoch(runner, dict(score=np.float32(0.1)))
    hook._save_checkpoint(runner)  # with the best one's name
    hook._wait()
    before = names(tmp_path / 'run')
    best = [name for name in before if name.startswith('best')]
    assert len(best) == 1
    shutil.copytree(tmp_path / 'run', tmp_path / 'run2')
    resumed = train(tmp_path / 'run2', 4, resume=True, **options)
    assert resumed._load_from.startswith(str(tmp_path / 'run2'))
    hook = hook_of(resumed)
    assert hook.best_ckpt_path == str(tmp_path / 'run2' / best[0])
    resumed.train_loop._iter -= 1
    hook.after_val_epoch(resumed, dict(score=0.05))  # not as good as the one before
    assert hook.best_ckpt_path == str(tmp_path / 'run2' / best[0])
    hook.after_val_epoch(resumed, dict(score=0.2))
    hook._wait()
    assert names(tmp_path / 'run') == before
    assert best[0] not in names(tmp_path / 'run2')  # its own copy has made room


@pytest.mark.parametrize('kept', [1, 2, 3])
def test_as_many_stay_as_are_to_be_kept(kept: int, tmp_path: Path) -> None:
    for iterations in (5, 7):
        train(tmp_path, iterations, resume=iterations > 5, max_keep_ckpts=kept)
        assert names(tmp_path) == [f'iter_{step}.pth' for step in range(iterations - kept + 1, iterations + 1)]


def test_files_of_another_training_make_no_room(tmp_path: Path) -> None:
    """Of an older one in the folder, whose names are those that the checkpoint says to be its own."""
    train(tmp_path / 'new', 2)
    train(tmp_path / 'other', 2, max_keep_ckpts=2)
    train(tmp_path / 'new', 4, resume=True, load_from=tmp_path / 'other' / 'iter_2.pth', max_keep_ckpts=1)
    assert names(tmp_path / 'new') == ['iter_1.pth', 'iter_2.pth', 'iter_4.pth']


def test_the_folder_of_checkpoints_is_locked_too(tmp_path: Path) -> None:
    """Work folders of one name in two places share it."""
    runner, locked = make_runner(tmp_path / 'run', 1, out_dir=str(tmp_path / 'large')), []
    runner.train_loop.run = lambda: locked.append(is_locked(tmp_path / 'large' / 'run'))
    runner.train()
    assert locked == [True]
    hook_of(runner).after_train(runner)
    assert not is_locked(tmp_path / 'large' / 'run')


def test_a_best_score_that_is_no_number_is_none(tmp_path: Path) -> None:
    train(tmp_path / 'first', 1)
    odd = edit(tmp_path / 'first' / 'iter_1.pth', tmp_path / 'odd.pth', best_score=float('nan'))
    runner = make_runner(tmp_path / 'run', 2, resume=True, load_from=odd, save_best='score', rule='greater')
    runner.train()
    hook_of(runner).after_val_epoch(runner, dict(score=0.5))
    hook_of(runner)._wait()
    assert any(name.startswith('best_score') for name in names(tmp_path / 'run'))


@pytest.mark.parametrize('whole', [True, False])
def test_the_format_before_archives_has_no_checksums(whole: bool, tmp_path: Path) -> None:
    train(tmp_path, 2)
    content = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    torch.save(content, tmp_path / 'iter_2.pth', _use_new_zipfile_serialization=False)
    if not whole:
        (tmp_path / 'iter_2.pth').write_bytes((tmp_path / 'iter_2.pth').read_bytes()[:-1])
    resumed = train(tmp_path, 3, resume=True)
    assert Path(resumed._load_from).name == ('iter_2.pth' if whole else 'iter_1.pth')


def test_a_branch_of_a_branch_knows_all_before_it() -> None:
    first, second, third = ('1' * 32, '2' * 32, '3' * 32)
    run = Run(first).branch(second, 5).branch(third, 9)
    limits = {first: 5, second: 9, third: 10**6}
    for run_id, last in limits.items():
        assert run.has(run_id, last)
        assert run_id == third or not run.has(run_id, last + 1)
    assert not run.has('4' * 32, 0)
    assert run_of({'run_id': run.id, 'run_id_ancestors': {**run.ancestors, '4' * 32: 10**30, 'x': 1}}) == run


def test_the_run_that_was_begun_last_is_resumed(tmp_path: Path) -> None:
    train(tmp_path, 4)
    train(tmp_path, 2)
    runner = make_runner(tmp_path, 3, resume=True)
    runner.train()
    assert Path(runner._load_from).name == 'iter_2.pth'
    ids = {name: load_data(tmp_path / name)['run_id'] for name in names(tmp_path)}
    assert ids['iter_1.pth'] == ids['iter_2.pth'] == ids['iter_3.pth'] != ids['iter_4.pth']


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    train(tmp_path, 2)
    runner = make_runner(tmp_path, 2)
    runner.train_loop.run = lambda: hook_of(runner).before_train(runner)  # ends before it saves anything
    runner.train()
    resumed = make_runner(tmp_path, 3, resume=True)
    resumed.train()
    assert resumed._load_from is None
    assert names(tmp_path) == ['iter_1.pth', 'iter_2.pth', 'iter_3.pth']


def test_a_damaged_one_gives_way_to_one_of_the_same_run(tmp_path: Path) -> None:
    train(tmp_path, 4)
    train(tmp_path, 2)
    (tmp_path / 'iter_2.pth').write_bytes((tmp_path / 'iter_2.pth').read_bytes()[:-100])
    runner = make_runner(tmp_path, 3, resume=True)
    runner.train()
    assert Path(runner._load_from).name == 'iter_1.pth'
    assert Path((tmp_path / 'last_checkpoint').read_text()).name == 'iter_3.pth'


def test_iterations_are_compared_as_numbers(tmp_path: Path) -> None:
    train(tmp_path, 10)
    (tmp_path / 'last_checkpoint').unlink()
    runner = make_runner(tmp_path, 11, resume=True)
    runner.train()
    assert Path(runner._load_from).name == 'iter_10.pth'


def test_one_that_was_not_named_yet_is_the_newest(tmp_path: Path) -> None:
    """Killed after the file was renamed, before `last_checkpoint` named it."""
    train(tmp_path, 3)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
    os.utime(tmp_path / 'last_checkpoint', ns=(0, os.stat(tmp_path / 'iter_2.pth').st_mtime_ns))
    runner = make_runner(tmp_path, 4, resume=True)
    runner.train()
    assert Path(runner._load_from).name == 'iter_3.pth'


def test_going_back_is_not_undone_by_the_next_resume(tmp_path: Path) -> None:
    train(tmp_path, 4)
    back = make_runner(tmp_path, 4, resume=True, load_from=tmp_path / 'iter_2.pth')
    back.train_loop.run = lambda: hook_of(back).before_train(back)  # ends before it saves anything
    back.train()
    runner = make_runner(tmp_path, 4, resume=True)
    runner.train()
    assert Path(runner._load_from).name == 'iter_2.pth'


@pytest.mark.parametrize('files', ['all', 'no run_id'])
def test_a_copy_goes_on_with_the_branch_of_its_original(files: str, tmp_path: Path) -> None:
    run, copy = tmp_path / 'run', tmp_path / 'copy'
    train(run, 5)
    back = make_runner(run, 3, resume=True, load_from=run / 'iter_2.pth')
    back.train()
    shutil.copytree(run, copy)
    ids = {name: load_data(copy / name)['run_id'] for name in names(copy)}
    assert ids['iter_2.pth'] == ids['iter_5.pth'] != ids['iter_3.pth']
    for index, path in enumerate([copy / 'last_checkpoint', copy / 'iter_3.pth', copy / 'iter_5.pth']):
        os.utime(path, (index, index))  # the abandoned one is the youngest file
    if files == 'no run_id':
        (copy / 'run_id').unlink()
    for name, chosen in [('iter_3.pth', 'iter_3.pth'), ('iter_2.pth', 'iter_2.pth')]:
        if name == 'iter_2.pth':  # the one of the branch is lost: the one that it goes on from counts
            (copy / 'iter_3.pth').write_bytes(b'')
        runner = make_runner(copy, 4, resume=True)
        runner.train_loop.run = lambda runner=runner: hook_of(runner).before_train(runner)
        runner.train()
        assert Path(runner._load_from).name == chosen
        (copy / 'last_checkpoint').write_text('iter_3.pth')


def test_checkpoints_without_an_id_are_one_run(tmp_path: Path) -> None:
    """Of mmengine's own hook, or of an earlier release."""
    train(tmp_path, 3)
    for name in names(tmp_path):
        content = torch.load(tmp_path / name, weights_only=False)
        del content['run_id']
        torch.save(content, tmp_path / name)
    (tmp_path / 'run_id').unlink()
    os.utime(tmp_path / 'last_checkpoint')
    runner = make_runner(tmp_path, 4, resume=True)
    runner.train()
    assert Path(runner._load_from).name == 'iter_3.pth'
    again = make_runner(tmp_path, 5, resume=True)
    again.train()
    assert Path(again._load_from).name == 'iter_4.pth'


@pytest.mark.parametrize('pointer', ['', '../elsewhere.pth', 's3://bucket/x.pth', '\0\n', 'iter_9.pth'])
def test_whatever_last_checkpoint_says(pointer: str, tmp_path: Path) -> None:
    train(tmp_path / 'run', 2)
    (tmp_path / 'run' / 'last_checkpoint').write_text(pointer)
    runner = make_runner(tmp_path / 'run', 3, resume=True)
    runner.train()
    assert Path(runner._load_from) == tmp_path / 'run' / 'iter_2.pth'


@pytest.mark.parametrize(
    ('part', 'value'),
    [
        *(('meta', value) for value in (None, [], 'x', dict(epoch='1', iter=1), dict(epoch=0, iter=-1), dict(iter=1))),
        ('meta', dict(epoch=0, iter=1, seed='x')),
        *(('message_hub', value) for value in ([], dict(log_scalars=[], runtime_info={}, resumed_keys={}), {})),
        *(('optimizer', value) for value in ([], None)),
        ('state_dict', []),
        ('run_state', 3),
    ],
)
def test_hostile_types_end_in_a_sentence(part: str, value: Any, tmp_path: Path) -> None:
    train(tmp_path, 1)
    content = torch.load(tmp_path / 'iter_1.pth', weights_only=False)
    torch.save(content | {part: value}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match=r'evil\.pth'):
        train(tmp_path, 2, resume=True, load_from=tmp_path / 'evil.pth')


ODD: dict[str, tuple[str, Any]] = {
    'no groups': ('optimizer.param_groups', 3),
    'a group more': ('optimizer.param_groups', [dict(params=[0]), dict(params=[1])]),
    'text as a rate': ('optimizer.param_groups.0.lr', 'x'),
    'no moments': ('optimizer.state', []),
    'text as a moment': ('optimizer.state.0', dict(momentum_buffer='x')),
    'a scaler of text': ('optimizer.loss_scaler', dict(scale='x')),
    'a base of nothing': ('optimizer.base_param_settings', 3),
    'no list of schedulers': ('param_schedulers', 3),
    'number as a scheduler': ('param_schedulers.0', 3),
    'text as a value': ('param_schedulers.0.base_values', ['x']),
    'text as an end': ('param_schedulers.0.end', 'x'),
    'number as a method': ('param_schedulers.0.step', 3),
    'number as a key': ('message_hub.runtime_info', {1: 2}),
    'text as an answer': ('message_hub.resumed_keys.iter', 'x'),
    'number as a name': ('state_dict', {1: torch.ones(1)}),
    'no random states': ('run_state.ranks', 3),
    'an epoch of nothing': ('run_state.batches', 0),
    'text as a place': ('run_state.place', 'x'),
    'a seed beyond': ('meta.seed', 2**70),
    'averages of nothing': ('ema_state_dict', [1]),
}


@pytest.mark.parametrize('kind', ODD)
def test_odd_states_end_in_a_sentence(kind: str, tmp_path: Path) -> None:
    scheduler = dict(type='PolyLR', by_epoch=False, end=10)
    train(tmp_path, 1, scheduler=dict(scheduler))
    content = torch.load(tmp_path / 'iter_1.pth', weights_only=False)
    (*path, last), value = ODD[kind][0].split('.'), ODD[kind][1]
    target = content
    for key in path:
        target = target[int(key) if key.isdigit() else key]
    target[int(last) if last.isdigit() else last] = value
    torch.save(content, tmp_path / 'iter_1.pth')
    with pytest.raises(CheckpointError, match=r'iter_1\.pth'):
        train(tmp_path, 2, resume=True, load_from=tmp_path / 'iter_1.pth', scheduler=dict(scheduler))


def test_running_statistics_of_another_network_are_refused(tmp_path: Path) -> None:
    network = torch.nn.BatchNorm1d(2, affine=False)
    content = dict(meta=dict(epoch=0, iter=1), message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}))
    weights = network.state_dict()
    for changed, fault in (({}, None), (dict(running_mean=torch.ones(3)), r'running_mean has shape \(2,\) here')):
        torch.save(dict(**content, optimizer={}, state_dict={**weights, **changed}), tmp_path / 'a.pth')
        found = find_fault(tmp_path / 'a.pth', network)
        assert found is None if fault is None else re.search(fault, found or '')


def test_a_branch_without_a_checkpoint_does_not_begin_anew(tmp_path: Path) -> None:
    """Killed before it had saved anything in a folder of its own."""
    train(tmp_path / 'first', 2)
    branch = make_runner(tmp_path / 'second', 4, resume=True, load_from=tmp_path / 'first' / 'iter_2.pth')
    branch.train_loop.run = lambda: hook_of(branch).before_train(branch)
    branch.train()
    with pytest.raises(CheckpointError, match=r'goes on from a checkpoint of another folder.*--resume FILE'):
        train(tmp_path / 'second', 4, resume=True)
    train(tmp_path / 'second', 4, resume=True, load_from=tmp_path / 'first' / 'iter_2.pth')
    again = train(tmp_path / 'second', 5, resume=True)
    assert Path(again._load_from).name == 'iter_4.pth'


@pytest.mark.parametrize('key', ['cfg', 'config'])
def test_a_resume_runs_no_config_of_a_checkpoint(key: str, tmp_path: Path) -> None:
    """mmengine's runner looks for the number of processes in one."""
    train(tmp_path, 1)
    content = torch.load(tmp_path / 'iter_1.pth', weights_only=False)
    content['meta'][key] = f'open({str(tmp_path / "ran")!r}, "w")'
    torch.save(content, tmp_path / 'evil.pth')
    train(tmp_path / 'other', 2, resume=True, load_from=tmp_path / 'evil.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.slow
def test_a_flipped_bit_is_seen_before_a_resume(tmp_path: Path) -> None:
    train(tmp_path, 3)
    content = bytearray((tmp_path / 'iter_3.pth').read_bytes())
    numbers = load_data(tmp_path / 'iter_3.pth')['run_state']['ranks'][0]['torch'].numpy().tobytes()
    content[content.index(numbers) + len(numbers) // 2] ^= 1
    (tmp_path / 'iter_3.pth').write_bytes(content)
    runner = make_runner(tmp_path, 4, resume=True)
    runner.train()
    assert Path(runner._load_from).name == 'iter_2.pth'


@pytest.mark.slow
def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    program = (
        'import sys; from mmpelk.fault_tolerance.work_folder import WorkFolderLock\n'
        f'lock = WorkFolderLock({str(tmp_path)!r}); print("locked", flush=True); sys.stdin.read()'
    )
    other = subprocess.Popen([sys.executable, '-c', program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b'locked\n'
        with pytest.raises(UserError, match=f'process {other.pid} on .* trains in .*--work-dir'):
            train(tmp_path, 1)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    train(tmp_path, 1)  # the lock of a dead process is none


def test_a_process_may_train_again_in_its_folder(tmp_path: Path) -> None:
    first = WorkFolderLock(tmp_path)
    WorkFolderLock(tmp_path).release()
    assert is_locked(tmp_path), 'by the first'
    first.release()
    assert not is_locked(tmp_path)


def is_locked(folder: Path) -> bool:
    """Whether a lock of another opening of the file is refused, as another process's is."""
    with open(folder / '.lock') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_lock_outlasts_copies_of_its_folder_and_earlier_runners(tmp_path: Path) -> None:
    failed, lock = WorkFolderLock(tmp_path / '.'), WorkFolderLock(tmp_path)
    shutil.copytree(tmp_path, tmp_path / 'copy', ignore=shutil.ignore_patterns('copy'))
    del failed
    assert is_locked(tmp_path)
    lock.release()


@pytest.mark.slow
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = WorkFolderLock(tmp_path)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b'.')
        signal.pause()
    try:
        os.read(read, 1)
        lock.release()
        assert not is_locked(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_links_in_a_work_folder_lead_to_nothing(tmp_path: Path) -> None:
    precious, folder = tmp_path / 'thesis.tex', tmp_path / 'run'
    folder.mkdir()
    precious.write_text('a year of work')
    for name in ('.last_checkpoint.tmp', '.run_id.tmp', '.iter_1.pth.tmp'):
        (folder / name).symlink_to(precious)
    train(folder, 1)
    assert names(folder) == ['iter_1.pth']
    (folder / '.lock').unlink()
    (folder / '.lock').symlink_to(precious)
    with pytest.raises(UserError, match=r'\.lock.* cannot be opened to lock the folder'):
        WorkFolderLock(folder)
    assert precious.read_text() == 'a year of work'


ONE_CYCLE = dict(type='OneCycleLR', by_epoch=False, eta_max=0.1, total_steps=10)


@pytest.mark.parametrize('strategy', ['cos', 'linear'])
@pytest.mark.parametrize('stored', [False, True], ids=['ours', 'as mmengine stores it'])
def test_a_scheduler_with_a_function_is_resumed(strategy: str, stored: bool, tmp_path: Path) -> None:
    scheduler = {**ONE_CYCLE, 'anneal_strategy': strategy}
    whole = train(tmp_path / 'whole', 5, scheduler=dict(scheduler))
    halfway = tmp_path / 'whole' / 'iter_2.pth'
    assert 'anneal_func' not in load_data(halfway)['param_schedulers'][0]
    if stored:
        content = load_data(halfway)
        content['param_schedulers'][0]['anneal_func'] = whole.param_schedulers[0].state_dict()['anneal_func']
        torch.save(content, halfway)
    train(tmp_path / 'resumed', 5, resume=True, load_from=halfway, scheduler=dict(scheduler))
    weights = [load_data(tmp_path / run / 'iter_5.pth')['state_dict']['weight'] for run in ('whole', 'resumed')]
    assert torch.equal(*weights)


def test_a_training_that_could_not_be_resumed_ends_at_its_first_checkpoint(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, 3)
    runner.message_hub.update_info('function', print, resumed=True)
    with pytest.raises(UserError, match=r'cannot be resumed: .*iter_1.*builtins\.print'):
        runner.train()
    assert names(tmp_path) == ['iter_1.pth']


STRAY: dict[str, Any] = dict(
    tensor=torch.ones(3),
    empty=torch.ones(()),
    array=np.ones(3),
    list=[1],
    text='x',
    long=dict(meta=dict(iter=10**6000)),
)


@pytest.mark.parametrize('content', STRAY)
def test_files_that_are_no_checkpoints_end_in_a_sentence(content: str, tmp_path: Path) -> None:
    torch.save(STRAY[content], tmp_path / 'iter_5.pth')
    newest = find_newest([tmp_path / 'iter_5.pth'], tmp_path, torch.nn.Linear(1, 1))
    assert newest.path is None
    assert newest.damaged == 1


def test_a_long_number_is_not_printed(tmp_path: Path) -> None:
    train(tmp_path, 1)
    content = load_data(tmp_path / 'iter_1.pth')
    content['meta']['epoch'] = -(10**6000)
    torch.save(content, tmp_path / 'iter_1.pth')
    fault = find_fault(tmp_path / 'iter_1.pth', Network())
    assert fault is not None
    assert 'meta.epoch is a negative one' in fault
