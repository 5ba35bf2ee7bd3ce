"""A full disk in one line, wherever a command meets it."""

import errno
import logging
import os
from unittest import mock

import pytest
from mmengine.runner import CheckpointLoader

from mmpelk.engine.command_line import exit_on_user_error


def _meet(number: int) -> None:
    assert not logging.raiseExceptions
    raise OSError(number, os.strerror(number), 'scalars.json')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_in_one_line(number: int, capsys: pytest.CaptureFixture) -> None:
    """In every write, also that of a log between two checkpoints; a log prints no traceback for each line."""
    before = logging.raiseExceptions
    with (
        mock.patch.object(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy()),
        pytest.raises(SystemExit),
        exit_on_user_error(running=True),
    ):
        _meet(number)
    printed = capsys.readouterr().err
    assert printed.startswith(f'error: the disk is full: [Errno {number}]')
    assert 'scalars.json' in printed
    assert '--resume' in printed
    assert logging.raiseExceptions == before


def test_other_errors_of_files_are_ours_while_training_runs() -> None:
    with (
        mock.patch.object(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy()),
        pytest.raises(OSError, match='x'),
        exit_on_user_error(running=True),
    ):
        raise OSError(errno.EIO, 'x')
