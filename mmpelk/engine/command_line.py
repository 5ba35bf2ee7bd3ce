"""What ``tools/train.py`` and ``tools/test.py`` share: options, the config that they describe, and error messages."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmpelk.config import config_path, list_configs
from mmpelk.errors import DataError, UserError
from mmpelk.fault_tolerance.safe_loading import install_safe_loading

from .checks import check_option_names

# Messages of gloo and NCCL when another process is gone. Of several waiting collectives, gloo reports a timeout to one
# and a closed connection to the others.
_LOST = re.compile(
    r'closed by peer|reset by peer|Broken pipe|Timed out waiting|Read timeout|Write timeout|Wait timeout|Socket closed'
    r'|timeout caused pair closure|remote process exited|Watchdog caught'
)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every MM tool has to ``parser``."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints; ./work_dirs/NAME_OF_CONFIG by default')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change settings of the config, for example train_dataloader.batch_size=4 model.backbone.init_cfg=None',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # Given by torch.distributed.launch; torchrun sets the environment variable instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; ``--cfg-options`` without a ``=`` is a usage error."""
    try:
        args = parser.parse_args()
    except ValueError:  # mmengine's DictAction unpacks KEY=VALUE unchecked
        parser.error('--cfg-options takes KEY=VALUE pairs without spaces')
    os.environ.setdefault('LOCAL_RANK', str(vars(args).get('local_rank', 0)))
    return args


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words as ``--cfg-options`` reads them.

    Raises:
        ValueError: If a word has no ``=``.
    """
    if wrong := [word for word in words if '=' not in word]:
        raise ValueError(f'options are KEY=VALUE pairs without spaces, got {wrong[0]!r}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=DictAction)
    return parser.parse_args(['--cfg-options', *words]).cfg_options


def read_config(path: str, settings: Mapping[str, Any] | None = None) -> Config:
    """A config with some settings changed.

    Args:
        path: Of the file, or the name of a recipe, as :func:`mmpelk.config_path` takes it.
        settings: Dotted keys and values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is misspelt, or the file cannot be read as a config.
    """
    if not Path(path).is_file():
        try:
            path = config_path(path)
        except ValueError:
            known = ', '.join(list_configs())
            raise FileNotFoundError(f"there is no config '{path}'; the recipes under configs/: {known}") from None
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is code: anything can happen in it
        raise ValueError(f"cannot read the config '{path}': {type(error).__name__}: {error}") from error
    if settings:
        check_option_names(cfg, settings)
        cfg.merge_from_dict(dict(settings))
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """The config that the common options describe.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key of ``--cfg-options`` is misspelt, or the file cannot be read as a config.
    """
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    # Priority: command line, config, name of the config.
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(args.config).stem}'
    return cfg


def build_runner(cfg: Config) -> Runner:
    """mmengine's ``Runner``, or the one that the config names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


@contextmanager
def exit_on_user_error(running: bool = False) -> Iterator[None]:
    """Print a user's mistake as one line, without a traceback, and exit with code 1.

    Checkpoints are read as data from here on (:func:`~mmpelk.fault_tolerance.safe_loading.install_safe_loading`).
    Only rank 0 prints, except errors of a sample that another rank has, and of a lost process. The environment
    variable ``MMPELK_TRACEBACK=1`` gives the whole traceback instead.

    Args:
        running: Training or testing has begun, where most errors are our own: only :class:`UserError`, missing files
            and modules that the config cannot build are printed as one line. Before that, while the config is read and
            modules are built, most other errors are, too.
    """
    install_safe_loading()
    shown = (AssertionError, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError)
    try:
        yield
    except shown as error:
        ours = isinstance(error, UserError | FileNotFoundError) or not running or _in_building(error)
        if os.environ.get('MMPELK_TRACEBACK') == '1' or not ours:
            raise
        if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0' or isinstance(error, DataError):
            message = str(error)
            if not isinstance(error, FileNotFoundError | ValueError):  # not ours: from building some module
                detail = error.args[0] if isinstance(error, KeyError) and error.args else error
                message = f'{type(error).__name__}: {detail} (MMPELK_TRACEBACK=1 shows where)'
            print(f'error: {message}', file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        if os.environ.get('MMPELK_TRACEBACK') == '1' or not _LOST.search(str(error)):
            raise
        print(
            f'error: another process has ended or does not answer: {str(error).splitlines()[0]}. What it printed says '
            'why. --resume goes on from the newest checkpoint; env_cfg.dist_cfg.timeout=SECONDS is how long to wait',
            file=sys.stderr,
        )
        sys.exit(1)


def _in_building(error: Exception) -> bool:
    """Whether a module was being built that the config describes."""
    return any(
        frame.name.startswith('build_') and 'mmengine' in Path(frame.filename).parts
        for frame in traceback.extract_tb(error.__traceback__)
    )
