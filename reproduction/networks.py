"""The networks of Tables 2, 3 and 4: which recipe builds the network of a row.

The PeLK rows are the project's recipes. The peers are the recipes of the installed toolboxes or, where a toolbox has
none, one of its recipes with another backbone. A toolbox is never imported here: its configs are read from its folder,
its models built through mmengine's registry.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmpelk.config import get_config

from .paper import PublishedRow

__all__ = ['NETWORKS', 'Recipe', 'load', 'own_recipe', 'recipe_of', 'unavailable_reason']

_DENSITY = 0.6  # of PeLK and SLaK
_TOOLBOXES = {'seg': 'mmseg', 'det': 'mmdet', 'cls': 'mmpretrain'}
_ALL_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, eq=False)  # compared by identity, so that counts can be remembered by recipe
class Recipe:
    """How the network of a row is built.

    Attributes:
        package: Whose folder of configs the recipe lies in: ``mmpelk``, ``mmseg``, ``mmdet`` or ``mmpretrain``.
        config: Its path there.
        options: What is changed, with dotted keys.
        needs: Toolbox that must be installed besides the package.
        density: Share of live weights in the backbone and in a classifier.
        note: What a reader has to know about the row.
    """

    package: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None
    density: float = 1.0
    note: str = ''


def recipe_of(row: PublishedRow) -> Recipe | str:
    """The recipe of a row, or the reason why there is none."""
    return NETWORKS[row.table][row.method, row.input_size[0]]


def own_recipe(row: PublishedRow) -> str | None:
    """Name of the project's recipe that trains a row's network, such as ``'seg/upernet_pelk_t_ade20k.py'``."""
    recipe = recipe_of(row)
    return recipe.config if isinstance(recipe, Recipe) and recipe.package == 'mmpelk' and not recipe.options else None


def unavailable_reason(recipe: Recipe) -> str | None:
    """Why a recipe cannot be built in this installation; ``None`` if it can."""
    for package in filter(None, (recipe.package, recipe.needs)):
        configs = _configs(package)
        if configs is None:
            return f'{package} is not installed'
        # The detection recipes inherit from mmdet's, and so need more of it than its modules.
        if not configs.is_dir():
            return f'{package} is installed without its configs'
    configs = _configs(recipe.package)
    if configs is None or not (configs / recipe.config).is_file():
        return f'the installed {recipe.package} has no {recipe.config}'
    return None


def load(recipe: Recipe) -> Config:
    """The config of a recipe that can be built."""
    if recipe.package == 'mmpelk':
        return get_config(recipe.config, dict(recipe.options))
    configs = _configs(recipe.package)
    assert configs is not None  # unavailable_reason has looked
    cfg = Config.fromfile(configs / recipe.config)
    cfg.merge_from_dict(dict(recipe.options))
    return cfg


def _configs(package: str) -> Path | None:
    """A toolbox's folder of configs, found without importing the toolbox. Checkouts and wheels have it alike."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return Path(next(iter(folders))) / '.mim' / 'configs' if folders else None


_COMPOSED = "no recipe of the toolbox: its ConvNeXt's with another backbone"
_MASKS = (
    'PeLK-T and PeLK-S stay above the printed FLOPs here alone: the same networks agree in Tables 2 and 3, and both '
    'exceed by about the same number of FLOPs, although S has three times the blocks in stage 3. The likeliest reason '
    "is that the masks of the authors' own runs, which need not be uniform, left less in the other stages"
)
_ROUNDED_UP = 'the printed number of parameters is rounded up'
_UNMERGED = (
    'the printed FLOPs agree with the training form, whose 5x5 branches are not merged; those of UperNet SLaK-T '
    'agree with the merged one'
)
_WIDENED = 'no recipe of the toolbox: its smaller ones, widened'


def _pelk(config: str, note: str = '') -> Recipe:
    return Recipe('mmpelk', f'{config}.py', needs=_TOOLBOXES[config.partition('/')[0]], density=_DENSITY, note=note)


