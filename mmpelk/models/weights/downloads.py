"""Public weights by address: ``timm://NAME`` and ``hf://OWNER/NAME`` by huggingface_hub, everything else as a file.

What comes with them is read as data, too: the licence from the model card, the pictures' mean and deviation from the
configs that timm, OpenCLIP and transformers put beside their weights.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint

from .checkpoint import state_dict_of

_FILES = ('model.safetensors', 'open_clip_model.safetensors', 'pytorch_model.bin', 'open_clip_pytorch_model.bin')
# Where a repository says how pictures are normalised: the file, and the names of the part, the mean and the deviation.
_CONFIGS = (
    ('preprocessor_config.json', None, 'image_mean', 'image_std'),
    ('open_clip_config.json', 'preprocess_cfg', 'mean', 'std'),
    ('config.json', 'pretrained_cfg', 'mean', 'std'),
)
_AVERAGES = ('state_dict_ema', 'model_ema')  # of timm's training, and of ConvNeXt's authors
_NORM_EPS = 1e-6  # of PeLK's layer norms
_UNKNOWN = 'unknown: see where the weights come from'


class Normalisation(NamedTuple):
    """Mean and standard deviation of each colour, red first, of values from 0 to 255 as OpenMMLab counts them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_unit_values(cls, mean: Sequence[float], std: Sequence[float]) -> 'Normalisation':
        """From those of values from 0 to 1, as timm, OpenCLIP and transformers count them."""
        return cls(*(tuple(round(255 * float(value), 3) for value in values) for values in (mean, std)))

    def is_close(self, other: 'Normalisation') -> bool:
        """Whether they differ by no more than their rounding."""
        pairs = list(zip((*self.mean, *self.std), (*other.mean, *other.std), strict=False))
        colours = {len(values) for values in (*self, *other)}
        return len(colours) == 1 and all(abs(one - two) < 0.5 for one, two in pairs)

    def __str__(self) -> str:
        return f'mean={list(self.mean)}, std={list(self.std)}'


@dataclass(frozen=True)
class PublicWeights:
    """Weights, and what is known of them.

    Attributes:
        state: The tensors.
        licence: As their model card has it.
        normalisation: Normalisation of the pictures that they expect; ``None`` if it is unknown.
    """

    state: dict[str, Tensor]
    licence: str = _UNKNOWN
    normalisation: Normalisation | None = None


def read_public(address: str, key: str | None = None) -> PublicWeights:
    """Download weights where needed, and read them as data.

    Args:
        address: ``timm://NAME`` with a name of timm's such as ``convnext_tiny.dinov3_lvd1689m``, ``hf://OWNER/NAME`` or
            ``hf://OWNER/NAME@REVISION`` for a repository of the Hugging Face Hub, or what
            :func:`mmpelk.fault_tolerance.safe_loading.read_checkpoint` knows: a path, a URL.
        key: Entry of the file that holds the weights; by default ``'state_dict'`` or ``'model'``.

    Raises:
        UserError: If a package is missing, there are no such weights, they cannot be downloaded, or the file holds
            averaged weights, too, and no ``key`` chooses.
        FileNotFoundError: If there is no such file.
    """
    scheme, _, name = address.partition('://')
    if scheme in ('timm', 'hf') and key is not None:
        raise UserError(f"'{address}' is one state dict: leave out key={key!r}")
    if scheme == 'timm':
        return _read_timm(name, address)
    if scheme == 'hf':
        return _read_repository(name, address)
    content = read_checkpoint(address)
    averages = [entry for entry in _AVERAGES if isinstance(content, Mapping) and content.get(entry) is not None]
    if key is None and averages:
        average, trained = averages[0], averages[0].removesuffix('_ema')
        raise UserError(
            f"'{address}' holds averaged weights in '{average}' beside '{trained}': choose by key='{average}' in "
            f'init_cfg, or by --key {average}'
        )
    if key is not None and key not in content:
        raise UserError(f"'{address}' has no entry {key!r}; it has {', '.join(list(content)[:8])}")
    return PublicWeights(state_dict_of(content if key is None else content[key], address))


