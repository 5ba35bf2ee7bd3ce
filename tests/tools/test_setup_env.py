"""``tools/setup_env.sh`` where things go wrong, with a stand-in for Python and pip."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import is_running, run, wait_for
from tests.paths import ROOT, TOOLS

pytestmark = pytest.mark.slow  # each starts the script

SETUP = TOOLS / 'setup_env.sh'
# What the stand-in is asked first in each step.
STEPS = {
    1: '-m venv',
    2: '-m pip install --upgrade pip',
    3: '-m pip install torch==',
    4: '-m pip install --force-reinstall --no-deps opencv-python-headless',
    5: '-m pip install --no-build-isolation --no-deps --editable',
    6: '-m pip wheel',
    7: '-m pip install --constraint requirements.txt --requirement requirements/dev.txt',
}
Setup = Callable[..., str]


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Folder of the stand-in, and of commands that go before the system's."""
    folder = tmp_path / 'a fake'
    folder.mkdir()
    shutil.copy(Path(__file__).with_name('fake_python.sh'), folder / 'python')
    (folder / 'Python.h').touch()
    write_command(folder / 'g++', 'exit 0')
    write_df(folder, free=50, temporary=50)
    return folder


@pytest.fixture
def variables(fake: Path, tmp_path: Path) -> dict[str, str]:
    return dict(
        PYTHON=str(fake / 'python'),
        FAKE=str(fake),
        VENV=str(tmp_path / 'the venv'),
        PATH=f'{fake}:{os.environ["PATH"]}',
        CUDA_HOME=str(tmp_path),  # no nvcc: what is tested is the build for the CPU
    )


@pytest.fixture
def setup(variables: dict[str, str]) -> Setup:
    """Run the script to its end."""

    def start(stage: str = 'test', code: int = 0, **more: str) -> str:
        return run(SETUP, stage, cwd=ROOT, code=code, **(variables | more))

    return start


def write_command(path: Path, text: str) -> None:
    path.write_text(f'#!/bin/sh\n{text}\n', encoding='utf-8')
    path.chmod(0o755)


def write_df(folder: Path, free: int, temporary: int) -> None:
    """A ``df`` that finds as many gigabytes where the environment goes and in the temporary folder."""
    table = "printf 'Filesystem 1024-blocks Used Available\\n/dev/vda 1 1 %d\\n'"
    write_command(folder / 'df', f'case $2 in /*) n={temporary} ;; *) n={free} ;; esac; {table} $((n * 1048576))')


def calls(fake: Path) -> list[str]:
    return (fake / 'calls').read_text().splitlines()


def begin(variables: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [SETUP, 'test'],
        cwd=ROOT,
        env=os.environ | variables,
        stderr=subprocess.PIPE,
        # Tests that a shell runs in the background, or nohup, hand down that signals are ignored.
        preexec_fn=lambda: [
            signal.signal(how, signal.SIG_DFL) for how in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
        ],
    )


def check_stopped(process: subprocess.Popen[bytes]) -> None:
    try:
        code = process.wait(300)
    except subprocess.TimeoutExpired:
        signals = re.findall('Sig.*|State.*', Path('/proc', str(process.pid), 'status').read_text(encoding='utf-8'))
        processes = run('ps', '-eo', 'pid,ppid,pgid,stat,wchan,args', '--forest', cwd=ROOT)
        pytest.fail(f'it goes on: {signals}\n{processes[-6000:]}')
    assert code == 130
    assert process.stderr is not None
    assert process.stderr.read().endswith(b'stopped\n')


class Hang:
    """The call in which the stand-in stops."""

    def __init__(self, fake: Path, call: str) -> None:
        self._reached = fake / 'reached'
        self._reached.unlink(missing_ok=True)
        (fake / 'hang').write_text(call)

    def wait(self) -> int:
        """The process that hangs."""
        wait_for(lambda: self._reached.exists() and self._reached.read_text().endswith('\n'))
        return int(self._reached.read_text())


def test_interrupted_in_every_step(fake: Path, variables: dict[str, str], setup: Setup) -> None:
    others = [(3, signal.SIGTERM), (3, signal.SIGHUP)]
    for step, how in sorted([*((step, signal.SIGINT) for step in STEPS), *others]):
        hang = Hang(fake, STEPS[step])
        process = begin(variables)
        compiler = hang.wait()
        process.send_signal(how)
        check_stopped(process)
        wait_for(lambda pid=compiler: not is_running(pid))
    (fake / 'hang').unlink()
    printed = setup()
    assert printed.endswith('venv is ready\n')
    assert printed.count('done before') == 6
    before = calls(fake)
    assert setup() == '', 'nothing is left to do'
    assert calls(fake) == before
    assert sum(call.startswith(STEPS[3]) for call in before) == 4, 'three were stopped, one was finished'


