"""Commands as a user types them, in a folder outside the project, and scripts as modules."""

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from mmengine.utils import ManagerMixin

from tests.paths import ROOT


def run(*command: object, cwd: Path, code: int = 0, **variables: object) -> str:
    """Run a command in a process of its own and return what it printed; for tests marked ``slow``.

    Args:
        *command: The command's words.
        cwd: Folder to run in.
        code: Exit code that the command must have.
        **variables: Environment variables to add.
    """
    env = os.environ | {'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    env |= {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != code:
        pytest.fail(
            f'{" ".join(map(str, command))}\nexited with {done.returncode}:\n{done.stdout[-6000:]}', pytrace=False
        )
    return done.stdout


def call(tool: Path | str, *arguments: object, cwd: Path, code: int = 0) -> str:
    """Run a Python script or module in this process, which saves importing a toolbox anew, and return what it printed.

    It finds mmengine as in a process of its own: without the loggers, visualizers and scopes of others.

    Args:
        tool: The script, or the module's name; its function ``main`` is called.
        *arguments: The words after its name.
        cwd: Folder to run in.
        code: Exit code that it must have.
    """
    printed, returned = io.StringIO(), 0
    with (
        _inside(cwd),
        without_instances(),
        mock.patch.object(sys, 'argv', [str(tool), *map(str, arguments)]),
        mock.patch.dict(os.environ),  # the tools set LOCAL_RANK
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        try:
            (importlib.import_module(tool) if isinstance(tool, str) else load_tool(tool)).main()
        except SystemExit as end:
            returned = end.code if isinstance(end.code, int) else int(end.code is not None)
    assert returned == code, printed.getvalue()[-6000:]
    return printed.getvalue()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    previous = Path.cwd()  # contextlib.chdir came with Python 3.11
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(previous)


@contextlib.contextmanager
def without_instances() -> Iterator[None]:
    """Put mmengine's global instances aside."""
    with contextlib.ExitStack() as stack:
        kinds = list(ManagerMixin.__subclasses__())
        for kind in kinds:
            kinds += kind.__subclasses__()
            stack.enter_context(mock.patch.dict(kind._instance_dict, clear=True))
        yield


def mim() -> Path:
    """The ``mim`` of the running environment; the test is skipped where there is none."""
    path = Path(sys.executable).with_name('mim')
    if not path.exists():
        pytest.skip('mim is not installed')
    return path


def load_tool(path: Path) -> ModuleType:
    """A script as a module of its own at every call: what a test changes in it reaches no other test.

    Args:
        path: The script.
    """
    name = f'tool_{path.stem}'
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Parsed(Exception):
    """What a command line says, instead of what it does."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.found = args


def parse(tool: str, *words: str) -> argparse.Namespace:
    """What the parser of a tool makes of words; it is stopped before it does anything with them.

    Args:
        tool: A script, from the project's folder, or a module or package.
        *words: Those after its name.

    Raises:
        SystemExit: If the parser refuses the words, or nothing is parsed.
    """
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        raise Parsed(parse_args(parser, *given))

    with (
        mock.patch.object(argparse.ArgumentParser, 'parse_args', stop),
        mock.patch.object(sys, 'argv', [tool, *words]),
    ):
        try:
            if tool.endswith('.py'):
                load_tool(ROOT / tool).main()
            else:
                package = (ROOT / tool.replace('.', '/')).is_dir()
                importlib.import_module(f'{tool}.__main__' if package else tool).main()
        except Parsed as parsed:
            return parsed.found
    raise SystemExit(f'{tool} parses nothing')


def find_free_port() -> int:
    """A TCP port that nobody listens on, below those that the system gives to connections, so that none takes it."""
    ports = random.sample(range(12_000, 32_000), 100)
    for port in ports:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(('127.0.0.1', port))
            return port
    pytest.fail(f'none of the ports {ports} is free')


def is_running(process: int) -> bool:
    """Whether a process still runs; an ended one that nobody has asked about yet does not."""
    stat = Path('/proc', str(process), 'stat')
    try:
        return stat.read_text(encoding='utf-8').rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(fact: Callable[[], bool], explain: Callable[[], str] = lambda: 'it does not happen') -> None:
    """Wait until something is so; ten minutes are there for the case that it never comes to be.

    Args:
        fact: Whether it is.
        explain: What to print then.
    """
    limit = time.monotonic() + 600
    while not fact():
        if time.monotonic() > limit:
            pytest.fail(explain(), pytrace=False)
        time.sleep(0.05)


def program(contains: str, language: str = 'python', page: str = 'deployment.md') -> str:
    """The first program of a page that contains a word.

    Args:
        contains: The word.
        language: Of the program.
        page: Below ``docs/``.
    """
    text = (ROOT / 'docs' / page).read_text()
    programs = re.findall(rf'^ *```{re.escape(language)}\n(.*?)^ *```', text, re.MULTILINE | re.DOTALL)
    return next(found for found in programs if contains in found)
