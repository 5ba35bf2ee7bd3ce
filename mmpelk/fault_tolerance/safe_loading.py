"""Reading checkpoints as data: no file can run code.

A ``.pth`` is a pickle, and a pickle may call anything. :func:`load_data` builds tensors, plain containers and what
mmengine writes, and refuses everything else. :func:`install_safe_loading` puts it behind mmengine's loader.
"""

import contextlib
import difflib
import functools
import hashlib
import io
import json
import logging
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models, get_mmcls_models
from mmengine.runner.checkpoint import get_torchvision_models as torchvision_models
from torch.hub import download_url_to_file, get_dir

from .errors import UserError
from .pickled_data import Location, read_pickled

__all__ = ['CheckpointError', 'check_integrity', 'install_safe_loading', 'load_data', 'read_checkpoint']

TRUST = 'MMPELK_TRUST_CHECKPOINT'
SAFE_LOADING = f'Checkpoints are read as data: a file that would run code is refused ({TRUST}=1 loads your own anyway)'
_AGAIN = 'Copy or download it again'
_MMENGINE = 'mmengine.runner.checkpoint'


class CheckpointError(UserError):
    """A checkpoint that is refused: incomplete, of another kind, or wanting to run code."""


def load_data(source: str | Path | BinaryIO, map_location: Location = None, name: object = None) -> Any:
    """Read a checkpoint, ``.pth`` or ``.safetensors``, as data. Threads may read at once.

    Args:
        source: Path of a local file, or an open one.
        map_location: As ``torch.load`` takes it. ``'meta'`` reads all but the numbers of tensors.
        name: What to call it in messages, if not by its path.

    Returns:
        What was saved. A ``.safetensors`` gives a dict of ``state_dict`` and ``meta``, as mmengine has it.

    Raises:
        CheckpointError: If the file holds anything but data, cannot be read, or is damaged: the numbers are compared
            with the checksums of the archive. ``MMPELK_TRUST_CHECKPOINT=1`` lets files run code.
    """
    name = name or source
    if str(name).endswith('.safetensors'):
        return _load_safetensors(source, map_location, name)
    try:
        if os.environ.get(TRUST) == '1':
            where: Any = map_location
            return torch.load(source, map_location=where, weights_only=False)
        with open(source, 'rb') if isinstance(source, str | Path) else contextlib.nullcontext(source) as file:
            content = read_pickled(file, map_location)
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(_explain(source, name, error)) from error
    _check_parts(content, name)
    return content


def _check_parts(content: Any, name: object) -> None:
    """Refuse a checkpoint whose parts are not what every reader takes them for."""
    parts = content if isinstance(content, dict) else {}
    wanted = {key: parts[key] for key in ('meta', 'state_dict', 'message_hub') if parts.get(key) is not None}
    for part, keys in dict(meta=['dataset_meta'], message_hub=['log_scalars', 'runtime_info', 'resumed_keys']).items():
        if isinstance(inner := wanted.get(part), dict):
            wanted |= {f'{part}.{key}': inner[key] for key in keys if inner.get(key) is not None}
    for key, value in wanted.items():
        if not isinstance(value, dict):
            raise CheckpointError(f"'{name}' is no checkpoint: its {key} is of type {type(value).__name__}, not dict")