def test_interrupted_as_soon_as_a_step_has_begun(fake: Path, variables: dict[str, str]) -> None:
    """Right after the line that starts the job, where the shell of a busy machine may be held up."""
    held_up = 'set() { builtin set "$@"; [ "$1" != +m ] || until [ -e "$FAKE/sent" ]; do sleep 0.01; done; }\n'
    (fake / 'environment').write_text(held_up)
    hang = Hang(fake, STEPS[1])
    process = begin(variables | dict(BASH_ENV=str(fake / 'environment')))
    job = hang.wait()
    process.send_signal(signal.SIGINT)
    (fake / 'sent').touch()
    check_stopped(process)
    wait_for(lambda: not is_running(job))


def test_killed_in_every_step(fake: Path, variables: dict[str, str], setup: Setup) -> None:
    """What the killed script was waiting for goes on: the next one lets it end first."""
    process, compiler = begin(variables), None
    for call in STEPS.values():
        hang = Hang(fake, call)
        if compiler:
            os.kill(compiler, signal.SIGKILL)
        compiler = hang.wait()
        process.kill()
        process.wait()  # its standard error stays open in what it has started
        process = begin(variables)
        assert process.stderr is not None
        assert b'another set-up is at work' in process.stderr.readline()
    (fake / 'hang').unlink()
    assert compiler is not None
    os.kill(compiler, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 0
    assert said.endswith(b'venv is ready\n')
    assert setup() == ''


def test_packages_that_a_kill_left_half_installed(fake: Path, variables: dict[str, str], setup: Setup) -> None:
    setup('base')
    site = Path(variables['VENV']) / 'lib/python3.11/site-packages'
    for name, files in {
        'half-1.dist-info': ['METADATA'],
        'whole-1.dist-info': ['METADATA', 'RECORD'],
        '~orch': [],
    }.items():
        (site / name).mkdir()
        for file in files:
            (site / name / file).touch()
    setup('det')
    assert {path.name for path in site.iterdir()} == {'whole-1.dist-info', 'operators'}


def test_a_failed_step_says_which_and_is_begun_again(fake: Path, setup: Setup) -> None:
    (fake / 'fail').write_text(f'{STEPS[4]}\n')
    printed = setup(code=1)
    assert 'FAILED: installing the OpenMMLab toolboxes' in printed
    assert '    ERROR: of the test' in printed
    assert 'Remedy: Check the network.' in printed
    printed = setup(code=1, FAKE_MESSAGE='OSError: [Errno 28] No space left on device')
    assert 'Remedy: Free some (pip cache purge)' in printed
    (fake / 'fail').unlink()
    assert setup().count('done before') == 3


@pytest.mark.parametrize(('mark', 'word'), [('fail', 'do not compile'), ('useless', 'do not work')])
def test_operators_are_compiled_file_by_file_where_joined_files_fail(
    fake: Path, setup: Setup, mark: str, word: str
) -> None:
    (fake / mark).write_text('-m pip wheel\n')
    printed = setup('det')
    assert word in printed
    assert 'from every file, about' in printed
    assert sum(call.startswith('-m pip install --no-build-isolation --no-deps --force-re') for call in calls(fake)) == 1


def test_operators_that_work_are_not_compiled_again(fake: Path, variables: dict[str, str], setup: Setup) -> None:
    setup('det')
    (Path(variables['VENV']) / 'setup.step6').unlink()
    setup('test')
    assert sum(call.startswith('-m pip wheel') for call in calls(fake)) == 1


def test_no_network_is_said_at_once(variables: dict[str, str], setup: Setup) -> None:
    """With the real pip, which would try six times."""
    # Nobody listens on port 9, and nothing but this index is asked.
    settings = dict(PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS='')
    printed = setup('base', code=1, PYTHON=sys.executable, **settings)
    assert 'FAILED: pip cannot download from its package index' in printed
    assert 'export https_proxy=' in printed
    assert 'PIP_INDEX_URL=' in printed
    assert 'Retrying' not in printed
    assert '[2/5]' not in printed


@pytest.mark.parametrize(('free', 'temporary', 'said'), [
    (3, 50, '3 GB free for .*venv, and the set-up needs 10 GB'),
    (50, 1, '1 GB free in /.*, and pip needs 3 GB there'),
], ids=['disk', 'temporary folder'])  # fmt: skip
def test_little_space_is_said_before_anything_is_downloaded(
    fake: Path, variables: dict[str, str], setup: Setup, free: int, temporary: int, said: str
) -> None:
    write_df(fake, free, temporary)
    printed = setup(code=1)
    assert re.search(said, printed)
    assert 'Remedy: ' in printed
    assert not (fake / 'calls').exists()
    assert not Path(variables['VENV']).exists()


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(FAKE_UNSUPPORTED='1'), r'no Python 3.10, 3.11 or 3.12: PYTHON=/.*python is Python 3.11.0'),
    (dict(PYTHON='python3.99'), 'PYTHON=python3.99 is not there'),
])  # fmt: skip
def test_a_wrong_python_is_said(fake: Path, setup: Setup, changes: dict[str, str], said: str) -> None:
    printed = setup(code=1, **changes)
    assert re.search(said, printed)
    assert 'Remedy: install one' in printed


def test_unknown_stage_prints_the_usage(setup: Setup) -> None:
    assert 'tools/setup_env.sh [base|det|test]' in setup('everything', code=2)
