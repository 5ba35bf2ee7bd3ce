"""Tables 2, 3 and 4 recomputed: parameters and FLOPs of PeLK and of its peers, and scores where somebody measured them.

The PeLK rows are the project's recipes. The peers are the recipes of the installed toolboxes or, where a toolbox has
none, one of its recipes with another backbone. A toolbox is never imported here: its configs are read from its folder,
its models built through mmengine's registry. All are counted by :func:`mmpelk.analysis.complexity.count_complexity`, by
one convention: a multiply-add of a convolution, a linear layer or a product of matrices is one FLOP.
"""

import functools
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmpelk.config import get_config

from .complexity import Complexity, count_complexity, uniform_densities
from .paper import TABLES, PublishedRow

__all__ = [
    'RESULT_FILES',
    'CountedRow',
    'Counts',
    'MeasuredScores',
    'Recipe',
    'count_row',
    'count_table',
    'measured_accuracy',
    'recipe_of',
    'row_complexity',
]

_DENSITY = 0.6  # of PeLK and SLaK
_TOOLBOXES = {2: 'mmseg', 3: 'mmdet', 4: 'mmpretrain'}
_CASCADE_CONVNEXT = 'convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
_UPERNET_CONVNEXT = 'convnext/convnext-{}_upernet_8xb2-amp-160k_ade20k-512x512.py'
_UPERNET_SWIN = 'swin/swin-{}-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

#: By table: the file of :func:`measured_accuracy`.
RESULT_FILES = {2: 'ade20k.json', 3: 'coco.json', 4: 'imagenet.json'}


@dataclass(frozen=True, eq=False)  # compared by identity, so that counts can be remembered by recipe
class Recipe:
    """How the network of a row is built.

    Attributes:
        package: Whose folder of configs the recipe lies in: ``mmpelk``, ``mmseg``, ``mmdet`` or ``mmpretrain``.
        config: Its path there.
        options: What is changed, with dotted keys.
        needs: Toolboxes that must be installed besides the package.
        density: Share of live weights in the backbone and in a classifier.
        note: What a reader has to know about the row.
    """

    package: str
    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    density: float = 1.0
    note: str = ''


@dataclass(frozen=True)
class Counts:
    """What was counted for one image of the row's input size; see docs/complexity.md.

    Attributes:
        params: Parameters of what runs at inference, in training form.
        params_sparse: The same, each times its density.
        params_as_published: Live parameters without 5x5 branches and positional embeddings, with auxiliary heads: what
            rounds to the paper's column.
        flops: Multiply-adds of the deployed form.
        flops_sparse: The same, each layer times its density: the paper's column.
        flops_training_form: The same with the 5x5 branches that deployment merges.
        flops_backbone: The backbone's share of ``flops_sparse``.
    """

    params: int
    params_sparse: int
    params_as_published: int
    flops: int
    flops_sparse: int
    flops_training_form: int
    flops_backbone: int

    @property
    def flops_rest(self) -> int:
        """FLOPs of necks and heads."""
        return self.flops_sparse - self.flops_backbone


@dataclass(frozen=True)
class CountedRow:
    """A row of the paper beside what we count.

    Attributes:
        published: The paper's row.
        counted: ``None`` where the network could not be built.
        recipe: Name of the project's own recipe, such as ``'seg/upernet_pelk_t_ade20k.py'``, where the row is one.
        note: Why the network was not built, how it was composed, or why it deviates. Can be empty.
    """

    published: PublishedRow
    counted: Counts | None
    recipe: str | None
    note: str

    @property
    def params_deviation(self) -> float | None:
        """Relative deviation of ``params_as_published`` from the printed figure, ``0.01`` for one per cent more."""
        return None if self.counted is None else self.counted.params_as_published / (1e6 * self.published.params) - 1

    @property
    def flops_deviation(self) -> float | None:
        """Relative deviation of ``flops_sparse`` from the printed figure."""
        return None if self.counted is None else self.counted.flops_sparse / (1e9 * self.published.flops) - 1


@dataclass(frozen=True)
class MeasuredScores:
    """Scores of a trained recipe.

    Attributes:
        machine: What the results file says of the machine; :func:`mmpelk.analysis.timing.environment_info` describes one.
        scores: In per cent, by the metric names of :class:`mmpelk.analysis.paper.PublishedTable`.
    """

    machine: Mapping[str, Any]
    scores: Mapping[str, float]


def count_table(number: int) -> tuple[CountedRow, ...]:
    """All rows of a table, in the order of the paper.

    Args:
        number: 2, 3 or 4.

    Returns:
        A counted row for each published row. A table takes about 20 seconds on one core the first time.

    Raises:
        ValueError: If the paper has no such table of parameters and FLOPs.
    """
    if number not in TABLES:
        raise ValueError(f'the tables with parameters and FLOPs are {", ".join(map(str, TABLES))}, got {number}')
    return tuple(count_row(row) for row in TABLES[number].rows)


