"""The steps of the report run as they should, and every command of its page is one that the tools understand."""

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mmpelk.engine.command_line import read_config
from reproduction.page import TEMPLATE
from reproduction.steps import STEPS, Step, run_steps
from tests.commands import load_tool, parse, program, run
from tests.paths import ROOT

pytestmark = pytest.mark.slow


def python(name: str, code: str, makes: str | None = None) -> Step:
    """A step that runs some Python."""
    return Step(name, f'python -c {shlex.quote(code)}', makes)


def report(folder: Path, *steps: Step) -> tuple[int | str | None, str]:
    """Run steps in a folder; the exit code, ``None`` after the last step, and what was printed."""
    printed = io.StringIO()
    try:
        run_steps(Console(file=printed, width=200), steps, folder)
    except SystemExit as end:
        return end.code, printed.getvalue()
    return None, printed.getvalue()


def test_steps_run_in_order_and_in_this_python_each_with_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands themselves and, by the variable, what the launchers start."""
    monkeypatch.setenv('PYTHON', 'another')
    monkeypatch.setenv('PATH', '')
    first = 'open("made", "w"); import os, sys; print(os.environ["PYTHON"]); print(sys.executable, file=sys.stderr)'
    code, printed = report(tmp_path, python('first', first), python('second', 'print(open("made").read() == "")'))
    assert code is None
    logs = {log.stem: log.read_text().split() for log in (tmp_path / 'work_dirs/report').iterdir()}
    assert logs == dict(first=[sys.executable] * 2, second=['True'])
    assert printed.index('1/2 python -c') < printed.index('2/2 python -c')


def test_failing_step_stops_the_report_which_goes_on_where_it_stopped(tmp_path: Path) -> None:
    once = python('once', 'open("once", "a").write("x")', 'once')
    always = python('always', 'open("always", "a").write("x")')
    # Brackets, which rich would take for markup, in the log alone.
    failing = 'import sys; print("beginning", "-" * 4000, chr(91) + "red" + chr(93) + "why"); sys.exit(3)'
    code, printed = report(
        tmp_path, once, always, python('failing', failing, 'made'), python('after', 'open("no", "w")')
    )
    assert code == 3
    assert not (tmp_path / 'no').exists()
    end = printed[printed.index(failing) + len(failing) :]
    assert '[red]why' in end, 'as it stands in the log'
    assert 'beginning' not in end
    assert 'failed with code 3; the whole log is in work_dirs/report/failing.log' in end
    assert 'beginning' in (tmp_path / 'work_dirs/report/failing.log').read_text()
    assert report(tmp_path, once, always, python('failing', 'open("made", "w")', 'made'))[0] is None
    assert [(tmp_path / name).read_text() for name in ('once', 'always', 'made')] == ['x', 'xx', '']


def python_script(command: str) -> tuple[str, list[str]]:
    """The Python script that a command comes to, with its words; the launchers have tests of their own."""
    words = [word for word in shlex.split(command) if word not in ('env', 'python', '-m') and 'WORK_DIR=' not in word]
    script, *words = words
    if not script.endswith('.sh'):
        return script, words
    assert (ROOT / script).is_file()
    if script.endswith('run_seg.sh'):
        return 'tools/train.py', ['configs/demo/upernet_pelk_nano_synthetic.py', '--cfg-options', *words]
    train = script.endswith('dist_train.sh')
    assert words.pop(1 if train else 2).isdigit()
    return f'tools/{"train" if train else "test"}.py', words


LINES = re.findall(r'^    ((?:python |tools/|make |env ).*)$', TEMPLATE.read_text(), re.MULTILINE)


@pytest.mark.parametrize('command', [*(step.command for step in STEPS), *LINES])
def test_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if command.startswith('make '):
        assert run('make', '-n', command.split()[1], cwd=ROOT)
        return
    script, words = python_script(command)
    args = parse(script, *words)
    if hasattr(args, 'config'):
        for toolbox in ('mmpretrain', 'mmdet', 'mmseg'):
            pytest.importorskip(toolbox)
        read_config(args.config, args.cfg_options)  # refuses keys that are nearly the config's
    if script == 'tools/analysis/erf.py':
        # Names, configs and options; the checkpoints are there after the report alone.
        models = [[name, config, 'random', *options] for name, config, _, *options in args.model or ()]
        assert len(load_tool(ROOT / script).read_requests(models)) == len(models)


def test_batch_of_table_4_reaches_the_hooks_that_count_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that trains PeLK-T on 8 GPUs addresses hooks by their position."""
    pytest.importorskip('mmpretrain')
    monkeypatch.chdir(ROOT)
    command = program('custom_hooks.', 'bash', 'classification.md')
    script, words = python_script(command)
    args = parse(script, *words)
    cfg, plain = read_config(args.config, args.cfg_options), read_config(args.config)
    counts = cfg.optim_wrapper.accumulative_counts
    for hook, before, key in zip(cfg.custom_hooks, plain.custom_hooks, ('update_interval', 'interval'), strict=True):
        assert hook[key] == counts * before.get(key, 1)
    assert counts * int(command.split()[2]) * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size
