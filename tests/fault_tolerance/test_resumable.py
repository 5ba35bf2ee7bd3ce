"""A resume goes on with the run of the folder, and deletes nothing but that run's own files."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapperDict

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.resumable import Run, _is_like, find_fault, find_newest, misfit_of, run_of
from mmpelk.fault_tolerance.safe_loading import CheckpointError, load_data
from tests.fault_tolerance.tiny import Network, hook_of, make_runner, names, train

BEST = dict(max_keep_ckpts=1, save_best='score', rule='greater')


def resumed(folder: Path, iterations: int, **options: Any) -> str | None:
    """Name of the checkpoint that a resume goes on from."""
    path = train(folder, iterations, resume=True, **options)._load_from
    assert path is None or Path(path).parent == folder
    return Path(path).name if path else None


def begin(folder: Path, **options: Any) -> str | None:
    """A training that ends before it saves anything; returns what it would have gone on from."""
    runner = make_runner(folder, 4, **options)
    runner.train_loop.run = lambda: hook_of(runner).before_train(runner)
    runner.train()
    if runner._load_from and Path(runner._load_from).parent == folder:
        # Before it makes room for others: what is named is always there.
        assert (folder / 'last_checkpoint').read_text() == runner._load_from
    return runner._load_from and Path(runner._load_from).name


def validate(runner: Any, *scores: Any) -> None:
    """What the checkpoint hook does with scores of the last iteration."""
    hook_of(runner)._wait()
    runner.train_loop._iter -= 1
    for score in scores:
        hook_of(runner).after_val_epoch(runner, dict(score=score))
    hook_of(runner)._wait()
    runner.train_loop._iter += 1


def edit(path: Path, to: Path, **info: Any) -> Path:
    """A checkpoint whose message hub says something else."""
    content = torch.load(path, weights_only=False)
    content['message_hub']['runtime_info'] |= info
    content['message_hub']['resumed_keys'] |= dict.fromkeys(info, True)
    torch.save(content, to)
    return to


@pytest.mark.parametrize('given', ['folder', 'file', 'climbing', 'list', 'number', 'of the folder, but no checkpoint'])
def test_nothing_that_a_checkpoint_names_is_deleted(given: str, tmp_path: Path) -> None:
    precious, second = tmp_path / 'home' / 'precious', tmp_path / 'second'
    precious.mkdir(parents=True)
    for name in ('thesis.tex', 'iter_1.pth', 'best_score_iter_1.pth'):
        (precious / name).write_text('x')
    train(tmp_path / 'first', 2)
    (second / 'iter_7.pth').mkdir(parents=True)  # a folder with the name of a checkpoint
    (second / 'notes.txt').write_text('x')
    climbing = f'/../../{precious.relative_to(tmp_path)}/iter_1'
    value: Any = {
        'folder': str(precious),
        'file': str(precious / 'iter_1.pth'),
        'climbing': f'..{climbing}.pth',
        'list': [str(precious)],
        'number': 7,
        'of the folder, but no checkpoint': str(second / 'notes.txt'),
    }[given]
    said = dict.fromkeys(['interrupted_ckpt', 'best_ckpt', 'best_ckpt_score', 'keep_ckpt_ids', 'last_ckpt'], value)
    if given == 'climbing':
        said['keep_ckpt_ids'] = [climbing, climbing, 7]
    evil = edit(tmp_path / 'first' / 'iter_2.pth', tmp_path / 'evil.pth', **said, best_score=-1.0)
    before = sorted(tmp_path.glob('home/**/*')) + sorted((tmp_path / 'first').iterdir())
    validate(train(second, 4, resume=True, load_from=evil, **BEST), 0.5, 0.6)
    assert sorted(tmp_path.glob('home/**/*')) + sorted((tmp_path / 'first').iterdir()) == before
    assert (second / 'notes.txt').exists()
    assert (second / 'iter_7.pth').is_dir()


@pytest.mark.parametrize('way', ['../run/iter_2.pth', '../link/iter_2.pth', 'link.pth'])
def test_a_checkpoint_of_the_folder_may_be_named_in_any_way(way: str, tmp_path: Path) -> None:
    folder = tmp_path / 'run'
    train(folder, 3)
    (tmp_path / 'link').symlink_to(folder)
    (folder / 'link.pth').symlink_to('iter_2.pth')
    assert begin(folder, resume=True, load_from=folder / way) == Path(way).name
    assert (folder / 'last_checkpoint').read_text() == str(folder / way)


def test_a_folder_of_two_names_has_each_checkpoint_once(tmp_path: Path) -> None:
    options = dict(out_dir=str(tmp_path / 'large'))
    (tmp_path / 'large' / 'run').mkdir(parents=True)
    (tmp_path / 'run').symlink_to(tmp_path / 'large' / 'run')
    train(tmp_path / 'run', 1, **options)
    (tmp_path / 'run' / 'iter_1.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match='none of the 1 checkpoints of'):
        train(tmp_path / 'run', 2, resume=True, **options)


def test_a_lost_checkpoint_does_not_let_a_training_begin_anew(tmp_path: Path) -> None:
    """Where files of another training are there."""
    train(tmp_path / 'first', 1)
    train(tmp_path / 'run', 2, max_keep_ckpts=1)
    (tmp_path / 'first' / 'iter_1.pth').rename(tmp_path / 'run' / 'iter_1.pth')
    (tmp_path / 'run' / 'iter_2.pth').unlink()
    with pytest.raises(CheckpointError, match=r"'iter_2\.pth', which last_checkpoint names, is not there"):
        train(tmp_path / 'run', 3, resume=True)


def test_a_copy_of_a_run_leaves_the_run_alone(tmp_path: Path) -> None:
    runner = train(tmp_path / 'run', 2, **BEST)
    validate(runner, np.float32(0.1))
    runner.train_loop._iter -= 1
    hook_of(runner)._save_checkpoint(runner)  # with the best one's name
    hook_of(runner)._wait()
    before = names(tmp_path / 'run')
    (best,) = [name for name in before if name.startswith('best')]
    shutil.copytree(tmp_path / 'run', tmp_path / 'run2')
    runner = train(tmp_path / 'run2', 4, resume=True, **BEST)
    assert runner._load_from.startswith(str(tmp_path / 'run2'))
    assert hook_of(runner).best_ckpt_path == str(tmp_path / 'run2' / best)
    validate(runner, 0.05)  # not as good as the one before
    assert hook_of(runner).best_ckpt_path == str(tmp_path / 'run2' / best)
    validate(runner, 0.2)
    assert names(tmp_path / 'run') == before
    assert best not in names(tmp_path / 'run2')  # its own copy has made room


@pytest.mark.parametrize(('before', 'kept'), [(1, 1), (2, 2), (3, 3), (5, 2), (5, 1)])
def test_as_many_stay_as_are_to_be_kept(before: int, kept: int, tmp_path: Path) -> None:
    """Where a resumed training is to keep fewer, the first that it saves makes room at once."""
    for iterations, most in ((5, before), (6, kept), (7, kept)):
        runner = train(tmp_path, iterations, resume=iterations > 5, max_keep_ckpts=most)
        left = range(iterations - most + 1, iterations + 1)
        assert names(tmp_path) == [f'iter_{step}.pth' for step in left]
        assert [*hook_of(runner).keep_ckpt_ids] == [*left]


@pytest.mark.parametrize('kind', ['damaged', 'link'])
def test_only_files_of_the_run_make_room(kind: str, tmp_path: Path) -> None:
    """Not what has taken the place of one since: a file that says nothing of its run, a link to one elsewhere."""
    folder, path = tmp_path / 'run', tmp_path / 'run' / 'iter_1.pth'
    train(folder, 2, max_keep_ckpts=2)
    path.rename(tmp_path / 'elsewhere.pth')
    if kind == 'link':
        path.symlink_to(tmp_path / 'elsewhere.pth')
    else:
        path.write_text('x')
    train(folder, 4, resume=True, max_keep_ckpts=1)
    assert names(folder) == ['iter_1.pth', 'iter_4.pth']


def test_what_killed_writes_have_left_goes(tmp_path: Path) -> None:
    """Of checkpoints and of the best one; other files stay."""
    gone = ['.iter_1.pth.tmp', '.best_score_iter_1.pth.tmp']
    kept = ['iter_1.pth.tmp', '.notes.pth.tmp', '.iter_1.pth', '.best_score_iter_x.pth.tmp', '.iter_1.pth.tmp~']
    for name in (*gone, *kept):
        (tmp_path / name).write_text('x')
    begin(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} & {*gone, *kept} == {*kept}


def test_the_last_checkpoint_of_a_resumed_training_is_the_one_that_it_goes_on_from(tmp_path: Path) -> None:
    """Until it has saved one of its own: an error names it."""
    train(tmp_path / 'first', 3)
    shutil.copytree(tmp_path / 'first', tmp_path / 'copy')
    for options, name in (({}, 'iter_3.pth'), (dict(load_from=tmp_path / 'copy' / 'iter_2.pth'), 'iter_2.pth')):
        runner = make_runner(tmp_path / 'copy', 4, resume=True, **options)
        runner.train_loop.run = lambda runner=runner: hook_of(runner).before_train(runner)
        runner.train()
        assert runner.message_hub.get_info('last_ckpt') == str(tmp_path / 'copy' / name)


def test_files_of_another_training_make_no_room(tmp_path: Path) -> None:
    """Of an older one in the folder, whose names are those that the checkpoint says to be its own."""
    train(tmp_path / 'new', 2)
    train(tmp_path / 'other', 2, max_keep_ckpts=2)
    train(tmp_path / 'new', 4, resume=True, load_from=tmp_path / 'other' / 'iter_2.pth', max_keep_ckpts=1)
    assert names(tmp_path / 'new') == ['iter_1.pth', 'iter_2.pth', 'iter_4.pth']


def test_a_best_score_that_is_no_number_is_none(tmp_path: Path) -> None:
    train(tmp_path / 'first', 1)
    odd = edit(tmp_path / 'first' / 'iter_1.pth', tmp_path / 'odd.pth', best_score=float('nan'))
    validate(train(tmp_path / 'run', 2, resume=True, load_from=odd, **BEST), 0.5)
    assert any(name.startswith('best_score') for name in names(tmp_path / 'run'))


def cut(folder: Path, name: str, length: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-length])


def named_before(folder: Path) -> None:
    """Killed after the file was renamed, before `last_checkpoint` named it."""
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_2.pth'))
    os.utime(folder / 'last_checkpoint', ns=(0, os.stat(folder / 'iter_2.pth').st_mtime_ns))


def without_ids(folder: Path) -> None:
    """Of mmengine's own hook, or of an earlier release."""
    for name in names(folder):
        content = torch.load(folder / name, weights_only=False)
        del content['run_id']
        torch.save(content, folder / name)
    (folder / 'run_id').unlink()
    os.utime(folder / 'last_checkpoint')