def count_row(row: PublishedRow) -> CountedRow:
    """Count one row; a network that this installation cannot build is reported with the reason."""
    recipe = recipe_of(row)
    if isinstance(recipe, str):
        return CountedRow(row, None, None, f'not built: {recipe}')
    ours = recipe.config if recipe.package == 'mmpelk' and not recipe.options else None
    if missing := _missing(recipe):
        return CountedRow(row, None, ours, f'not built: {missing}')
    return CountedRow(row, _count(recipe, row.input_size), ours, recipe.note)


def recipe_of(row: PublishedRow) -> Recipe | str:
    """The recipe of a row, or the reason why there is none."""
    return _RECIPES[row.table][row.method, row.input_size[0]]


def measured_accuracy(results_dir: str | Path) -> dict[str, MeasuredScores]:
    """Scores that somebody measured with the project's recipes, from the files of :data:`RESULT_FILES`.

    Each has the form ``{"machine": {...}, "results": {"upernet_pelk_t_ade20k": {"mIoU": 47.9}}}``: scores in per cent,
    by recipe (its file's name without ``.py``) and by metric (``mIoU``; ``AP_box``, ``AP_mask``; ``top1``).

    Args:
        results_dir: Folder of the files; those that are absent are left out.

    Returns:
        Scores by the recipe's file name, without ``.py``.

    Raises:
        ValueError: If a file has another form, or names an unknown recipe or metric.
    """
    measured = {}
    for number, name in RESULT_FILES.items():
        path = Path(results_dir) / name
        if path.is_file():
            measured.update(_read_scores(path, number))
    return measured


def _read_scores(path: Path, number: int) -> dict[str, MeasuredScores]:
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ('machine', 'results')):
        raise ValueError(f"'{path}' must hold an object 'machine' and an object 'results' of scores by recipe")
    recipes = [recipe for recipe in _RECIPES[number].values() if isinstance(recipe, Recipe)]
    known = [Path(recipe.config).stem for recipe in recipes if recipe.package == 'mmpelk' and not recipe.options]
    metrics = TABLES[number].metrics
    measured = {}
    for recipe, scores in content['results'].items():
        if recipe not in known:
            raise ValueError(f"'{path}': unknown recipe '{recipe}'; Table {number} has {', '.join(known)}")
        if not isinstance(scores, dict) or not scores:
            raise ValueError(f"'{path}': '{recipe}' must hold scores in per cent by metric: {', '.join(metrics)}")
        for metric, score in scores.items():
            if metric not in metrics:
                raise ValueError(f"'{path}': unknown metric '{metric}' of '{recipe}'; known: {', '.join(metrics)}")
            if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 100:
                raise ValueError(f"'{path}': {metric} of '{recipe}' must be a number of per cent, got {score!r}")
        measured[recipe] = MeasuredScores(content['machine'], scores)
    return measured


def _configs(package: str) -> Path | None:
    """A toolbox's folder of configs, found without importing the toolbox. Checkouts and wheels have it alike."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return Path(next(iter(folders))) / '.mim' / 'configs' if folders else None


def _missing(recipe: Recipe) -> str | None:
    """Why the recipe cannot be built here."""
    for package in (recipe.package, *recipe.needs):
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


def _load(recipe: Recipe) -> Config:
    if recipe.package == 'mmpelk':
        return get_config(recipe.config, dict(recipe.options))
    configs = _configs(recipe.package)
    assert configs is not None  # _missing has looked
    cfg = Config.fromfile(configs / recipe.config)
    cfg.merge_from_dict(dict(recipe.options))
    return cfg


def row_complexity(row: PublishedRow) -> Complexity:
    """Everything that was counted for a row, by component.

    Raises:
        ValueError: If the row's network cannot be built in this installation; the message says why.
    """
    recipe = recipe_of(row)
    if reason := recipe if isinstance(recipe, str) else _missing(recipe):
        raise ValueError(f'{row.method} of Table {row.table} is not built: {reason}')
    assert isinstance(recipe, Recipe)  # a string was a reason
    return _complexity(recipe, row.input_size)


@functools.cache
def _complexity(recipe: Recipe, shape: tuple[int, int]) -> Complexity:
    """Of a recipe's network. It is remembered as long as the process lives."""
    cfg = _load(recipe)
    cfg.model.backbone.init_cfg = None  # counts need no weights
    cfg.model.train_cfg = None
    with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    return count_complexity(model, shape, uniform_densities(model, recipe.density))


