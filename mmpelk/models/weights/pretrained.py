"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of PeLK, which import huggingface_hub when called.

The folder holds ``config.json``, the arguments of the constructor, and ``model.safetensors``.
"""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from mmpelk.errors import UserError

from .checkpoint import refuse_misfit
from .facts import facts_of, with_facts
from .harmless import only_registered, refuse_harmful

if TYPE_CHECKING:
    from .publication import Publication

_USAGE = """from mmpelk.models import PeLK

backbone = PeLK.from_pretrained('REPOSITORY')"""
_Network = TypeVar('_Network', bound='Pretrained')


class Pretrained:
    """What a backbone of ours has besides: weights by name. For modules with ``arguments()``."""

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that build this network in its present form, as JSON has them."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, masks included, and the arguments that build the network into a folder.

        Trained, deployed, shrunk and sparse networks come back as they are.

        Args:
            folder: It is created where there is none.

        Raises:
            ImportError: If huggingface_hub is not installed.
            UserError: If it is fused, pruned or reparametrised, so that its arguments build another.
        """
        self._published().save(folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """The same into a repository of the Hugging Face Hub.

        Args:
            repo_id: Such as ``'user/name'``; created where there is none.
            **options: ``private``, ``token``, and those of huggingface_hub's ``upload_folder``: ``commit_message``,
                ``revision``, ``create_pr`` ...

        Returns:
            Address of the commit.

        Raises:
            ImportError: If huggingface_hub is not installed.
        """
        return self._published().push(repo_id, **options)

    def _published(self) -> 'Publication':
        from .publication import Publication, refuse_changed, state_of

        state, arguments = state_of(cast(nn.Module, self)), self.arguments()
        with torch.device('meta'):
            refuse_changed(cast(nn.Module, type(self)(**arguments)), state)
        return Publication({'type': type(self).__name__, **arguments}, state, _USAGE)

    @classmethod
    def from_pretrained(
        cls: type[_Network],
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **arguments: Any,
    ) -> _Network:
        """The network that :meth:`save_pretrained` or :meth:`push_to_hub` wrote, in eval mode on the CPU.

        Args:
            name: A folder, or a repository such as ``'user/name'``.
            revision: Branch, tag or commit of the repository.
            cache_dir: Where downloads go, instead of huggingface_hub's own folder.
            token: To read a private repository.
            force_download: Even if it was downloaded before.
            local_files_only: Only what was downloaded before.
            **arguments: Arguments of the constructor, instead of those saved: ``out_indices=(0, 1, 2, 3)`` and
                ``gap_before_final_norm=False`` make the features of a classifier's backbone. A norm of a stage that had
                none is as initialised.

        Raises:
            ImportError: If huggingface_hub is not installed.
            UserError: If it cannot be read, its weights do not fit its arguments, or it is another kind of network.
        """
        from .publication import fetch, fit_network, refuse_unknown

        found = fetch(
            name,
            cls.__name__,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        given = {key: value for key, value in found.config.items() if key != 'type'}
        known = set(inspect.signature(cls).parameters) - {'init_cfg'}
        if unknown := sorted(set(given) - known):
            raise UserError(f"'{name}' has arguments that {cls.__name__} of this mmpelk does not know: {unknown}")
        refuse_harmful(given, 'mmpelk', name)
        state = found.state
        with only_registered(name):
            network: Any = cls(**{**given, **arguments})
            if arguments and not facts_of(state):  # as the folders of earlier versions
                with torch.device('meta'):
                    described = cast(nn.Module, cls(**given)).state_dict()
                state = with_facts(state, facts_of(described))
        fit_network(network, state)
        own = network.state_dict()
        remedy = 'Leave out the arguments that change the network, or give the right folder'
        refuse_misfit(own, state, f"'{name}'", remedy)
        refuse_unknown(own, [key for key in state if not key.startswith('norm')], str(name))
        network.load_state_dict(state, strict=False)
        return network.eval()
