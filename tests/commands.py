"""Commands as a user types them, in a folder outside the project, and scripts as modules."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


def run(*command: object, cwd: Path, code: int = 0, **variables: object) -> str:
    """Run a command and return what it printed.

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


def mim() -> Path:
    """The ``mim`` of the running environment; the test is skipped where there is none."""
    path = Path(sys.executable).with_name('mim')
    if not path.exists():
        pytest.skip('mim is not installed')
    return path


def load_tool(path: Path) -> ModuleType:
    """A script as a module: importing the libraries once is cheaper than once a call.

    A module of its own at every call, so that what a test changes in it reaches no other test. What the script imports
    from its own folder is shared, as other imports are.

    Args:
        path: The script.
    """
    name = f'tool_{path.stem}'
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # as when it is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