def of_the_old_format(folder: Path) -> None:
    """Which has no checksums."""
    content = torch.load(folder / 'iter_3.pth', weights_only=False)
    torch.save(content, folder / 'iter_3.pth', _use_new_zipfile_serialization=False)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / 'iter_3.pth').read_bytes())
    numbers = load_data(folder / 'iter_3.pth')['run_state']['ranks'][0]['torch'].numpy().tobytes()
    content[content.index(numbers) + len(numbers) // 2] ^= 1
    (folder / 'iter_3.pth').write_bytes(content)


def of_no_iteration(folder: Path) -> None:
    content = torch.load(folder / 'iter_2.pth', weights_only=False)
    content['meta']['iter'] = 'x'
    torch.save(content, folder / 'iter_9.pth')


# What happens to a folder in which three iterations were trained, and what a resume goes on from.
FOLDERS: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    'begun once more': (lambda folder: train(folder, 2), 'iter_2.pth'),
    'begun once more, damaged': (lambda folder: (train(folder, 2), cut(folder, 'iter_2.pth', 100)), 'iter_1.pth'),
    'begun once more, nothing saved': (begin, None),
    'gone back': (lambda folder: begin(folder, resume=True, load_from=folder / 'iter_2.pth'), 'iter_2.pth'),
    'gone further back': (lambda folder: begin(folder, resume=True, load_from=folder / 'iter_1.pth'), 'iter_1.pth'),
    'ten, not named': (lambda folder: (train(folder, 10, resume=True), (folder / 'last_checkpoint').unlink()),
        'iter_10.pth'),
    'neither named nor with an id': (
        lambda folder: [(folder / each).unlink() for each in ('run_id', 'last_checkpoint')],
        'iter_3.pth'),
    **{f'run_id {text!r}': (lambda folder, text=text: (folder / 'run_id').write_bytes(text), 'iter_3.pth')
       for text in (b'', b'-', b'x\n\n', b'\xff\n- 2')},
    'of no iteration': (of_no_iteration, 'iter_3.pth'),
    'not named yet': (named_before, 'iter_3.pth'),
    'without ids': (without_ids, 'iter_3.pth'),
    'without ids, not named yet': (lambda folder: (without_ids(folder), named_before(folder)), 'iter_3.pth'),
    'the old format': (of_the_old_format, 'iter_3.pth'),
    'the old format, damaged': (lambda folder: (of_the_old_format(folder), cut(folder, 'iter_3.pth', 1)), 'iter_2.pth'),
    'a flipped bit': (flip_a_bit, 'iter_2.pth'),
    **{f'pointer {text!r}': (lambda folder, text=text: (folder / 'last_checkpoint').write_bytes(text), 'iter_3.pth')
       for text in (b'', b'../elsewhere.pth', b's3://bucket/x.pth', b'\0\n', b'iter_9.pth', b'\xff')},
}  # fmt: skip


