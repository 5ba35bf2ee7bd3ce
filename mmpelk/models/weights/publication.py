"""Weights with a config beside them: a folder, or a repository of the Hugging Face Hub. It needs huggingface_hub."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint

from ..hidden_units import fit_all_hidden_units
from .checkpoint import MASK_SUFFIX, shorten

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
    from safetensors.torch import save_file
except ImportError as error:
    raise ImportError("weights by name take the package huggingface_hub: pip install 'mmpelk[hub]'") from error

__all__ = ['CONFIG', 'WEIGHTS', 'Publication', 'check_types', 'fetch', 'fit_network', 'refuse_unknown']

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
# A registered name, perhaps with its library. mmengine's registries import any other dotted name, and call it.
_LIBRARY = '(mmpelk|mmengine|mmcv|mmseg|mmdet|mmpretrain)'
_NAMES = {'type': re.compile(rf'\w+|{_LIBRARY}\.[A-Z]\w*')} | dict.fromkeys(
    ('_scope_', 'default_scope'), re.compile(_LIBRARY)
)
_CARD = """---
{{ card_data }}
---
PeLK ([CVPR 2024]({{ paper_url }})), a network with peripheral convolutions of 51 x 51 and more, for mmpelk:

```python
{{ usage }}
```
"""


class Publication(
    ModelHubMixin,
    library_name='mmpelk',
    tags=['pelk', 'large-kernel'],
    paper_url='https://arxiv.org/abs/2403.07589',
    model_card_template=_CARD,
):
    """What a folder or a repository holds.

    Attributes:
        name: The folder or repository that it was read from.
        config: Content of ``config.json``.
        state: Tensors of the network.
        header: Texts in the header of the weights' file.
        meta: What a reader makes of the header.
        files: Further text files.
    """

    def __init__(self) -> None:
        self.name = ''
        self.config: dict[str, Any] = {}
        self.state: Mapping[str, Tensor] = {}
        self.header: dict[str, str] = {}
        self.meta: dict[str, Any] = {}
        self.files: dict[str, str] = {}

    def save(self, folder: str | Path, usage: str) -> None:
        """Write the folder; ``usage`` is the program in its model card."""
        self.save_pretrained(folder, config=self.config, model_card_kwargs={'usage': usage})

    def push(self, repo_id: str, usage: str, **options: Any) -> str:
        """Send it to a repository, which is created where there is none.

        Args:
            repo_id: Such as ``'user/name'``.
            usage: The program in the model card; ``REPOSITORY`` in it becomes ``repo_id``.
            **options: Of huggingface_hub's ``push_to_hub``: ``private``, ``token``, ``commit_message``, ``branch`` ...

        Returns:
            Address of the commit.
        """
        card = {'usage': usage.replace('REPOSITORY', repo_id)}
        return self.push_to_hub(repo_id, config=self.config, model_card_kwargs=card, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        # Clones: the format refuses tensors that share memory, such as tied weights.
        tensors = {key: value.detach().cpu().clone().contiguous() for key, value in self.state.items()}
        save_file(tensors, str(save_directory / WEIGHTS), metadata={'format': 'pt', **self.header})
        for name, text in self.files.items():
            (save_directory / name).write_text(text)

    @classmethod
    def _from_pretrained(  # type: ignore[override] # its config and files are ours
        cls,
        *,
        model_id: str,
        kind: str,
        config: dict[str, Any] | None = None,
        files: Iterable[str] = (),
        **options: Any,
    ) -> 'Publication':
        def path_of(name: str) -> Path:
            folder = Path(model_id)
            return folder / name if folder.is_dir() else Path(hf_hub_download(model_id, name, **options))

        if config is None:
            raise FileNotFoundError(f"there is no '{path_of(CONFIG)}'")
        if config.get('type') != kind:
            raise UserError(f"'{model_id}' holds {config.get('type')!r}, as its {CONFIG} says, not {kind!r}")
        found = cls()
        found.name, found.config = model_id, config
        found.files = {name: path_of(name).read_text() for name in files}
        loaded = read_checkpoint(path_of(WEIGHTS))
        found.state, found.meta = loaded['state_dict'], loaded['meta']
        return found


def fetch(name: str | Path, kind: str, files: Iterable[str] = (), **options: Any) -> Publication:
    """Read a folder, or download a repository.

    Args:
        name: Path of the folder, or name of the repository.
        kind: What ``config.json`` has to say that it is.
        files: Names of text files to read besides.
        **options: Of huggingface_hub's ``from_pretrained``: ``revision``, ``cache_dir``, ``token``,
            ``local_files_only``, ``force_download``.

    Raises:
        UserError: If it cannot be read, or is of another kind.
    """
    try:
        return Publication.from_pretrained(name, kind=kind, files=files, **options)
    except UserError:
        raise
    except (AttributeError, OSError, ValueError) as error:  # also of a config.json that is none
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{name}' is neither a folder with {CONFIG} and {WEIGHTS} nor a repository that can be read here: {reason}"
        ) from error


def check_types(config: Any, name: str) -> None:
    """Refuse a config that names, as the type of a module, what is no registered module.

    Raises:
        UserError: At the first such name.
    """
    if isinstance(config, Mapping):
        for key in _NAMES.keys() & config.keys():
            if isinstance(config[key], str) and not _NAMES[key].fullmatch(config[key]):
                raise UserError(
                    f"'{name}' is refused: its config wants '{config[key]}', which is no module of OpenMMLab's but "
                    'code that it would run'
                )
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            check_types(value, name)


def fit_network(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the sparsity masks that a state dict has for its parameters, and as many hidden units."""
    modules = dict(network.named_modules())
    for key in state:
        weight = key.removesuffix(MASK_SUFFIX)
        owner, _, attribute = weight.rpartition('.')
        if weight != key and attribute in dict(modules.get(owner, nn.Identity()).named_parameters(recurse=False)):
            modules[owner].register_buffer(attribute + MASK_SUFFIX, state[key].clone())
    fit_all_hidden_units(network, state)


def refuse_unknown(own: Iterable[str], state: Iterable[str], name: str) -> None:
    """Refuse weights that a network has no place for.

    Raises:
        UserError: It names the first of them.
    """
    unknown = sorted(set(state) - set(own))
    if unknown:
        raise UserError(f"'{name}' does not fit its own {CONFIG}: the network has no place for {shorten(unknown)}")
