"""Weights with a config beside them: a folder, or a repository of the Hugging Face Hub. It needs huggingface_hub."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from mmengine.model import BaseAveragedModel, is_model_wrapper
from torch import Tensor, nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import read_checkpoint

from ..hidden_units import fit_all_hidden_units
from .checkpoint import MASK_SUFFIX, shorten, write_safetensors
from .facts import facts_of, with_facts

try:
    from huggingface_hub import HfApi, snapshot_download
except ImportError as error:
    raise ImportError("weights by name take the package huggingface_hub: pip install 'mmpelk[hub]'") from error

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
_CARD = """---
library_name: mmpelk
tags: [pelk, large-kernel]
---
PeLK ([CVPR 2024](https://arxiv.org/abs/2403.07589)), a network with peripheral convolutions of 51 x 51 and more, for
mmpelk:

```python
USAGE
```
"""


@dataclass
class Publication:
    """What a folder or a repository holds.

    Attributes:
        config: Content of ``config.json``.
        state: Tensors of the network.
        usage: Program for the model card; ``REPOSITORY`` in it becomes the name of the folder or repository.
        meta: ``dataset_meta``, classes and palette, as the weights' file has it.
        files: Content of further text files, by name.
    """

    config: dict[str, Any]
    state: Mapping[str, Tensor]
    usage: str = ''
    meta: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path, name: str | None = None) -> None:
        """Write the folder, which is created where there is none; ``name`` is by default the folder's own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config, sort_keys=True, indent=2), encoding='utf-8')
        write_safetensors(self.state, folder / WEIGHTS, {key: json.dumps(value) for key, value in self.meta.items()})
        for file, text in self.files.items():
            (folder / file).write_text(text, encoding='utf-8')
        card = folder / 'README.md'
        if not card.exists():
            card.write_text(
                _CARD.replace('USAGE', self.usage.replace('REPOSITORY', name or folder.name)), encoding='utf-8'
            )

    def push(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **options: Any) -> str:
        """Send it to a repository of the Hugging Face Hub.

        Args:
            repo_id: Such as ``'user/name'``; created where there is none.
            private: Whether a new repository is private.
            token: To write to it, instead of the one that was saved by ``hf auth login``.
            **options: Options of huggingface_hub's ``upload_folder``, such as ``commit_message`` and ``revision``.

        Returns:
            Address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save(folder, repo_id)
            return api.upload_folder(repo_id=repo_id, folder_path=folder, **options)


def fetch(name: str | Path, kind: str, files: Iterable[str] = (), **options: Any) -> Publication:
    """Read a folder, or download a repository.

    Args:
        name: Path of the folder, or name of the repository.
        kind: What ``config.json`` has to say that it is.
        files: Names of text files to read besides.
        **options: Options of huggingface_hub's ``snapshot_download``: ``revision``, ``cache_dir``, ``token``,
            ``local_files_only``, ``force_download``.

    Raises:
        UserError: If it cannot be read, or is of another kind.
    """
    try:
        folder = Path(name)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS, *files], **options))
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        if not isinstance(config, dict):
            raise ValueError(f'its {CONFIG} holds no object')
        if config.get('type') != kind:
            raise UserError(f"'{name}' holds {config.get('type')!r}, as its {CONFIG} says, not {kind!r}")
        texts = {file: (folder / file).read_text(encoding='utf-8') for file in files}
        loaded = read_checkpoint(folder / WEIGHTS)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # also of a config.json that is no JSON, and huggingface_hub's own
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{name}' is neither a folder with {CONFIG} and {WEIGHTS} nor a repository that can be read here: {reason}"
        ) from error
    return Publication(config, loaded['state_dict'], meta=loaded['meta'], files=texts)


def fit_network(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the sparsity masks that a state dict has for its parameters, and as many hidden units."""
    modules = dict(network.named_modules())
    for key in state:
        weight = key.removesuffix(MASK_SUFFIX)
        owner, _, attribute = weight.rpartition('.')
        if weight != key and attribute in dict(modules.get(owner, nn.Identity()).named_parameters(recurse=False)):
            modules[owner].register_buffer(attribute + MASK_SUFFIX, state[key].clone())
    fit_all_hidden_units(network, state)


def unwrapped(network: nn.Module) -> nn.Module:
    """A network without what data-parallel training, averaging and ``torch.compile`` put around it and its parts."""
    while True:
        if is_model_wrapper(network) or isinstance(network, BaseAveragedModel):
            network = cast(nn.Module, network.module)
        elif hasattr(network, '_orig_mod'):  # as torch.compile calls it, in state dicts, too
            network = cast(nn.Module, network._orig_mod)
        else:
            return network


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network, by the names that it has without compiled parts."""
    state = network.state_dict()
    facts = {name.replace('_orig_mod.', '').removesuffix('._orig_mod'): fact for name, fact in facts_of(state).items()}
    return with_facts({key.replace('_orig_mod.', ''): value for key, value in state.items()}, facts)


def refuse_changed(built: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that the network of their own description cannot load.

    Args:
        built: Network built from the description; masks and hidden units become those of the weights.
        state: The weights.

    Raises:
        UserError: It names what differs.
    """
    fit_network(built, state)
    own = {key: value.shape for key, value in built.state_dict().items()}
    found = {key: value.shape for key, value in state.items()}
    if wrong := [key for key in {**own, **found} if own.get(key) != found.get(key)]:
        raise UserError(
            f'the network is another than its description builds: they differ in {shorten(wrong)}. Save it before it '
            'is fused, pruned, reparametrised or quantised, or take that off first'
        )


def refuse_unknown(own: Iterable[str], state: Iterable[str], name: str | Path) -> None:
    """Refuse weights that a network has no place for.

    Raises:
        UserError: It names the first of them.
    """
    unknown = sorted(set(state) - set(own))
    if unknown:
        raise UserError(f"'{name}' does not fit its own {CONFIG}: the network has no place for {shorten(unknown)}")