@pytest.mark.parametrize('kind', FOLDERS)
def test_which_checkpoint_is_resumed_from(kind: str, tmp_path: Path) -> None:
    change, expected = FOLDERS[kind]
    train(tmp_path, 3)
    change(tmp_path)
    done = int(expected[5:-4]) if expected else 0
    assert resumed(tmp_path, done + 1) == expected
    assert Path((tmp_path / 'last_checkpoint').read_text()).name == f'iter_{done + 1}.pth'
    # It is of the same run, which the next resume finds.
    ids = [load_data(tmp_path / f'iter_{step}.pth').get('run_id') for step in (*([done] if done else []), done + 1)]
    assert len(set(ids)) == 1 or kind.startswith('gone')
    assert resumed(tmp_path, done + 2) == f'iter_{done + 1}.pth'


def test_what_is_skipped_is_told(tmp_path: Path) -> None:
    train(tmp_path, 3)
    (tmp_path / 'iter_3.pth').write_bytes((tmp_path / 'iter_3.pth').read_bytes()[:500])
    torch.save(dict(state_dict={}), tmp_path / 'iter_2.pth')
    newest = find_newest(sorted(tmp_path.glob('iter_*.pth')), tmp_path, Network())
    assert newest.path == str(tmp_path / 'iter_1.pth')
    assert newest.damaged == 2
    assert [name in line for name, line in zip(('iter_2.pth', 'iter_3.pth'), newest.skipped, strict=True)] == [True] * 2