def load_from_local(path: str, map_location: Location = None) -> Any:
    """:func:`load_data` of a local file, with ``~`` for the home folder.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: As :func:`load_data`.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the checkpoint '{path}' does not exist")
    return load_data(path, map_location)


def check_integrity(path: str | Path) -> None:
    """Compare the content of a ``.pth`` with the checksums that it holds; what was written before torch 1.6 has none.

    Raises:
        CheckpointError: If they differ, or the file is incomplete.
    """
    if not zipfile.is_zipfile(path):
        load_data(path, 'cpu')
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(_explain(path, path, error)) from error
    if damaged:
        raise CheckpointError(f"'{path}' is damaged: the checksum of '{damaged}' differs. {_AGAIN}")


def _explain(source: object, name: object, error: Exception) -> str:
    if str(error) == 'TorchScript':
        return f"'{name}' is a TorchScript program, not weights. Ask its author for the state dict"
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    if found and found[1].startswith('torch._utils._rebuild_'):
        return (
            f"'{name}' is not read: it holds tensors of another kind than numbers in memory (sparse, quantised, nested "
            f'or without numbers; {found[1]}). Save them dense, such as by .to_dense() or .dequantize()'
        )
    if found:
        return (
            f"'{name}' is refused: it wants {found[1]}, which is not data but code that the file would run. Weights "
            f'need none: do not trust the file. If it is your own, {TRUST}=1 loads it'
        )
    # torch without CUDA asserts that it has it.
    if isinstance(error, RuntimeError | AssertionError) and re.search('CUDA|NVIDIA', str(error)):
        return f"'{name}' was saved on a GPU, which is not here: give map_location='cpu'"
    if isinstance(error, OSError) and error.filename:
        return f"'{name}' cannot be read: {error.strerror}"
    if isinstance(error, UnpicklingError) and str(error):
        return (
            f"'{name}' is not a checkpoint that is read as data: it holds {error}. {_AGAIN}; if it is your own, "
            f'{TRUST}=1 loads it'
        )
    head = b''
    if isinstance(source, str | Path):
        head = Path(source).read_bytes()[:2] if Path(source).stat().st_size < 2**16 else _head(source)
        if not head:
            return f"'{name}' is empty. {_AGAIN}; --resume without a name takes the newest checkpoint that loads"
    if head == b'PK':
        return f"'{name}' is incomplete or damaged. {_AGAIN}; --resume without a name takes the newest one that loads"
    return f"'{name}' is not a checkpoint, or a damaged one ({type(error).__name__}). {_AGAIN}, as .pth or .safetensors"


def _head(path: str | Path) -> bytes:
    with open(path, 'rb') as file:
        return file.read(2)


def _load_safetensors(source: str | Path | BinaryIO, map_location: Location, name: object) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UserError(f"reading '{name}' takes the package safetensors: pip install safetensors") from error
    if not isinstance(source, str | Path):
        raise UserError(f"'{name}' has to be a local file to be read: download it first")
    is_meta = str(map_location) == 'meta'  # which safetensors does not know
    device = str(map_location) if isinstance(map_location, str | torch.device) and not is_meta else 'cpu'
    try:
        with safe_open(str(source), framework='pt', device=device) as file:
            header = file.metadata() or {}
            state = OrderedDict((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118 - it is no dict
        texts = {key: json.loads(header[key]) for key in ('dataset_meta', 'state_dict_metadata') if header.get(key)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{name}' is incomplete or no .safetensors file ({error}). {_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{name}' is refused: a text in its header is no JSON ({error})") from error
    metadata = texts.pop('state_dict_metadata', {})  # of its modules, as torch.save writes it
    if not isinstance(metadata, dict) or not all(isinstance(value, dict) for value in metadata.values()):
        raise CheckpointError(f"'{name}' is refused: state_dict_metadata in its header is not a dict for each module")
    if is_meta:
        state = OrderedDict((key, value.to('meta')) for key, value in state.items())
    state._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    content = {'meta': texts, 'state_dict': state}
    _check_parts(content, name)
    return content


def load_from_http(url: str, map_location: Location = None) -> Any:
    path, fault = _cached(url), ''
    # The first process of each machine, whose disk the others of it share.
    if os.environ.get('LOCAL_RANK', str(get_rank())) == '0' and not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(url, str(path))
            if not _begins_as_checkpoint(path):
                path.unlink()  # else every later call would read the damaged file
                fault = f"'{url}' gives a page or a part of a file, no checkpoint. Check the address and the network"
        except OSError as error:
            fault = f"'{url}' cannot be downloaded: {error}. Check the address and the network, or put it at '{path}'"
    if found := [each for each in all_gather_object(fault) if each]:
        raise UserError(found[0])
    return load_data(path, map_location)


def _begins_as_checkpoint(path: Path) -> bool:
    """Whether a file is a whole archive, or begins as a pickle or a .safetensors."""
    with open(path, 'rb') as file:
        head = file.read(9)
    return zipfile.is_zipfile(path) or head[:1] == b'\x80' or head[8:] == b'{'


def _cached(url: str) -> Path:
    """Where a download is kept: by its whole address, since other files may have the same name.

    What torch has in its own cache by the name alone counts if the name holds the beginning of the file's checksum.
    """
    folder, name = Path(get_dir()) / 'checkpoints', url.rpartition('/')[2].partition('?')[0]
    digest = re.search(r'-([0-9a-f]{8,64})\.', name)
    if digest and (folder / name).is_file() and _checksum(folder / name).startswith(digest[1]):
        return folder / name
    return folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for part in iter(functools.partial(file.read, 2**22), b''):
            digest.update(part)
    return digest.hexdigest()


def load_from_store(url: str, map_location: Location = None) -> Any:
    content = get_file_backend(url, backend_args={'backend': 'petrel'}).get(url)
    return load_data(io.BytesIO(content), map_location, url)


def load_from_published(name: str, map_location: Location = None) -> Any:
    """Checkpoints that mmengine's lists name, such as ``torchvision://resnet50``."""
    scheme, _, model = name.partition('://')
    if scheme == 'mmcls':
        state = load_from_http(_address(get_mmcls_models(), model, name), map_location)
        state = state.get('state_dict', state)
        prefix = 'backbone.'
        return {'state_dict': {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}}
    if scheme in ('modelzoo', 'torchvision'):
        return load_from_http(_address(torchvision_models(), model, name), map_location)
    model = get_deprecated_model_names().get(model, model)
    return load_from_http(_address(get_external_models(), model, name), map_location)