def _count(recipe: Recipe, shape: tuple[int, int]) -> Counts:
    complexity = _complexity(recipe, shape)
    unmerged = sum(left_out.flops for left_out in complexity.left_out if left_out.name == 'small_kernels')
    return Counts(
        params=complexity.params,
        params_sparse=complexity.params_sparse,
        params_as_published=complexity.params_as_published,
        flops=complexity.flops,
        flops_sparse=complexity.flops_sparse,
        flops_training_form=complexity.flops_sparse + round(recipe.density * unmerged),
        flops_backbone=complexity.part('backbone'),
    )


def _pelk(table: int, config: str, note: str = '') -> Recipe:
    return Recipe('mmpelk', config, needs=(_TOOLBOXES[table],), density=_DENSITY, note=note)


def _slak(table: int, config: str, note: str = '') -> Recipe:
    """SLaK differs from PeLK in the mixer: stripes on all channels, without an embedding."""
    options = {
        'model.backbone.mixer': 'stripe',
        'model.backbone.conv_ratio': 1.0,
        'model.backbone.positional_embedding': None,
    }
    return Recipe('mmpelk', config, options, (_TOOLBOXES[table],), _DENSITY, note)


def _swin(depth: int, channels: int, heads: int) -> dict[str, Any]:
    """mmdet's Swin backbone, as in its Mask R-CNN recipes."""
    return dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=channels,
        depths=[2, 2, depth, 2],
        num_heads=[heads, 2 * heads, 4 * heads, 8 * heads],
        window_size=7,
        out_indices=(0, 1, 2, 3),
    )


def _cascade(backbone: dict[str, Any], channels: int, note: str = '') -> Recipe:
    """mmdet's Cascade Mask R-CNN with ConvNeXt-T, on another backbone; its stages double the channels."""
    widths = [channels, 2 * channels, 4 * channels, 8 * channels]
    options = {'model.backbone': backbone, 'model.neck.in_channels': widths}
    return Recipe('mmdet', _CASCADE_CONVNEXT, options, ('mmpretrain',), note=note)


def _replknet(out_indices: tuple[int, ...]) -> dict[str, Any]:
    return dict(
        _delete_=True,
        type='mmpretrain.RepLKNet',
        arch='31B',
        out_indices=out_indices,
        small_kernel_merged=True,  # the deployed form, as for the other networks
    )


def _classifier(folder: str, config: str, note: str = '') -> Recipe:
    return Recipe('mmpretrain', f'{folder}/{config}.py', note=note)


_UNMERGED = (
    'the printed FLOPs agree with the training form, whose 5x5 branches are not merged; those of UperNet SLaK-T '
    'agree with the merged one'
)
_COMPOSED = "no recipe of the toolbox: its ConvNeXt's with another backbone"
_ALL_STAGES = (0, 1, 2, 3)
_MASKS = (
    'PeLK-T and PeLK-S stay above the printed FLOPs here alone: the same networks agree in Tables 2 and 3, and both '
    'exceed by about the same number of FLOPs, although S has three times the blocks in stage 3. The likeliest reason '
    "is that the masks of the authors' own runs, which need not be uniform, left less in the other stages"
)


def _upernet_convnext(size: str) -> Recipe:
    return Recipe('mmseg', _UPERNET_CONVNEXT.format(size), needs=('mmpretrain',))


def _replknet_classifier(resolution: str) -> Recipe:
    options = {'model.backbone': _replknet((3,)), 'model.neck': dict(type='GlobalAveragePooling')}
    return Recipe('mmpretrain', f'convnext/convnext-base_32xb128_in1k{resolution}.py', options, note=_COMPOSED)


