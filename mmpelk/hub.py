"""Whole networks by name: segmentors, detectors and classifiers in folders and repositories of the Hugging Face Hub.

    from mmpelk.hub import from_pretrained, save_pretrained

    save_pretrained(model, 'my_model')           # of init_model, init_detector, get_model
    model = from_pretrained('my_model')          # or 'user/my_model', of the Hub
    result = inference_model(model, 'photo.jpg')

A folder holds ``config.py``, the resolved recipe, ``model.safetensors`` and ``config.json``. OpenMMLab's tools take the
first two as config and checkpoint. Here the recipe is read as data: no file of a repository runs code. A backbone alone
has methods of the same names, :class:`mmpelk.models.PeLK`'s. All of this takes the extra ``hub``.
"""

import ast
import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, VISBACKENDS, VISUALIZERS, DefaultScope, init_default_scope
from torch import nn

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.safe_loading import install_safe_loading
from mmpelk.models import PeLK
from mmpelk.models.weights.harmless import only_registered, refuse_harmful, without_initialisation
from mmpelk.models.weights.publication import (
    Publication,
    fetch,
    fit_network,
    refuse_changed,
    refuse_unknown,
    state_of,
    unwrapped,
)

RECIPE = 'config.py'
_KIND = 'recipe'
_RUN_KEYS = ('work_dir', 'load_from', 'resume', 'launcher')
_USAGE = """from mmpelk.hub import from_pretrained

model = from_pretrained('REPOSITORY')"""


def save_pretrained(
    model: nn.Module, folder: str | Path, cfg: Config | None = None, dataset_meta: Mapping[str, Any] | None = None
) -> None:
    """Write a trained network, masks included, and its recipe into a folder.

    Args:
        model: Model of a toolbox; its backbone may be deployed or shrunk, and it may be compiled or in a data-parallel
            wrapper.
        folder: It is created where there is none.
        cfg: Its recipe; by default what the toolbox's ``init_model`` left in the model.
        dataset_meta: ``classes`` and ``palette``; likewise.

    Raises:
        UserError: If there is no recipe, it holds something that cannot be written as text, or it builds another
            network, as of one that was fused, pruned or reparametrised.
    """
    _published(model, cfg, dataset_meta).save(folder)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    cfg: Config | None = None,
    dataset_meta: Mapping[str, Any] | None = None,
    **options: Any,
) -> str:
    """The same as :func:`save_pretrained` into a repository of the Hugging Face Hub.

    Args:
        model: As there.
        repo_id: Such as ``'user/name'``; created where there is none.
        cfg: As there.
        dataset_meta: As there.
        **options: ``private``, ``token``, and those of huggingface_hub's ``upload_folder``: ``commit_message``,
            ``revision``, ``create_pr`` ...

    Returns:
        Address of the commit.
    """
    return _published(model, cfg, dataset_meta).push(repo_id, **options)


def from_pretrained(name: str | Path, device: str = 'cpu', allow: Collection[str] = (), **options: Any) -> nn.Module:
    """A network that :func:`save_pretrained` or :func:`push_to_hub` wrote, in eval mode.

    It has what its toolbox's ``init_model`` leaves in a model, so that ``inference_model``, ``inference_detector`` and
    mmpretrain's inferencers take it.

    Args:
        name: A folder, or a repository such as ``'user/name'``.
        device: Device of the model.
        allow: Names of modules that the recipe may use besides those that are known to be harmless.
        **options: Options of huggingface_hub: ``revision``, ``cache_dir``, ``token``, ``force_download``,
            ``local_files_only``.

    Raises:
        UserError: If it cannot be read, its recipe would run code, or its weights are of another network.
    """
    install_safe_loading()  # the toolboxes read what is in a folder with it, too
    found = fetch(name, _KIND, [RECIPE], **options)
    content = read_recipe(found.files[RECIPE], name)
    if not isinstance(content.get('model'), dict):
        raise UserError(f"'{name}' has no model in its {RECIPE}")
    refuse_harmful_recipe(content, name, allow)
    meta = _checked_meta(found.meta.get('dataset_meta') or {}, name)
    init_default_scope(content.get('default_scope') or 'mmengine')  # for good, as inference_model wants it
    try:
        cfg = Config(content)
        _complete(cfg)
        with only_registered(name):
            model = _build(cfg)
    except UserError:
        raise
    except Exception as error:  # wrong arguments of any module, or too little memory
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise UserError(f"the network of '{name}' cannot be built here from its {RECIPE}: {reason}") from error
    fit_network(model, found.state)
    own = model.state_dict()
    refuse_unknown(own, found.state, name)
    wrong = [key for key in own if key not in found.state or found.state[key].shape != own[key].shape]
    if wrong:
        raise UserError(f"the weights of '{name}' are not of its {RECIPE}: {wrong[0]} is missing or has another shape")
    model.load_state_dict(found.state)
    model.cfg = model._config = cfg  # as mmseg and mmdet call it, and as mmpretrain does
    model.dataset_meta = model._dataset_meta = meta
    return model.to(device).eval()


