"""Checks before training starts; each refuses a mistake of the user with one sentence that names the remedy."""

import difflib
import mmap
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmpelk.errors import UserError
from mmpelk.mmcv_operators import compile_command, import_error
from mmpelk.models.weights.checkpoint import pretrained_cfgs

_SIMILAR = 0.85  # share of equal letters above which a new key is taken for a typing error


def check_option_names(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse ``--cfg-options`` keys that look like misspelt keys of the config.

    mmengine adds an unknown key silently. New keys are legitimate; one that resembles an existing key is mostly a
    typing error.

    Args:
        cfg: The config before the options are merged.
        options: Dotted keys and values.

    Raises:
        ValueError: If a key resembles one that exists beside it.
    """
    for key in options:
        node: Any = cfg
        for depth, part in enumerate(key.split('.')):
            if isinstance(node, Sequence) and not isinstance(node, str) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
                continue
            if not isinstance(node, Mapping | Config):
                break
            if part not in node:
                similar = difflib.get_close_matches(part, [name for name in node if isinstance(name, str)], 1, _SIMILAR)
                if similar:
                    right = '.'.join([*key.split('.')[:depth], similar[0]])
                    raise ValueError(f"--cfg-options {key}: the config has no such key; did you mean '{right}'?")
                break
            node = node[part]


def check_operators(cfg: Config) -> None:
    """Check that mmcv's operators are there if the config is a detector's, the one task that needs them.

    Raises:
        UserError: If they were never compiled, or for another torch.
    """
    if cfg.get('default_scope') != 'mmdet' or (error := import_error()) is None:
        return
    what = 'not compiled' if isinstance(error, ModuleNotFoundError) else f'compiled for another torch ({error})'
    raise UserError(
        f"detection needs mmcv's operators, which are {what} here: in a checkout's own environment "
        f'`tools/setup_env.sh det` compiles them in about three minutes, in another one `{compile_command()}` in ten'
    )


def _data(cfg: Config, loaders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Folders and files of data sets, and the dotted key of the data set that each belongs to."""
    for loader in loaders:
        for key, dataset in _find(cfg.get(loader), loader, ('data_root', 'ann_file', 'data_prefix')):
            yield from ((path, key) for path in _paths(dataset))


def missing_data(cfg: Config, loaders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Folders and annotation files of data sets that do not exist, each with the dotted key of its data set.

    Args:
        cfg: The config.
        loaders: Data loaders to look at, such as ``['train_dataloader']``; absent ones are skipped.
    """
    return ((path, key) for path, key in _data(cfg, loaders) if '://' not in path and not osp.exists(path))


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """Check that the folders and annotation files of data sets exist.

    Raises:
        FileNotFoundError: If one of :func:`missing_data` is found.
        UserError: If an annotation file holds NaN or infinity, which toolboxes drop or train on silently.
    """
    for path, key in missing_data(cfg, loaders):
        raise FileNotFoundError(
            f"the data '{path}' of {key} does not exist. Put the data set there, or name its folder with "
            f'--cfg-options {key}.data_root=FOLDER; docs/getting_started.md says how to get it'
        )
    for path, _ in _data(cfg, loaders):
        if path.endswith('.json') and osp.isfile(path) and osp.getsize(path):
            _check_numbers(path)


def missing_weights(cfg: Config) -> Iterator[tuple[str, str]]:
    """Files of pretrained weights that do not exist, each with the dotted key of its ``init_cfg``."""
    for key, init_cfg in _find(cfg.get('model'), 'model', ('checkpoint',)):
        if pretrained_cfgs(init_cfg) and _is_missing(init_cfg['checkpoint']):
            yield init_cfg['checkpoint'], key


def check_weights(cfg: Config) -> None:
    """Check that the files of pretrained weights exist.

    Raises:
        FileNotFoundError: If one of :func:`missing_weights` is found.
    """
    for path, key in missing_weights(cfg):
        raise FileNotFoundError(
            f"the pretrained weights '{path}' do not exist. Put the file there, give another with --cfg-options "
            f'{key}.checkpoint=FILE, or train from scratch with --cfg-options {key}=None (docs/training.md)'
        )


def check_checkpoint(path: str | None) -> None:
    """Check that a checkpoint to test, to load or to resume from exists; URLs and ``None`` pass.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    if _is_missing(path):
        raise FileNotFoundError(
            f"the checkpoint '{path}' does not exist; training writes checkpoints to its work folder, where the file "
            'last_checkpoint holds the name of the newest'
        )


def _check_numbers(path: str) -> None:
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for word in (b'NaN', b'Infinity'):  # as Python's json writes them
            at = text.find(word)
            while at >= 0:
                if _last_before(text, at) in b',[:':
                    around = text[max(0, at - 60) : at + 20].decode(errors='replace')
                    raise UserError(
                        f"the annotation file '{path}' holds {word.decode()}, which is no number: mend it, or take the "
                        f'annotation out: …{around}…'
                    )
                at = text.find(word, at + 1)


def _last_before(text: mmap.mmap, at: int) -> bytes:
    """The last byte that is neither blank nor a sign, or none."""
    while at > 0:
        at -= 1
        if text[at : at + 1] not in b' \t\r\n-':
            return text[at : at + 1]
    return b'?'


def _is_missing(path: object) -> bool:
    return isinstance(path, str) and '://' not in path and not osp.isfile(osp.expanduser(path))


def _find(node: Any, key: str, names: Sequence[str]) -> Iterator[tuple[str, Mapping]]:
    """Dictionaries under ``node`` that hold one of ``names``, and their dotted keys; pipelines are left out."""
    if isinstance(node, Mapping):
        if any(name in node for name in names):
            yield key, node
        for name, child in node.items():
            if name != 'pipeline':
                yield from _find(child, f'{key}.{name}', names)
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _find(child, f'{key}.{index}', names)


def _paths(dataset: Mapping) -> Iterator[str]:
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    prefixes = [prefix] if isinstance(prefix, str) else list(prefix.values())
    for path in [root, *(osp.join(root, part) for part in [*prefixes, dataset.get('ann_file')] if part)]:
        if path:
            yield path
