"""What ``tools/train.py`` and ``tools/test.py`` share: options, the config that they describe, and error messages."""

import argparse
import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from mmpelk.config import config_path, list_configs
from mmpelk.errors import DataError, UserError
from mmpelk.fault_tolerance.safe_loading import install_safe_loading
from mmpelk.models.weights.checkpoint import shorten

from .checks import check_option_names

# Messages of gloo and NCCL when another process is gone. Of several waiting collectives, gloo reports a timeout to one
# and a closed connection to the others.
_LOST = re.compile(
    r'closed by peer|reset by peer|Broken pipe|Timed out waiting|Read timeout|Write timeout|Wait timeout|Socket closed'
    r'|timeout caused pair closure|remote process exited|Watchdog caught'
)

# The default hooks that a runner has unless the config says ``None``.
_MMENGINES_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every MM tool has to ``parser``."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints; ./work_dirs/NAME_OF_CONFIG by default')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # Given by torch.distributed.launch; torchrun sets the environment variable instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` to ``parser``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=SettingsAction,
        metavar='KEY=VALUE',
        help='change settings of the config, for example train_dataloader.batch_size=4 model.backbone.init_cfg=None',
    )


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; ``--cfg-options`` that cannot be read are a usage error."""
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(vars(args).get('local_rank', 0)))
    return args


class SettingsAction(argparse.Action):
    """For ``argparse``: collects ``KEY=VALUE`` words, as :func:`parse_settings` reads them, in a dictionary."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        try:
            settings = parse_settings(values)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **settings})


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words: numbers, ``true``, ``false``, ``None``, text, and lists or tuples of those.

    mmengine's ``DictAction`` reads the same, but takes the spaces out of text, such as a folder's name, and does not
    return from some lists of lists.

    Raises:
        ValueError: If a word has no ``=``, or its value has brackets that do not match or belongs to a nested dict.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition('=')
        if not equals or not key or key != key.strip():
            raise ValueError(f'options are KEY=VALUE pairs without spaces around the =, got {word!r}')
        try:
            settings[key] = _read_value(value)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else 'too many brackets'
            raise ValueError(f'cannot read the value of {key}, {value[:200]!r}: {reason}') from error
    return settings


def _read_value(text: str) -> Any:
    text = text.strip().strip('\'"')
    if re.match(r'\{|dict\(', text):
        raise ValueError('set the keys of a dict one by one, as KEY.NAME=VALUE')
    parts = _split(text)
    if len(parts) > 1:
        return [_read_value(part) for part in parts]
    if not text.startswith(('(', '[')):
        return _read_scalar(text)
    kind: type = tuple if text[0] == '(' else list
    return kind(_read_value(part) for part in _split(text[1:-1]))


def _split(text: str) -> list[str]:
    """Parts between the commas that are in no brackets; the last may end with one, too."""
    closing, parts, start = [], [], 0
    for index, letter in enumerate(text):
        if letter in '([':
            closing.append(')' if letter == '(' else ']')
        elif letter in ')]' and (not closing or closing.pop() != letter):
            closing = ['unmatched']
            break
        elif letter == ',' and not closing:
            parts.append(text[start:index])
            start = index + 1
    if closing and (',' in text or text.startswith(('(', '['))):
        raise ValueError('its brackets do not match')
    return [*parts, text[start:]] if text[start:].strip() else parts


def _read_scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {'true': True, 'false': False}.get(text.lower(), None if text == 'None' else text)