def test_a_checkpoint_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    train(tmp_path / 'run', 2)
    assert begin(tmp_path / 'run', resume=True, load_from=Path('~/run/iter_1.pth')) == 'iter_1.pth'
    assert (tmp_path / 'run' / 'last_checkpoint').read_text() == str(tmp_path / 'run' / 'iter_1.pth')


def test_when_files_with_an_id_were_written_does_not_matter(tmp_path: Path) -> None:
    """A copy of a folder may have any times."""
    train(tmp_path, 3)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    for step in (1, 2, 3):
        os.utime(tmp_path / f'iter_{step}.pth', (step, step))
    found = find_newest(sorted(tmp_path.glob('*.pth')), tmp_path, Network())
    assert (Path(found.path or '').name, found.skipped) == ('iter_3.pth', [])


def test_runs_without_an_id_are_ancestors_too(tmp_path: Path) -> None:
    """What mmengine's own hook has written, up to the iteration that was resumed from."""
    train(tmp_path, 3)
    for step in (1, 2, 3):
        content = torch.load(tmp_path / f'iter_{step}.pth', weights_only=False)
        del content['run_id']
        torch.save(content, tmp_path / f'iter_{step}.pth')
    (tmp_path / 'run_id').write_text(Run(None).branch('a' * 32, 2).text())
    found = find_newest(sorted(tmp_path.glob('*.pth')), tmp_path, Network())
    assert (Path(found.path or '').name, found.run.id) == ('iter_2.pth', 'a' * 32)
    assert [reason.partition('/iter_')[2] for reason in found.skipped] == [
        "3.pth' is of another training, which was in this folder before"
    ]


