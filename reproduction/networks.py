"""The networks of Tables 2, 3 and 4: recipes, for the rows in :mod:`.paper`.

The PeLK rows are the project's recipes. The peers are the recipes of the installed toolboxes or, where a toolbox has
none, one of its recipes with another backbone. A toolbox is never imported here: its configs are read from its folder,
its models built through mmengine's registry.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

_ALL_STAGES = (0, 1, 2, 3)


class UnavailableError(Exception):
    """A network that cannot be built in this installation; the message says why."""


@dataclass(frozen=True, eq=False)  # compared by identity, so that counts can be remembered by recipe
class Recipe:
    """How the network of a row is built."""

    # whose folder of configs the recipe lies in: ``mmpelk``, ``mmseg``, ``mmdet`` or ``mmpretrain``; ``''`` for a
    # network that nobody has, and ``note`` says so
    package: str
    config: str  # its path there
    options: Mapping[str, Any] = field(default_factory=dict)  # what is changed, with dotted keys
    needs: str | None = None  # toolbox that must be installed besides the package
    density: float = 1.0  # share of active weights in the backbone and in a classifier
    note: str = ''  # what a reader has to know about the row

    @property
    def own_name(self) -> str | None:
        """Name such as ``'seg/upernet_pelk_t_ade20k.py'`` where it is a recipe of the project, unchanged."""
        return self.config if self.package == 'mmpelk' and not self.options else None


def load(recipe: Recipe) -> Config:
    """The config of a recipe.

    Raises:
        UnavailableError: If there is none, or a package that it needs is not installed.
    """
    if not recipe.package:
        raise UnavailableError(recipe.note)
    path = _configs(recipe.package) / recipe.config
    if recipe.needs:
        _configs(recipe.needs)
    if not path.is_file():
        raise UnavailableError(f'the installed {recipe.package} has no {recipe.config}')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(dict(recipe.options))
    return cfg


def _configs(package: str) -> Path:
    """A package's folder of configs, found without importing the package. Checkouts and wheels have it alike.

    Raises:
        UnavailableError: If there is none.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(f'{package} is not installed')
    configs = Path(next(iter(spec.submodule_search_locations))) / '.mim' / 'configs'
    if not configs.is_dir():
        raise UnavailableError(f'{package} is installed without its configs')
    return configs


NO_PERVIT = 'no toolbox has PerViT'
NO_PVT = "mmdet's PVT is a backbone that no classifier of mmpretrain takes"
MASKS = (
    'PeLK-T and PeLK-S stay above the printed FLOPs here alone; the same networks agree in Tables 2 and 3. The '
    "likeliest reason is that the masks of the authors' runs were not uniform"
)
ROUNDED_UP = 'the printed number of parameters is rounded up'
WIDENED = 'no recipe of the toolbox: its smaller ones, widened'
_COMPOSED = "no recipe of the toolbox: its ConvNeXt's with another backbone"
_UNMERGED = 'the printed FLOPs agree with the training form, whose 5x5 branches are not merged'


def no_network(reason: str) -> Recipe:
    """Of a row that no recipe builds."""
    return Recipe('', '', note=reason)


def pelk(name: str, note: str = '', **changes: Any) -> Recipe:
    """The project's recipe ``name``, without ``.py``, perhaps with another backbone, at the paper's density."""
    toolbox = {'seg': 'mmseg', 'det': 'mmdet', 'cls': 'mmpretrain'}[name.partition('/')[0]]
    options = {f'model.backbone.{key}': value for key, value in changes.items()}
    return Recipe('mmpelk', f'{name}.py', options, toolbox, 0.6, note)


def slak(name: str, note: str = _UNMERGED) -> Recipe:
    """SLaK differs from PeLK in the mixer: stripes on all channels, without an embedding."""
    return pelk(name, note, mixer='stripe', conv_ratio=1.0, positional_embedding=None)


def upernet_swin(size: str) -> Recipe:
    return Recipe('mmseg', f'swin/swin-{size}-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py')


def upernet_convnext(size: str, backbone: Mapping[str, Any] | None = None, note: str = '') -> Recipe:
    config = f'convnext/convnext-{size}_upernet_8xb2-amp-160k_ade20k-512x512.py'
    return Recipe('mmseg', config, {'model.backbone': backbone} if backbone else {}, 'mmpretrain', note=note)


def upernet_replknet() -> Recipe:
    return upernet_convnext('base', _replknet(_ALL_STAGES), _COMPOSED)


def cascade_convnext(size: str, channels: int, note: str = '') -> Recipe:
    return _cascade(dict(arch=size), channels, note)


def cascade_replknet() -> Recipe:
    return _cascade(_replknet(_ALL_STAGES), 128, _COMPOSED)


def cascade_swin(depth: int, channels: int, heads: int) -> Recipe:
    """mmdet's Swin backbone, as in its Mask R-CNN recipes."""
    backbone = dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=channels,
        depths=[2, 2, depth, 2],
        num_heads=[heads * 2**stage for stage in _ALL_STAGES],
        window_size=7,
        out_indices=_ALL_STAGES,
    )
    return _cascade(backbone, channels, _COMPOSED)


def classifier(name: str, note: str = '') -> Recipe:
    return Recipe('mmpretrain', f'{name}_in1k.py', note=note)


def classifier_384(name: str) -> Recipe:
    return Recipe('mmpretrain', f'{name}_in1k-384px.py')


def replknet(of: Recipe) -> Recipe:
    """RepLKNet in the place of a classifier's backbone."""
    options = {'model.backbone': _replknet((3,)), 'model.neck': dict(type='GlobalAveragePooling')}
    return replace(of, options=options, note=_COMPOSED)


def _cascade(backbone: dict[str, Any], channels: int, note: str) -> Recipe:
    """mmdet's Cascade Mask R-CNN with ConvNeXt-T, on another backbone, whose stages double the channels."""
    config = 'convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
    options = {'model.backbone': backbone, 'model.neck.in_channels': [channels * 2**stage for stage in _ALL_STAGES]}
    return Recipe('mmdet', config, options, 'mmpretrain', note=note)


def _replknet(out_indices: tuple[int, ...]) -> dict[str, Any]:
    """RepLKNet-31B in the deployed form, as the other networks."""
    backbone = dict(_delete_=True, type='mmpretrain.RepLKNet', arch='31B', small_kernel_merged=True)
    return backbone | dict(out_indices=out_indices)