def _address(known: Mapping[str, str], model: str, name: str) -> str:
    if model not in known:
        similar = difflib.get_close_matches(model, known, 3)
        raise UserError(f"'{name}' is not in mmengine's list; {', '.join(similar) or 'nothing similar'} is")
    return known[model]


def load_from_pavi(name: str, map_location: Location = None) -> Any:
    raise UserError(f"'{name}': checkpoints of pavi:// are not read as data; copy the file here and give its path")


_LOADERS: dict[str, Callable] = {
    '': load_from_local,
    **dict.fromkeys(('http://', 'https://'), load_from_http),
    **dict.fromkeys((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_store),
    **dict.fromkeys(
        ('modelzoo://', 'torchvision://', 'open-mmlab://', 'openmmlab://', 'mmcls://'), load_from_published
    ),
    'pavi://': load_from_pavi,
}


def _owner(prefix: str) -> str:
    """The module whose loader is registered for addresses that begin so; mmengine's where there is none."""
    # `_schemes`: mmengine has no public way to ask whose loader is registered.
    known = CheckpointLoader._schemes.get(prefix)
    if known is None:
        return _MMENGINE
    # A function that wraps mmengine's has taken over its `__module__`.
    return getattr(known, '__globals__', {}).get('__name__', known.__module__)


def scheduler_states(schedulers: Any) -> list[dict[str, Any]]:
    """The states of the schedulers of a checkpoint, which are in a list, or in lists by the name of the optimizer."""
    lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers]
    return [state for each in lists if isinstance(each, list) for state in each if isinstance(state, dict)]


def _without_config(loader: Callable) -> Callable:
    """A loader for mmengine, which runs the text of a config that a checkpoint holds.

    Its inferencers run ``cfg``, its runner on a resume ``config``. The name of a function that OneCycleLR
    has stored is left out, too: the scheduler that is built has the function.
    """

    @functools.wraps(loader)
    def load(name: str, map_location: Location = None) -> Any:
        content = loader(name, map_location)
        parts = content if isinstance(content, dict) else {}
        hub = parts.get('message_hub') or {}
        for part in (parts.get('meta') or {}, hub.get('runtime_info') or {}):
            for key in ('cfg', 'config') if os.environ.get(TRUST) != '1' else ():
                part.pop(key, None)
        for state in scheduler_states(parts.get('param_schedulers')):
            if isinstance(state.get('anneal_func'), str):
                del state['anneal_func']
        return content

    return load


def read_checkpoint(name: str | Path, map_location: Location = 'cpu') -> Any:
    """Read a checkpoint as data, by any name that mmengine accepts: a path, a URL, ``torchvision://resnet50``.

    A loader that the user has registered for such names is used instead of ours.

    Args:
        name: Path or address.
        map_location: As ``torch.load`` takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: As :func:`load_data`.
    """
    name = str(name)
    # As mmengine chooses: of all prefixes that match, the last in alphabetical order.
    prefix = max(prefix for prefix in _LOADERS.keys() | CheckpointLoader._schemes if re.match(prefix, name))
    loader = (
        _LOADERS[prefix]
        if prefix in _LOADERS and _owner(prefix) in (_MMENGINE, __name__)
        else CheckpointLoader._schemes[prefix]
    )
    return loader(name, map_location)


def install_safe_loading() -> None:
    """Let mmengine's ``CheckpointLoader`` read checkpoints as data in this process.

    Runners, ``init_cfg`` and the toolboxes all read checkpoints through it. Only mmengine's own
    loaders are replaced; one that the user has registered stays. Configs in checkpoints are left out, which mmengine's
    runner would run on a resume, and its inferencers where they are given weights alone. Importing mmpelk does not call
    this: our tools, our hooks and :mod:`mmpelk.hub` do. The first call is logged, and every training logs it.
    """
    # mmengine logs the loaders' names from the eleventh character on.
    replaced = [prefix for prefix in _LOADERS if _owner(prefix) == _MMENGINE]
    for prefix in replaced:
        CheckpointLoader.register_scheme(prefix, _without_config(_LOADERS[prefix]), force=True)
    if replaced:
        logging.getLogger(__name__).info(SAFE_LOADING)
