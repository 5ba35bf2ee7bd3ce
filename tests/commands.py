"""Commands as a user types them, in a folder outside the project."""

import os
import subprocess
import sys
from pathlib import Path

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