def test_a_branch_of_a_branch_knows_all_before_it(tmp_path: Path) -> None:
    first, second, third = ('1' * 32, '2' * 32, '3' * 32)
    run = Run(first).branch(second, 5).branch(third, 9)
    limits = {first: 5, second: 9, third: 10**6}
    for run_id, last in limits.items():
        assert run.has(run_id, last)
        assert run_id == third or not run.has(run_id, last + 1)
    assert not run.has('4' * 32, 0)
    # Of mmengine's own hook, whose checkpoints have none.
    assert Run().has(None, 7)
    assert not Run().has(first, 0)
    branch = Run().branch(second, 160_000)
    (tmp_path / 'run_id').write_text(branch.branch(third, 2**47).text())
    assert find_newest([], tmp_path, Network()).run == branch.branch(third, 2**47)
    branch = Run().branch(second, 5)
    assert [branch.has(None, iteration) for iteration in (5, 6)] == [True, False]
    assert (Run().text(), branch.text()) == ('-', f'{second}\n- 5')
    assert (
        run_of(
            {'run_id': run.id, 'run_id_ancestors': {**run.ancestors, '4' * 32: 10**30, 'x': 1, 'ab': 2, '5' * 32: True}}
        )
        == run
    )


@pytest.mark.parametrize('files', ['all', 'no run_id'])
def test_a_copy_goes_on_with_the_branch_of_its_original(files: str, tmp_path: Path) -> None:
    run, copy = tmp_path / 'run', tmp_path / 'copy'
    train(run, 5)
    train(run, 3, resume=True, load_from=run / 'iter_2.pth')
    shutil.copytree(run, copy)
    with (copy / 'last_checkpoint').open('a') as pointer:
        pointer.write('\n')  # as an editor ends it
    ids = {name: load_data(copy / name)['run_id'] for name in names(copy)}
    assert ids['iter_1.pth'] == ids['iter_2.pth'] == ids['iter_5.pth'] != ids['iter_3.pth']
    for index, path in enumerate([copy / 'last_checkpoint', copy / 'iter_3.pth', copy / 'iter_5.pth']):
        os.utime(path, (index, index))  # the abandoned one is the youngest file
    if files == 'no run_id':
        (copy / 'run_id').unlink()
    assert begin(copy, resume=True) == 'iter_3.pth'
    # The one of the branch is lost: the one that it goes on from counts.
    (copy / 'last_checkpoint').write_text('iter_3.pth')
    (copy / 'iter_3.pth').write_bytes(b'')
    assert begin(copy, resume=True) == 'iter_2.pth'


def test_a_branch_without_a_checkpoint_does_not_begin_anew(tmp_path: Path) -> None:
    """Killed before it had saved anything in a folder of its own."""
    train(tmp_path / 'first', 2)
    options = dict(resume=True, load_from=tmp_path / 'first' / 'iter_2.pth')
    begin(tmp_path / 'second', **options)
    with pytest.raises(CheckpointError, match=r'goes on from a checkpoint of another folder.*--resume FILE'):
        train(tmp_path / 'second', 4, resume=True)
    train(tmp_path / 'second', 4, **options)
    assert resumed(tmp_path / 'second', 5) == 'iter_4.pth'


SCHEDULER = dict(type='PolyLR', by_epoch=False, end=10)
# Parts of a checkpoint, as paths with dots, and what is in their place.
ODD: list[tuple[str, Any]] = [
    *(('meta', value) for value in (None, [], 'x', dict(epoch='1', iter=1), dict(epoch=0, iter=-1), dict(iter=1))),
    *(('meta.seed', value) for value in ('x', 2**33)),
    ('meta.iter', 1.0),
    *(('message_hub', value) for value in ([], dict(log_scalars=[], runtime_info={}, resumed_keys={}), {})),
    ('message_hub', dict(log_scalars={}, runtime_info={})),
    *(
        ('message_hub.runtime_info', {1: 2}),
        ('message_hub.resumed_keys.iter', 'x'),
        ('message_hub.resumed_keys.iter', 1),
    ),
    *(('optimizer', value) for value in ([], None)),
    *(
        ('optimizer.param_groups', value)
        for value in (3, [dict(params=[0]), dict(params=[1])], [dict(params=[0, 1])], [3])
    ),
    ('optimizer.param_groups.0.params', 3),
    *(('optimizer.param_groups.0.lr', 'x'), ('optimizer.base_param_settings', 3)),
    ('optimizer.base_param_settings', dict(lr='x')),
    *(('optimizer.state', []), ('optimizer.state.0', dict(momentum_buffer='x'))),
    ('optimizer.loss_scaler', dict(scale='x')),
    *(('param_schedulers', 3), ('param_schedulers.0', 3), ('param_schedulers.0.base_values', ['x'])),
    *(('param_schedulers.0.end', 'x'), ('param_schedulers.0.step', 3), ('param_schedulers.0', {1: 2})),
    *(('state_dict', value) for value in ([], {1: torch.ones(1)}, {}, dict(weight='x'))),
    *(('run_state', 3), ('run_state.ranks', 3), ('run_state.batches', 0), ('run_state.place', 'x')),
    *(('run_state.sampler_seed', value) for value in ('x', 2**63)),
    *(('ema_state_dict', value) for value in ([1], {1: 2})),
]


