"""What ``--cfg-options`` mean, and runners without some of their default hooks."""

import argparse
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from torch import nn

import mmpelk
from mmpelk.engine.command_line import (
    SettingsAction,
    _ShortFormatter,
    _ShortLogRunner,
    add_common_options,
    build_runner,
    exit_on_user_error,
    load_config,
    parse_options,
    parse_settings,
)
from mmpelk.models import PeLK

VALUES = [
    '1', '-2', '0.5', '1e-3', 'inf', 'true', 'False', 'None', 'none', '', 'text', "'text'", '"7"', '1,2', 'a,b,', '[]',
    '()', '[1,2.5,x]', '(1,)', '[(1,2),(3,4)]', '([a,b],[None,true])', '[[1]]', '(1,2),x', 'a=b', 'a(1).txt',
    'C:\\data', 'nano(1', 'https://host/a?b=c',
]  # fmt: skip


@pytest.mark.parametrize('value', VALUES)
def test_values_without_spaces_are_those_of_mmengine(value: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    want = parser.parse_args(['--cfg-options', f'model.key={value}']).cfg_options
    got = parse_settings([f'model.key={value}'])
    assert got == want
    assert type(got['model.key']) is type(want['model.key'])


@pytest.mark.parametrize(
    ('value', 'want'),
    [
        ('/data/my own set/images', '/data/my own set/images'),
        ("'work dirs/first run'", 'work dirs/first run'),
        ('[/data/a b, /data/c  d]', ['/data/a b', '/data/c  d']),
        ('( 1, [two words, 3] )', (1, ['two words', 3])),
        ('[1],[2]', [[1], [2]]),
        ('(1,2),(3,4)', [(1, 2), (3, 4)]),
        ('scans (old) a', 'scans (old) a'),
    ],
)
def test_values_that_mmengine_changes_or_does_not_read(value: str, want: Any) -> None:
    assert parse_settings([f'key={value}']) == {'key': want}


@pytest.mark.parametrize(
    ('word', 'message'),
    [
        ('key', 'KEY=VALUE pairs without spaces around the =, got'),
        ('=1', 'KEY=VALUE pairs'),
        ('key =1', 'KEY=VALUE pairs'),
        ('key=[1,2', "cannot read the value of key, '[1,2': its brackets do not match"),
        ('key=(1,2]', 'do not match'),
        ('key=),(', 'do not match'),
        ('key=(1', 'do not match'),
        ('key=' + '[' * 5000 + ']' * 5000, 'too many brackets'),
        ('key=dict(type=BN)', r'one by one, as KEY.NAME=VALUE'),
        ('key={a: 1}', 'one by one'),
    ],
    ids=lambda value: value[:20],
)
def test_one_sentence_for_what_cannot_be_read(
    word: str, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        parse_settings([word])
    assert message in str(caught.value)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=SettingsAction)
    monkeypatch.setattr('sys.argv', ['tool', '--cfg-options', word])
    with pytest.raises(SystemExit, match='2'):
        parse_options(parser)
    printed = capsys.readouterr().err
    assert f'error: argument --cfg-options: {caught.value}' in printed
    assert len(printed.splitlines()) == 2  # usage, and the sentence


def test_options_given_twice_are_joined() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=SettingsAction)
    args = parser.parse_args(['--cfg-options', 'a=1', 'b=2', '--cfg-options', 'b=3'])
    assert args.cfg_options == {'a': 1, 'b': 3}