#: By table, then by method and height of the input: a recipe, or why there is none.
_RECIPES: dict[int, dict[tuple[str, int], Recipe | str]] = {
    2: {
        ('Swin-T', 512): Recipe('mmseg', _UPERNET_SWIN.format('tiny')),
        ('ConvNeXt-T', 512): _upernet_convnext('tiny'),
        ('SLaK-T', 512): _slak(2, 'seg/upernet_pelk_t_ade20k.py'),
        ('PeLK-T', 512): _pelk(2, 'seg/upernet_pelk_t_ade20k.py'),
        ('Swin-S', 512): Recipe('mmseg', _UPERNET_SWIN.format('small')),
        ('ConvNeXt-S', 512): _upernet_convnext('small'),
        ('SLaK-S', 512): _slak(2, 'seg/upernet_pelk_s_ade20k.py', _UNMERGED),
        ('PeLK-S', 512): _pelk(2, 'seg/upernet_pelk_s_ade20k.py'),
        ('Swin-B', 512): Recipe('mmseg', _UPERNET_SWIN.format('base')),
        ('ConvNeXt-B', 512): _upernet_convnext('base'),
        ('RepLkNet-B', 512): Recipe(
            'mmseg',
            _UPERNET_CONVNEXT.format('base'),
            {'model.backbone': _replknet(_ALL_STAGES)},
            ('mmpretrain',),
            note=_COMPOSED,
        ),
        ('SLaK-B', 512): _slak(2, 'seg/upernet_pelk_b_ade20k.py', _UNMERGED),
        ('PeLK-B', 512): _pelk(2, 'seg/upernet_pelk_b_ade20k.py'),
        ('PeLK-B-101', 512): _pelk(2, 'seg/upernet_pelk_b_101_ade20k.py'),
    },
    3: {
        ('Swin-T', 800): _cascade(_swin(6, 96, 3), 96, _COMPOSED),
        ('ConvNeXt-T', 800): _cascade(dict(arch='tiny'), 96),
        ('PeLK-T', 800): _pelk(3, 'det/cascade_mask_rcnn_pelk_t_coco.py'),
        ('Swin-S', 800): _cascade(_swin(18, 96, 3), 96, _COMPOSED),
        ('ConvNeXt-S', 800): _cascade(dict(arch='small'), 96),
        ('PeLK-S', 800): _pelk(3, 'det/cascade_mask_rcnn_pelk_s_coco.py'),
        ('Swin-B', 800): _cascade(_swin(18, 128, 4), 128, _COMPOSED),
        ('RepLkNet-B', 800): _cascade(_replknet(_ALL_STAGES), 128, _COMPOSED),
        ('SLaK-B', 800): _slak(3, 'det/cascade_mask_rcnn_pelk_b_coco.py', _UNMERGED),
        ('ConvNeXt-B', 800): _cascade(dict(arch='base'), 128, 'no recipe of the toolbox: its smaller ones, widened'),
        ('PeLK-B', 800): _pelk(3, 'det/cascade_mask_rcnn_pelk_b_coco.py'),
        ('PeLK-B-101', 800): _pelk(3, 'det/cascade_mask_rcnn_pelk_b_101_coco.py'),
    },
    4: {
        ('Swin-T', 224): _classifier('swin_transformer', 'swin-tiny_16xb64_in1k'),
        ('T2T-ViT_t-14', 224): _classifier(
            't2t_vit', 't2t-vit-t-14_8xb64_in1k', 'the printed number of parameters is rounded up'
        ),
        ('PerViT-S', 224): 'no toolbox has PerViT',
        ('ConvNeXt-T', 224): _classifier('convnext', 'convnext-tiny_32xb128_in1k'),
        ('PeLK-T', 224): _pelk(4, 'cls/pelk_t_in1k.py', _MASKS),
        ('PVT-Large', 224): "mmdet's PVT is a backbone that no classifier of mmpretrain takes",
        ('T2T-ViT_t-19', 224): _classifier('t2t_vit', 't2t-vit-t-19_8xb64_in1k'),
        ('PerViT-M', 224): 'no toolbox has PerViT',
        ('Swin-S', 224): _classifier('swin_transformer', 'swin-small_16xb64_in1k'),
        ('ConvNeXt-S', 224): _classifier('convnext', 'convnext-small_32xb128_in1k'),
        ('PeLK-S', 224): _pelk(4, 'cls/pelk_s_in1k.py', _MASKS),
        ('DeiT-B/16', 224): _classifier('deit', 'deit-base_16xb64_in1k'),
        ('RepLkNet-31B', 224): _replknet_classifier(''),
        ('Swin-B', 224): _classifier('swin_transformer', 'swin-base_16xb64_in1k'),
        ('ConvNeXt-B', 224): _classifier('convnext', 'convnext-base_32xb128_in1k'),
        ('SLaK-B', 224): _slak(4, 'cls/pelk_b_in1k.py', _UNMERGED),
        ('PeLK-B', 224): _pelk(4, 'cls/pelk_b_in1k.py'),
        ('ViT-B/16', 384): _classifier('vision_transformer', 'vit-base-p16_64xb64_in1k-384px'),
        ('DeiT-B/16', 384): _classifier('deit', 'deit-base_16xb32_in1k-384px'),
        ('Swin-B', 384): _classifier('swin_transformer', 'swin-base_16xb64_in1k-384px'),
        ('RepLkNet-31B', 384): _replknet_classifier('-384px'),
        ('ConvNeXt-B', 384): _classifier('convnext', 'convnext-base_32xb128_in1k-384px'),
        ('SLaK-B', 384): _slak(4, 'cls/pelk_b_in1k_384.py', _UNMERGED),
        ('PeLK-B', 384): _pelk(4, 'cls/pelk_b_in1k_384.py'),
        ('PeLK-B-101', 384): _pelk(4, 'cls/pelk_b_101_in1k_384.py'),
    },
}
