"""The steps of the report run as they should, and every command of its page is one that the tools understand."""

import argparse
import importlib
import io
import re
import shlex
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from mmpelk.engine.command_line import read_config
from reproduction.page import TEMPLATE
from reproduction.steps import STEPS, Step, run_steps
from tests.commands import load_tool, run
from tests.paths import ROOT

pytestmark = pytest.mark.slow
Steps = Callable[..., tuple[int | str | None, str]]


@pytest.fixture(name='run_steps')
def run_in_empty_folder(tmp_path: Path) -> Steps:
    """Run steps in an empty folder; the exit code, ``None`` after the last step, and what was printed."""

    def run(*steps: Step) -> tuple[int | str | None, str]:
        printed = io.StringIO()
        try:
            run_steps(Console(file=printed, width=200), steps, tmp_path)
        except SystemExit as end:
            return end.code, printed.getvalue()
        return None, printed.getvalue()

    return run


def python(code: str) -> str:
    """A command that runs some Python."""
    return f'python -c {shlex.quote(code)}'


def touch(name: str) -> str:
    """A command that makes an empty file in the folder that it runs in."""
    return python(f'open({name!r}, "w")')


def test_steps_run_in_order_and_in_this_python_each_with_a_log(
    run_steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands themselves and, by the variable, what the launchers start."""
    monkeypatch.setenv('PYTHON', 'another')
    monkeypatch.setenv('PATH', '')
    streams = 'open("made", "w"); import os, sys; print(os.environ["PYTHON"]); print(sys.executable, file=sys.stderr)'
    first, second = Step('first', python(streams)), Step('second', python('print(open("made").read() == "")'))
    code, printed = run_steps(first, second)
    assert code is None
    logs = {log.stem: log.read_text().split() for log in (tmp_path / 'work_dirs' / 'report').iterdir()}
    assert logs == dict(first=[sys.executable] * 2, second=['True'])
    assert printed.index(f'1/2 {first.command}') < printed.index(f'2/2 {second.command}')


def test_step_is_skipped_once_its_file_is_there(run_steps: Steps, tmp_path: Path) -> None:
    """What failed has not made its file; the finished ones before it are not repeated."""
    once = Step('once', python('open("once", "a").write("x")'), makes='once')
    assert run_steps(once, Step('again', python('raise SystemExit(1)'), makes='again'))[0] == 1
    code, printed = run_steps(once, Step('again', touch('again'), makes='again'), Step('always', touch('always')))
    assert code is None
    assert (tmp_path / 'once').read_text() == 'x'
    assert (tmp_path / 'again').exists()
    assert '1/3' not in printed
    (tmp_path / 'always').unlink()
    run_steps(once, Step('always', touch('always')))
    assert (tmp_path / 'always').exists(), 'a step without such a file runs every time'


def test_failing_step_stops_the_report_and_shows_the_end_of_its_log(run_steps: Steps, tmp_path: Path) -> None:
    # Brackets, which rich would take for markup, in the log alone.
    failing = 'import sys; print("beginning", "-" * 4000, chr(91) + "red" + chr(93) + "why"); sys.exit(3)'
    code, printed = run_steps(
        Step('before', touch('before')), Step('failing', python(failing)), Step('after', touch('after'))
    )
    assert code == 3
    assert (tmp_path / 'before').exists()
    assert not (tmp_path / 'after').exists()
    end = printed[printed.index(failing) + len(failing) :]
    assert '[red]why' in end, 'as it stands in the log'
    assert 'beginning' not in end
    assert 'failed with code 3; the whole log is in work_dirs/report/failing.log' in end
    assert 'beginning' in (tmp_path / 'work_dirs' / 'report' / 'failing.log').read_text()


class Parsed(Exception):
    """A tool has read its command line."""


@cache
def tool(path: str) -> ModuleType:
    """A script, or a module of the reproduction."""
    return load_tool(ROOT / path) if path.endswith('.py') else importlib.import_module(path)


def parse(path: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a script's own parser makes of words; the script is stopped before it does anything with it.

    Raises:
        SystemExit: If the parser refuses the words; it says why on the error stream.
    """
    monkeypatch.syspath_prepend((ROOT / path).parent)  # as when a script is run
    module, parse_args = tool(path), argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, args: list[str] | None = None, namespace: Any = None) -> None:
        raise Parsed(parse_args(self, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(sys, 'argv', [path, *words])
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        with pytest.raises(Parsed) as parsed:
            module.main()
    return parsed.value.args[0]


def python_script(words: list[str]) -> tuple[str, list[str]]:
    """The Python script that a command comes to, with its words; the launchers have tests of their own."""
    if words[:2] == ['python', '-m']:
        return words[2], words[3:]
    if words[0] == 'python':
        return words[1], words[2:]
    assert (ROOT / words[0]).is_file()
    launcher, config, *options = words
    if Path(launcher).name == 'run_seg.sh':
        return 'tools/train.py', ['configs/demo/upernet_pelk_nano_synthetic.py', '--cfg-options', config, *options]
    train = Path(launcher).name == 'dist_train.sh'
    processes = options.pop(0 if train else 1)
    assert processes.isdigit()
    return f'tools/{"train" if train else "test"}.py', [config, *options]


def commands() -> list[str]:
    """The commands of all steps, and those that the template writes out."""
    lines = re.findall(r'^    ((?:python |tools/|make |env ).*)$', TEMPLATE.read_text(), re.MULTILINE)
    assert len(lines) > 8
    return [*(step.command for step in STEPS), *lines]


@pytest.mark.parametrize('command', commands(), ids=lambda command: ' '.join(command.split()[:3]))
def test_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command) if word != 'env' and not word.startswith('WORK_DIR=')]
    if words[0] == 'make':
        assert run('make', '-n', words[1], cwd=ROOT)
        return
    script, given = python_script(words)
    args = parse(script, given, monkeypatch)
    if hasattr(args, 'config'):
        for toolbox in ('mmpretrain', 'mmdet', 'mmseg'):
            pytest.importorskip(toolbox)
        read_config(args.config, args.cfg_options)  # refuses keys that are nearly the config's
    if script == 'tools/analysis/erf.py':
        # Names, configs and options; the checkpoints are there after the report alone.
        models = [[name, config, 'random', *options] for name, config, _, *options in args.model or ()]
        assert len(tool(script).read_requests(models)) == len(models)


def test_batch_of_table_4_reaches_the_hooks_that_count_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's command of Table 4 addresses hooks by their position."""
    pytest.importorskip('mmpretrain')
    monkeypatch.chdir(ROOT)
    (command,) = [command for command in commands() if 'custom_hooks.' in command]
    args = parse(*python_script(shlex.split(command)), monkeypatch)
    cfg, plain = read_config(args.config, args.cfg_options), read_config(args.config)
    counts = cfg.optim_wrapper.accumulative_counts
    for hook, before, key in zip(cfg.custom_hooks, plain.custom_hooks, ('update_interval', 'interval'), strict=True):
        assert hook.type == before.type == {'update_interval': 'mmpelk.SparsityHook', 'interval': 'EMAHook'}[key]
        assert hook[key] == counts * before.get(key, 1)
    processes = int(shlex.split(command)[2])
    assert counts * processes * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size