@pytest.mark.parametrize(
    ('word', 'variable', 'rank'), [(None, None, '0'), ('2', None, '2'), ('2', '3', '3'), (None, '3', '3')]
)
@pytest.mark.parametrize('option', ['--local_rank', '--local-rank'])
def test_the_rank_on_its_machine_is_the_launchers(
    option: str, word: str | None, variable: str | None, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's variable comes before the option of older launchers."""
    monkeypatch.setattr(os, 'environ', dict(LOCAL_RANK=variable) if variable else {})
    monkeypatch.setattr('sys.argv', ['tool', *([f'{option}={word}'] if word else [])])
    parser = argparse.ArgumentParser()
    add_common_options(parser)
    parse_options(parser)
    assert os.environ['LOCAL_RANK'] == rank


@pytest.mark.parametrize(('word', 'entry', 'used'), [
    (None, None, './work_dirs/my.first'), (None, 'of the config', 'of the config'),
    ('given', None, 'given'), ('given', 'of the config', 'given'),
])  # fmt: skip
def test_the_work_folder_is_that_of_the_command_line(
    word: str | None, entry: str | None, used: str, tmp_path: Path
) -> None:
    (tmp_path / 'my.first.py').write_text(f'work_dir = {entry!r}' if entry else '')
    args = argparse.Namespace(
        config=str(tmp_path / 'my.first.py'), cfg_options=dict(a=1), launcher='slurm', work_dir=word
    )
    cfg = load_config(args)
    assert (cfg.work_dir, cfg.launcher, cfg.a) == (used, 'slurm', 1)


@pytest.mark.parametrize('hook', ['before_train', 'before_val', 'before_test', 'before_run'])
def test_messages_are_whole_when_any_loop_has_begun(hook: str) -> None:
    runner = _ShortLogRunner.__new__(_ShortLogRunner)
    runner.short_formatters = [SimpleNamespace(shorten=True), SimpleNamespace(shorten=True)]  # type: ignore[list-item]
    with mock.patch.object(Runner, 'call_hook') as called:
        runner.call_hook(hook, batch_idx=3)
    called.assert_called_once_with(hook, batch_idx=3)
    assert [formatter.shorten for formatter in runner.short_formatters] == [hook == 'before_run'] * 2


HOOKS = mmpelk.get_config('seg/upernet_pelk_t_ade20k.py').default_hooks.to_dict()


def hooks_of(folder: Path, hooks: dict[str, Any]) -> list[str]:
    model = dict(type='mmpelk.PeLK', depths=(1,), channels=(8,), kernel_sizes=(7,))
    cfg = Config(dict(model=model, work_dir=str(folder), default_scope='mmseg', default_hooks=hooks, log_level='ERROR'))
    return sorted(type(hook).__name__ for hook in build_runner(cfg).hooks)


@pytest.mark.scope('mmseg')
def test_every_default_hook_can_be_left_out(tmp_path: Path) -> None:
    everything = hooks_of(tmp_path, HOOKS)
    assert len(HOOKS) > 8
    for name, hook in HOOKS.items():
        found = hooks_of(tmp_path, HOOKS | {name: None})
        assert sorted([*found, hook['type'].removeprefix('mmpelk.')]) == everything, name
    assert 'RuntimeInfoHook' not in hooks_of(tmp_path, HOOKS | dict(runtime_info=None))


def test_long_messages_are_short_on_the_terminal_until_the_loop_begins(tmp_path: Path, capsys: Any) -> None:
    """The log's file has every line; warnings, and messages from the first iteration on, are shown whole."""
    cfg = Config(
        dict(
            model=dict(type='mmpelk.PeLK', depths=(1,), channels=(8,), kernel_sizes=(5,), out_indices=(0,)),
            work_dir=str(tmp_path),
            experiment_name='short_on_the_terminal',
            **{f'setting_{index}': index for index in range(40)},
        )
    )
    runner = build_runner(cfg)
    long = '\n'.join(f'line {index}' for index in range(20))
    runner.logger.info(f'before\n{long}')
    runner.logger.warning(f'wrong\n{long}')
    runner.call_hook('before_val')
    runner.logger.info(f'table\n{long}')
    printed = capsys.readouterr().out
    (log,) = tmp_path.rglob('*.log')
    written = log.read_text()
    assert 'setting_39' not in printed
    assert 'setting_39' in written
    assert [line.count('line 19') for line in (printed, written)] == [2, 3]
    assert '... 20 lines in ' in printed
    assert log.name in printed
    assert _ShortFormatter(logging.Formatter(), None).format(logging.makeLogRecord(dict(msg=long))) == long, 'no file'


@pytest.mark.usefixtures('one_process')
def test_parameters_that_the_loss_does_not_depend_on(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PeLK(depths=(1, 1), channels=(8, 12), kernel_sizes=(7, 5), out_indices=(0, 1))
    model.downsample_layers[0].requires_grad_(False)  # which the numbers leave out
    wrapped = nn.parallel.DistributedDataParallel(model)

    def step() -> None:
        wrapped(torch.rand(2, 3, 32, 32))[1].sum().backward()

    step()
    for rank in ('1', '0'):  # which alone speaks
        assert 'error: ' not in capsys.readouterr().err
        monkeypatch.setenv('RANK', rank)
        with pytest.raises(SystemExit, match='1'), exit_on_user_error(running=True):
            step()
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith('error: the loss does not depend on norm0.weight, norm0.bias: ')
    assert 'out_indices' in printed
    assert 'find_unused_parameters=True' in printed
    with pytest.raises(RuntimeError, match='another'), exit_on_user_error(running=True):
        raise RuntimeError('another')