def read_config(path: str, settings: Mapping[str, Any] | None = None) -> Config:
    """A config with some settings changed.

    Args:
        path: Path of the file, or the name of a recipe, as :func:`mmpelk.config_path` takes it.
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


class _ShortFormatter(logging.Formatter):
    """Shortens long messages on the terminal until the loop begins: the config, the environment, lists of hooks.

    Args:
        whole: Formats a message.
        file: Has all of it.
    """

    LINES = 8

    def __init__(self, whole: logging.Formatter, file: str | None) -> None:
        super().__init__()
        self.whole, self.file = whole, file
        self.shorten = file is not None

    def format(self, record: logging.LogRecord) -> str:
        """The message, or its first lines."""
        text = self.whole.format(record)
        lines = text.splitlines()
        if not self.shorten or len(lines) <= self.LINES or record.levelno > logging.INFO:
            return text
        first = next((line for line in lines[1:] if line.strip(' -=')), '')
        return f'{lines[0]} {first.strip()[:80]} ... {len(lines) - 1} lines in {self.file}'


class _ShortLogRunner(Runner):
    """mmengine's runner whose log is whole in its file, and short on the terminal before the first iteration."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """The logger, whose handlers of the terminal shorten."""
        logger = super().build_logger(*args, **kwargs)
        file = getattr(logger, 'log_file', None)
        self.short_formatters: list[_ShortFormatter] = []
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler and handler.formatter is not None:
                formatter = _ShortFormatter(handler.formatter, os.path.relpath(file) if file else None)
                handler.setFormatter(formatter)
                self.short_formatters.append(formatter)
        return logger

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks; messages are shown whole from the first iteration on."""
        super().call_hook(fn_name, **kwargs)
        if fn_name in ('before_train', 'before_val', 'before_test'):
            for formatter in self.short_formatters:
                formatter.shorten = False


def build_runner(cfg: Config) -> Runner:
    """mmengine's ``Runner``, or the one that the config names; a default hook that is ``None`` is left out."""
    if hooks := cfg.get('default_hooks'):  # mmengine leaves out its own alone, and fails at others
        cfg.default_hooks = {name: hook for name, hook in hooks.items() if hook is not None or name in _MMENGINES_HOOKS}
    return RUNNERS.build(cfg) if 'runner_type' in cfg else _ShortLogRunner.from_cfg(cfg)


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
    # A log on a full disk would print a traceback for every line.
    before, logging.raiseExceptions = logging.raiseExceptions, False
    shown = (AssertionError, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError)
    try:
        yield
    except shown as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error = DataError(  # which one process alone may see
                f'the disk is full: {error}. Make room, or write elsewhere with --work-dir; the last good checkpoint '
                'stays, go on with --resume'
            )
        ours = isinstance(error, UserError | FileNotFoundError) or not running or _is_of_building(error)
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
        if os.environ.get('MMPELK_TRACEBACK') == '1':
            raise
        if names := unused_parameters(error):
            if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
                print(
                    f'error: the loss does not depend on {shorten(names)}: leave stages whose maps nothing reads out '
                    'of model.backbone.out_indices, or give --cfg-options find_unused_parameters=True',
                    file=sys.stderr,
                )
            sys.exit(1)
        if not _LOST.search(str(error)):
            raise
        print(
            f'error: another process has ended or does not answer: {str(error).splitlines()[0]}. What it printed says '
            'why. --resume goes on from the newest checkpoint; env_cfg.dist_cfg.timeout=SECONDS is how long to wait',
            file=sys.stderr,
        )
        sys.exit(1)
    finally:
        logging.raiseExceptions = before


def unused_parameters(error: RuntimeError) -> list[str]:
    """Names of the parameters that an error of ``DistributedDataParallel`` gives by number; none if it is another."""
    numbers = re.search(r'did not receive grad for rank \d+:((?: \d+)+)', str(error))
    for frame, _ in traceback.walk_tb(error.__traceback__):
        wrapper = frame.f_locals.get('self')
        if numbers and isinstance(wrapper, nn.parallel.DistributedDataParallel):
            names = [name for name, value in wrapper.module.named_parameters() if value.requires_grad]
            return [names[int(number)] for number in numbers[1].split() if int(number) < len(names)]
    return []


def _is_of_building(error: Exception) -> bool:
    """Whether the error was raised while mmengine built a module of the config."""
    return any(
        frame.name.startswith('build_') and 'mmengine' in Path(frame.filename).parts
        for frame in traceback.extract_tb(error.__traceback__)
    )