def _checked_meta(meta: Mapping[str, Any], name: str | Path) -> dict[str, Any]:
    """Names and colours of classes, which the toolboxes take as they are."""
    classes, palette = meta.get('classes') or (), meta.get('palette') or ()
    named = isinstance(classes, list | tuple) and all(isinstance(each, str) for each in classes)
    colours = (
        [each if isinstance(each, list | tuple) else () for each in palette]
        if isinstance(palette, list | tuple)
        else [()]
    )
    if not named or not all(len(each) == 3 and all(value in range(256) for value in each) for each in colours):
        raise UserError(
            f"'{name}' has classes that are not names, or a palette that does not hold colours, in its dataset_meta"
        )
    return dict(meta)


def refuse_harmful_recipe(content: Mapping[str, Any], name: str | Path, allow: Collection[str] = ()) -> None:
    """Refuse a recipe whose network, or what the toolboxes build of it for inference, is not known to be harmless.

    Raises:
        UserError: As :func:`mmpelk.models.weights.harmless.refuse_harmful`.
    """
    scope = content.get('default_scope') or 'mmengine'
    for key in ('model', 'data_preprocessor'):
        refuse_harmful(without_initialisation(content.get(key)), scope, name, allow)
    # Inferencers build these of the recipe; the rest of it is for training, which is for those who trust its author.
    loader = content.get('test_dataloader')
    dataset = loader.get('dataset') if isinstance(loader, Mapping) else None
    pipeline = dataset.get('pipeline') if isinstance(dataset, Mapping) else None
    refuse_harmful([content.get('test_pipeline'), pipeline], scope, name, allow, (TRANSFORMS,))
    visualizer = content.get('visualizer')
    inner = visualizer.get('vis_backends') if isinstance(visualizer, Mapping) else None
    outer = {**visualizer, 'vis_backends': None} if isinstance(visualizer, Mapping) else visualizer
    refuse_harmful(outer, scope, name, allow, (VISUALIZERS,))
    refuse_harmful(inner, scope, name, allow, (VISBACKENDS,))


def _complete(cfg: Config) -> None:
    if cfg.get('data_preprocessor'):  # mmengine's runner gives it to the model
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)


def _build(cfg: Config) -> Any:
    return revert_sync_batchnorm(MODELS.build(ConfigDict(without_initialisation(cfg.model.to_dict()))))


def _published(model: Any, cfg: Config | None, dataset_meta: Mapping[str, Any] | None) -> Publication:
    model = unwrapped(model)
    recipe = cfg or getattr(model, 'cfg', None) or getattr(model, '_config', None)
    if recipe is None:
        raise UserError(
            "the model does not know its recipe: give it, save_pretrained(model, folder, cfg=get_config('...'))"
        )
    meta = dataset_meta or getattr(model, 'dataset_meta', None) or getattr(model, '_dataset_meta', None) or {}
    recipe = Config(copy.deepcopy(recipe.to_dict()))
    if isinstance(backbone := unwrapped(model.backbone), PeLK):
        now = backbone.arguments()
        recipe.model.backbone.update(init_cfg=None, deploy=now['deploy'])
        if recipe.model.backbone.get('arch') == 'inflated':  # which would read its checkpoint again
            recipe.model.backbone.update({key: now[key] for key in ('arch', 'layer_scale_init_value')})
        if now['hidden_channels']:
            recipe.model.backbone.hidden_channels = now['hidden_channels']
    config = {'type': _KIND, 'default_scope': recipe.get('default_scope'), 'model': type(model).__name__}
    state, text = state_of(model), write_recipe(recipe)
    _complete(recipe)
    with (
        torch.random.fork_rng(devices=[]),
        DefaultScope.overwrite_default_scope(recipe.get('default_scope') or 'mmengine'),
    ):
        refuse_changed(_build(recipe), state)
    return Publication(config, state, _USAGE, {'dataset_meta': _plain(meta)}, {RECIPE: text})


def write_recipe(cfg: Config) -> str:
    """A recipe as assignments of literals, without what belongs to one run of it.

    Raises:
        UserError: If it holds something that has no literal.
    """
    content = {key: value for key, value in _plain(cfg.to_dict()).items() if key not in _RUN_KEYS}
    text = ''.join(f'{key} = {pformat(value, width=120, sort_dicts=False)}\n' for key, value in content.items())
    read_recipe(text, cfg.filename or 'the recipe')
    return text


def _plain(value: Any) -> Any:
    """A part of a config in Python's own containers; classes, which pure-Python configs have, by registered name."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, type):
        return f'{value.__module__.partition(".")[0]}.{value.__name__}'
    return value


def read_recipe(text: str, name: str | Path) -> dict[str, Any]:
    """Variables of a config that consists of literals; nothing is run.

    Raises:
        UserError: If it holds anything else.
    """
    try:
        statements = ast.parse(text).body
        return {
            statement.targets[0].id: ast.literal_eval(statement.value)  # type: ignore[attr-defined]
            for statement in statements
        }
    except (AttributeError, SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise UserError(
            f"the recipe of '{name}' is refused: it holds more than names and literal values ({error})"
        ) from error