def _slak(config: str, note: str = _UNMERGED) -> Recipe:
    """SLaK differs from PeLK in the mixer: stripes on all channels, without an embedding."""
    changes = dict(mixer='stripe', conv_ratio=1.0, positional_embedding=None)
    options = {f'model.backbone.{key}': value for key, value in changes.items()}
    return Recipe('mmpelk', f'{config}.py', options, _TOOLBOXES[config.partition('/')[0]], _DENSITY, note)


def _upernet_swin(size: str) -> Recipe:
    return Recipe('mmseg', f'swin/swin-{size}-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py')


def _upernet_convnext(size: str, note: str = '', **options: Any) -> Recipe:
    config = f'convnext/convnext-{size}_upernet_8xb2-amp-160k_ade20k-512x512.py'
    return Recipe('mmseg', config, {f'model.{key}': value for key, value in options.items()}, 'mmpretrain', note=note)


def _cascade(backbone: dict[str, Any], channels: int, note: str = '') -> Recipe:
    """mmdet's Cascade Mask R-CNN with ConvNeXt-T, on another backbone, whose stages double the channels."""
    config = 'convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
    options = {'model.backbone': backbone, 'model.neck.in_channels': [channels * 2**stage for stage in _ALL_STAGES]}
    return Recipe('mmdet', config, options, 'mmpretrain', note=note)


def _classifier(config: str, note: str = '', **options: Any) -> Recipe:
    return Recipe('mmpretrain', f'{config}.py', {f'model.{key}': v for key, v in options.items()}, note=note)


def _swin(depth: int, channels: int, heads: int) -> dict[str, Any]:
    """mmdet's Swin backbone, as in its Mask R-CNN recipes."""
    return dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=channels,
        depths=[2, 2, depth, 2],
        num_heads=[heads * 2**stage for stage in _ALL_STAGES],
        window_size=7,
        out_indices=_ALL_STAGES,
    )


def _replknet(out_indices: tuple[int, ...] = _ALL_STAGES) -> dict[str, Any]:
    """RepLKNet-31B in the deployed form, as the other networks."""
    kind = 'mmpretrain.RepLKNet'
    return dict(_delete_=True, type=kind, arch='31B', out_indices=out_indices, small_kernel_merged=True)


_REPLKNET_CLASSIFIER = dict(backbone=_replknet((3,)), neck=dict(type='GlobalAveragePooling'))