@pytest.fixture(scope='module')
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('good')
    train(folder, 1, param_scheduler=dict(SCHEDULER))
    return folder / 'iter_1.pth'


@pytest.mark.parametrize(('where', 'value'), ODD, ids=str)
def test_odd_parts_end_in_a_sentence(where: str, value: Any, good: Path, tmp_path: Path) -> None:
    target = content = torch.load(good, weights_only=False)
    *path, last = (int(key) if key.isdigit() else key for key in where.split('.'))
    for key in path:
        target = target[key]
    target[last] = value
    torch.save(content, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match=r'evil\.pth'):
        train(tmp_path, 2, resume=True, load_from=tmp_path / 'evil.pth', param_scheduler=dict(SCHEDULER))


@pytest.mark.parametrize(('here', 'there', 'fits'), [
    *((0.1, 1, True), (0.1, torch.tensor(0.1), True), (0.1, 'x', False), (0.1, None, False), (3, [3], False)),
    *((True, False, True), (False, None, True), (True, 'x', False)),
    *(((0.9, 0.99), [0.9, 0.99], True), ((0.9, 0.99), (0.9,), False), ((0.9, 0.99), (0.9, 'x'), False)),
    *(([1.0], [1.0, 2.0], True), ([1.0], ['x'], False), ([], ['x'], True), ([1.0], 1.0, False)),
    *(('cos', 'linear', True), ('cos', None, False), ({}, {}, True), ({}, [], False)),
    *((None, 'x', True), (None, 3, True)),
])  # fmt: skip
def test_what_an_entry_of_a_state_may_be_replaced_by(here: Any, there: Any, fits: bool) -> None:
    assert _is_like(here, there) is fits


def test_each_of_several_optimizers_and_schedulers_is_looked_at(tmp_path: Path) -> None:
    runner = train(tmp_path, 1, param_scheduler=[dict(SCHEDULER), dict(SCHEDULER)])
    wrapper, schedulers = runner.optim_wrapper, runner.param_schedulers
    both = OptimWrapperDict(a=wrapper, b=wrapper)
    content = load_data(tmp_path / 'iter_1.pth')
    state, pair = content['optimizer'], content['param_schedulers']
    odd = [pair[0], {**pair[1], 'end': 'x'}]
    bad = {**state, 'param_groups': [{**state['param_groups'][0], 'lr': 'x'}]}
    for one, said in ((state, None), (bad, 'its optimizer has lr'), (None, 'its optimizer is of other groups')):
        assert (misfit_of(dict(optimizer=one), wrapper, None) or '').startswith(said or '')
        found = misfit_of(dict(optimizer=dict(a=state, b=one)), both, None)
        assert (found or None) is None if said is None else said.replace('optimizer', 'optimizer.b') in (found or '')
    for saved, given, said in (
        *(
            (pair, schedulers, None),
            (odd, schedulers, "'end' of another type"),
            (dict(a=pair), schedulers, 'not those'),
        ),
        *((dict(a=pair, b=pair), dict(a=schedulers, b=schedulers), None), (pair, dict(a=schedulers), 'not those')),
        *((dict(a=pair, b=odd), dict(a=schedulers, b=schedulers), "'end'"), (None, schedulers, None)),
    ):
        found = misfit_of(dict(optimizer=state, param_schedulers=saved), wrapper, given)
        assert found is None if said is None else said in (found or '')


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_weights_may_have_the_names_of_a_wrapper(prefix: str, good: Path, tmp_path: Path) -> None:
    content = load_data(good)
    for size, fault in ((1, None), (2, 'is of another network: weight has shape (1,) here, shape (2,) there')):
        content['state_dict'] = {f'{prefix}weight': torch.ones(size)}
        torch.save(content, tmp_path / 'a.pth')
        found = find_fault(tmp_path / 'a.pth', Network())
        assert found is None if fault is None else fault in (found or '')