def _read_timm(name: str, address: str) -> PublicWeights:
    try:
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise UserError(f"'{address}' takes the package timm: pip install 'mmpelk[timm]'") from error
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"'{address}': {error} timm.list_pretrained() has the names") from error
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise UserError(f"'{address}': this timm has no weights of that name. timm.list_pretrained() has the names")
    _refuse_timms_variant(name, address)
    if cfg.hf_hub_id:
        found = _read_repository(str(cfg.hf_hub_id), address, cfg.hf_hub_filename)
    else:
        found = PublicWeights(state_dict_of(read_checkpoint(str(cfg.url)), address))
    licence = str(cfg.license) if found.licence == _UNKNOWN and cfg.license else found.licence
    return PublicWeights(found.state, licence, Normalisation.of_unit_values(cfg.mean, cfg.std))


def _refuse_timms_variant(name: str, address: str) -> None:
    """Refuse a ConvNeXt whose activation or epsilon is not PeLK's, which its weights do not show."""
    import timm

    if not timm.models.is_model_in_modules(name, ['convnext']):
        return
    with torch.device('meta'):
        network = timm.create_model(name)
    activations = {type(module).__name__ for key, module in network.named_modules() if key.endswith('.mlp.act')}
    epsilons = {float(module.eps) for module in network.modules() if isinstance(module, nn.LayerNorm)}
    if activations != {'GELU'} or epsilons - {_NORM_EPS}:
        raise UserError(
            f"'{address}' has the activation {', '.join(sorted(activations))} and norms with an epsilon of "
            f'{", ".join(map(str, sorted(epsilons)))}, PeLK has GELU and {_NORM_EPS}: give weights of another network'
        )


def _read_repository(name: str, address: str, file: str | None = None) -> PublicWeights:
    if not re.fullmatch(r'[\w.-]+/[\w.-]+(@[\w./-]+)?', name):
        raise UserError(f"'{address}' is no name of a repository: give hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    try:
        from huggingface_hub import hf_hub_download, metadata_load
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(f"'{address}' takes the package huggingface_hub: pip install 'mmpelk[hub]'") from error
    repository, _, revision = name.partition('@')

    def download(files: Sequence[str]) -> Path:
        absent: list[Exception] = []
        for each in files:
            try:
                return Path(hf_hub_download(repository, each, revision=revision or None))
            except EntryNotFoundError as error:
                absent.append(error)
        raise next((error for error in absent if isinstance(error, LocalEntryNotFoundError)), absent[0])

    try:
        path = download([file] if file else _FILES)
    except GatedRepoError as error:
        raise UserError(
            f"'{address}' is given only to those who accept its licence: do so on https://huggingface.co/{repository}, "
            "then 'hf auth login'"
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"'{address}' cannot be downloaded, and was not before: check the network, or give a file"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"'{address}' has none of the files {', '.join([file] if file else _FILES)}") from error
    except (OSError, ValueError) as error:  # huggingface_hub's own are of these
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"'{address}' cannot be downloaded: {reason}. Check the name and the network") from error
    state = state_dict_of(read_checkpoint(path), address)

    def beside(files: str, read: Callable[[Path], Any]) -> Mapping[str, Any]:
        """A small file of the repository; nothing where it is not there or cannot be read."""
        try:
            content = read(download([files]))
        except (
            Exception
        ):  # the card and the configs only inform: a mistake in them must not keep the weights from being read
            return {}
        return content if isinstance(content, Mapping) else {}

    config = beside('config.json', _read_json)
    activation = config.get('hidden_act', 'gelu')  # as transformers has it
    if activation != 'gelu':
        raise UserError(
            f"'{address}' has the activation {activation!r}, PeLK has GELU: give weights of another network"
        )
    if isinstance(config.get('architecture'), str) and find_spec('timm'):  # as timm has it
        _refuse_timms_variant(config['architecture'], address)
    card = beside('README.md', metadata_load)
    licence = str(card.get('license_name') or card.get('license') or _UNKNOWN).splitlines()[0]
    return PublicWeights(state, licence, _normalisation(lambda file: beside(file, _read_json)))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))


def _normalisation(config: Callable[[str], Mapping[str, Any]]) -> Normalisation | None:
    for file, part, mean, std in _CONFIGS:
        content: Any = config(file)
        content = content.get(part) if part else content
        if isinstance(content, Mapping) and content.get(mean) and content.get(std):
            try:
                return Normalisation.of_unit_values(content[mean], content[std])
            except (TypeError, ValueError):
                continue
    return None