#: By table, then by method and height of the input: a recipe, or why there is none.
NETWORKS: dict[int, dict[tuple[str, int], Recipe | str]] = {
    2: {
        ('Swin-T', 512): _upernet_swin('tiny'),
        ('ConvNeXt-T', 512): _upernet_convnext('tiny'),
        ('SLaK-T', 512): _slak('seg/upernet_pelk_t_ade20k', note=''),
        ('PeLK-T', 512): _pelk('seg/upernet_pelk_t_ade20k'),
        ('Swin-S', 512): _upernet_swin('small'),
        ('ConvNeXt-S', 512): _upernet_convnext('small'),
        ('SLaK-S', 512): _slak('seg/upernet_pelk_s_ade20k'),
        ('PeLK-S', 512): _pelk('seg/upernet_pelk_s_ade20k'),
        ('Swin-B', 512): _upernet_swin('base'),
        ('ConvNeXt-B', 512): _upernet_convnext('base'),
        ('RepLkNet-B', 512): _upernet_convnext('base', _COMPOSED, backbone=_replknet()),
        ('SLaK-B', 512): _slak('seg/upernet_pelk_b_ade20k'),
        ('PeLK-B', 512): _pelk('seg/upernet_pelk_b_ade20k'),
        ('PeLK-B-101', 512): _pelk('seg/upernet_pelk_b_101_ade20k'),
    },
    3: {
        ('Swin-T', 800): _cascade(_swin(6, 96, 3), 96, _COMPOSED),
        ('ConvNeXt-T', 800): _cascade(dict(arch='tiny'), 96),
        ('PeLK-T', 800): _pelk('det/cascade_mask_rcnn_pelk_t_coco'),
        ('Swin-S', 800): _cascade(_swin(18, 96, 3), 96, _COMPOSED),
        ('ConvNeXt-S', 800): _cascade(dict(arch='small'), 96),
        ('PeLK-S', 800): _pelk('det/cascade_mask_rcnn_pelk_s_coco'),
        ('Swin-B', 800): _cascade(_swin(18, 128, 4), 128, _COMPOSED),
        ('RepLkNet-B', 800): _cascade(_replknet(), 128, _COMPOSED),
        ('SLaK-B', 800): _slak('det/cascade_mask_rcnn_pelk_b_coco'),
        ('ConvNeXt-B', 800): _cascade(dict(arch='base'), 128, _WIDENED),
        ('PeLK-B', 800): _pelk('det/cascade_mask_rcnn_pelk_b_coco'),
        ('PeLK-B-101', 800): _pelk('det/cascade_mask_rcnn_pelk_b_101_coco'),
    },
    4: {
        ('Swin-T', 224): _classifier('swin_transformer/swin-tiny_16xb64_in1k'),
        ('T2T-ViT_t-14', 224): _classifier('t2t_vit/t2t-vit-t-14_8xb64_in1k', _ROUNDED_UP),
        ('PerViT-S', 224): 'no toolbox has PerViT',
        ('ConvNeXt-T', 224): _classifier('convnext/convnext-tiny_32xb128_in1k'),
        ('PeLK-T', 224): _pelk('cls/pelk_t_in1k', _MASKS),
        ('PVT-Large', 224): "mmdet's PVT is a backbone that no classifier of mmpretrain takes",
        ('T2T-ViT_t-19', 224): _classifier('t2t_vit/t2t-vit-t-19_8xb64_in1k'),
        ('PerViT-M', 224): 'no toolbox has PerViT',
        ('Swin-S', 224): _classifier('swin_transformer/swin-small_16xb64_in1k'),
        ('ConvNeXt-S', 224): _classifier('convnext/convnext-small_32xb128_in1k'),
        ('PeLK-S', 224): _pelk('cls/pelk_s_in1k', _MASKS),
        ('DeiT-B/16', 224): _classifier('deit/deit-base_16xb64_in1k'),
        ('RepLkNet-31B', 224): _classifier('convnext/convnext-base_32xb128_in1k', _COMPOSED, **_REPLKNET_CLASSIFIER),
        ('Swin-B', 224): _classifier('swin_transformer/swin-base_16xb64_in1k'),
        ('ConvNeXt-B', 224): _classifier('convnext/convnext-base_32xb128_in1k'),
        ('SLaK-B', 224): _slak('cls/pelk_b_in1k'),
        ('PeLK-B', 224): _pelk('cls/pelk_b_in1k'),
        ('ViT-B/16', 384): _classifier('vision_transformer/vit-base-p16_64xb64_in1k-384px'),
        ('DeiT-B/16', 384): _classifier('deit/deit-base_16xb32_in1k-384px'),
        ('Swin-B', 384): _classifier('swin_transformer/swin-base_16xb64_in1k-384px'),
        ('RepLkNet-31B', 384): _classifier(
            'convnext/convnext-base_32xb128_in1k-384px', _COMPOSED, **_REPLKNET_CLASSIFIER
        ),
        ('ConvNeXt-B', 384): _classifier('convnext/convnext-base_32xb128_in1k-384px'),
        ('SLaK-B', 384): _slak('cls/pelk_b_in1k_384'),
        ('PeLK-B', 384): _pelk('cls/pelk_b_in1k_384'),
        ('PeLK-B-101', 384): _pelk('cls/pelk_b_101_in1k_384'),
    },
}