def test_a_long_number_is_not_printed(good: Path, tmp_path: Path) -> None:
    content = load_data(good)
    content['run_state']['sampler_seed'] = None  # of a sampler that has none
    torch.save(content, tmp_path / 'iter_1.pth')
    assert find_fault(tmp_path / 'iter_1.pth', Network()) is None
    content['meta']['epoch'] = -(10**6000)
    torch.save(content, tmp_path / 'iter_1.pth')
    assert 'meta.epoch is a negative one' in (find_fault(tmp_path / 'iter_1.pth', Network()) or '')


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
    assert (newest.path, newest.damaged) == (None, 1)


def test_running_statistics_of_another_network_are_refused(tmp_path: Path) -> None:
    network = torch.nn.BatchNorm1d(2, affine=False)
    content = dict(meta=dict(epoch=0, iter=1), message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}))
    weights = network.state_dict()
    network.register_buffer('mask', torch.ones(2, dtype=torch.bool))
    for changed, fault in (
        ({}, None),
        (dict(running_mean=torch.ones(3)), r'running_mean has shape \(2,\) here'),
        (dict(mask=torch.ones(3, dtype=torch.bool)), None),  # which the hook that draws masks judges
    ):
        torch.save(dict(**content, optimizer={}, state_dict={**weights, **changed}), tmp_path / 'a.pth')
        found = find_fault(tmp_path / 'a.pth', network)
        assert found is None if fault is None else re.search(fault, found or '')


@pytest.mark.parametrize('part', ['meta', 'state_dict', 'message_hub', 'optimizer'])
def test_parts_that_are_missing_end_in_a_sentence(part: str, good: Path, tmp_path: Path) -> None:
    content = load_data(good)
    del content[part]
    torch.save(content, tmp_path / 'iter_1.pth')
    assert 'is no checkpoint to resume from' in (find_fault(tmp_path / 'iter_1.pth', Network()) or '')


@pytest.mark.parametrize('key', ['cfg', 'config'])
def test_a_resume_runs_no_config_of_a_checkpoint(key: str, good: Path, tmp_path: Path) -> None:
    """mmengine's runner looks for the number of processes in one."""
    content = torch.load(good, weights_only=False)
    content['meta'][key] = f'open({str(tmp_path / "ran")!r}, "w")'
    torch.save(content, tmp_path / 'evil.pth')
    train(tmp_path / 'other', 2, resume=True, load_from=tmp_path / 'evil.pth', param_scheduler=dict(SCHEDULER))
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('strategy', ['cos', 'linear'])
def test_a_scheduler_with_a_function_is_resumed(strategy: str, tmp_path: Path) -> None:
    """Its function is left out, and one that mmengine has stored is not taken."""
    settings = dict(type='OneCycleLR', by_epoch=False, eta_max=0.1, total_steps=10, anneal_strategy=strategy)
    whole = train(tmp_path / 'whole', 5, param_scheduler=dict(settings))
    halfway, stored = tmp_path / 'whole' / 'iter_2.pth', tmp_path / 'stored.pth'
    content = load_data(halfway)
    assert 'anneal_func' not in content['param_schedulers'][0]
    content['param_schedulers'][0]['anneal_func'] = whole.param_schedulers[0].state_dict()['anneal_func']
    torch.save(content, stored)
    expected = load_data(tmp_path / 'whole' / 'iter_5.pth')['state_dict']['weight']
    for path in (halfway, stored):
        train(tmp_path / path.stem, 5, resume=True, load_from=path, param_scheduler=dict(settings))
        assert torch.equal(load_data(tmp_path / path.stem / 'iter_5.pth')['state_dict']['weight'], expected)


def test_a_training_that_could_not_be_resumed_ends_at_its_first_checkpoint(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, 3)
    runner.message_hub.update_info('function', print, resumed=True)
    with pytest.raises(UserError, match=r'cannot be resumed: .*iter_1.*builtins\.print'):
        runner.train()
    assert names(tmp_path) == ['iter_1.pth']
