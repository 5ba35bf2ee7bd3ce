"""Each recipe as a whole: all that it and the toolbox's own ConvNeXt recipe, or the recipe it varies, differ in."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

import mmpelk
from tests.configs.resolved import ABSENT, config, difference, flatten, resolved
from tests.paths import CONFIGS, RECIPES, ROOT

Changes = dict[str, tuple[Any, Any]]

SYNC_BN = dict(type='SyncBN', requires_grad=True)
UNITS = dict(granularity='unit', initialisation='uniform')
EMA = dict(type='EMAHook', momentum=1e-4)
T, B = (124, 249, 499, 998), (166, 332, 665, 1331)


def sparsity(**settings: Any) -> dict[str, Any]:
    return dict(settings, type='mmpelk.SparsityHook', mode='dynamic', density=0.6, target=['backbone', 'head'])


HOOKS: Changes = {
    'default_hooks.check_data.type': (ABSENT, 'mmpelk.CheckDataHook'),
    'default_hooks.checkpoint.type': ('CheckpointHook', 'mmpelk.CheckpointHook'),
    'default_hooks.divergence.type': (ABSENT, 'mmpelk.DivergenceHook'),
    'default_hooks.preemption.type': (ABSENT, 'mmpelk.PreemptionHook'),
    'default_hooks.resume.type': (ABSENT, 'mmpelk.ResumeHook'),
    'default_hooks.progress_line.type': (ABSENT, 'mmpelk.ProgressLineHook'),
    'default_hooks.progress_picture.type': (ABSENT, 'mmpelk.ProgressPictureHook'),
    'default_hooks.run_estimate.type': (ABSENT, 'mmpelk.RunEstimateHook'),
}
# What a backbone of PeLK brings: our class and constructor, its norm, its weights and masks.
PELK: Changes = HOOKS | {
    'custom_hooks': (ABSENT, [dict(type='mmpelk.SparsityHook', mode='fixed')]),
    'model.backbone.norm_cfg': (ABSENT, SYNC_BN),
    'model.backbone.type': ('mmpretrain.ConvNeXt', 'mmpelk.PeLK'),
    'optim_wrapper.constructor': ('LearningRateDecayOptimizerConstructor', 'mmpelk.LayerDecayOptimWrapperConstructor'),
}


def weights(size: str, before: str = 'URL') -> Changes:
    return {'model.backbone.init_cfg.checkpoint': (before, f'checkpoints/pelk_{size}_in1k.pth')}


def segmentation(convnext: tuple[int, ...], pelk: tuple[int, ...]) -> Changes:
    return PELK | {
        'auto_scale_lr.base_batch_size': (ABSENT, 16),
        'auto_scale_lr.enable': (ABSENT, False),
        'model.auxiliary_head.in_channels': (convnext[2], pelk[2]),
        'model.decode_head.in_channels': (convnext, pelk),
        'model.pretrained': (None, ABSENT),
        'optim_wrapper.loss_scale': ('dynamic', ABSENT),  # the default
        'tta_pipeline.0.backend_args': (None, ABSENT),
        # The data set says it.
        'train_dataloader.dataset.pipeline.1.reduce_zero_label': (True, ABSENT),
        'val_dataloader.dataset.pipeline.2.reduce_zero_label': (True, ABSENT),
    }


def cascade(convnext: tuple[int, ...], pelk: tuple[int, ...], num_layers: int) -> Changes:
    heads = [f'model.roi_head.bbox_head.{stage}' for stage in range(3)]
    # The same head under its short name.
    short = dict(conv_out_channels=(256, ABSENT), num_shared_convs=(4, ABSENT), num_shared_fcs=(1, ABSENT))
    short['type'] = ('ConvFCBBoxHead', 'Shared4Conv1FCBBoxHead')
    return (
        PELK
        | {f'{head}.{key}': pair for head in heads for key, pair in short.items()}
        | {'model.neck.in_channels': (convnext, pelk), 'optim_wrapper.paramwise_cfg.num_layers': (num_layers, ABSENT)}
    )


def instead_of_resnet(drop_path_rate: float, theirs: dict[str, Any]) -> Changes:
    """PeLK-T in a toolbox's recipe with ResNet-50, of which ``theirs`` are the options, trained with layer decay."""
    ours = dict(
        arch='tiny',
        drop_path_rate=drop_path_rate,
        gap_before_final_norm=False,
        layer_scale_init_value=1.0,
        norm_cfg=SYNC_BN,
        type='mmpelk.PeLK',
    )
    theirs = theirs | dict(depth=50, num_stages=4, style='pytorch', type='ResNet')
    backbone = {key: (theirs.get(key, ABSENT), ours.get(key, ABSENT)) for key in ours.keys() | theirs.keys()}
    return (
        PELK
        | weights('t', 'torchvision://resnet50')
        | {f'model.backbone.{key}': pair for key, pair in backbone.items()}
        | {
            'model.backbone.init_cfg.prefix': (ABSENT, 'backbone.'),
            'optim_wrapper.constructor': (ABSENT, 'mmpelk.LayerDecayOptimWrapperConstructor'),
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': (0.1, ABSENT),
        }
    )


# ConvNeXt with large kernels: its own weights.
INFLATED: Changes = {
    # Of the preprocessor, to be compared with what the weights expect.
    'model.backbone.init_cfg.mean': (ABSENT, (123.675, 116.28, 103.53)),
    'model.backbone.init_cfg.std': (ABSENT, (58.395, 57.12, 57.375)),
    'model.backbone.init_cfg.prefix': ('backbone.', ABSENT),
    'model.backbone.init_cfg.type': ('Pretrained', 'mmpelk.Inflated'),
    'optim_wrapper.paramwise_cfg.peripheral_lr_mult': (ABSENT, 0.1),
}


def with_large_kernels(key: str, stages: slice) -> Changes:
    """A recipe of PeLK-T with ConvNeXt-T's network and weights."""
    return INFLATED | {
        'custom_hooks': ([dict(type='mmpelk.SparsityHook', mode='fixed')], ()),
        f'model.{key}': (T[stages], THEIR_T[stages]),
        'model.backbone.arch': ('tiny', 'convnext-tiny'),
        'model.backbone.init_cfg.checkpoint': ('checkpoints/pelk_t_in1k.pth', 'URL'),
    }


def inflated(changes: Changes, theirs: str, ours: str) -> Changes:
    """Those of ConvNeXt with large kernels: its own weights, widths and heads; no masks."""
    kept = {key: pair for key, pair in changes.items() if pair[0] != pair[1]}
    return (
        kept
        | INFLATED
        | {
            'custom_hooks': (ABSENT, ()),
            'model.backbone.arch': (theirs, f'convnext-{ours}'),
        }
    )


def enlarged(base: str, kernel_size: int | dict[str, int]) -> Changes:
    """The toolbox's own recipe with its backbone enlarged."""
    of_backbone = {key: value for key, value in resolved(base).items() if key.startswith('model.backbone.')}
    moved = {key.replace('backbone', 'backbone.backbone', 1): (ABSENT, value) for key, value in of_backbone.items()}
    gone = {key: (value, ABSENT) for key, value in of_backbone.items()}
    kernels = {name: (ABSENT, size) for name, size in flatten(kernel_size, 'model.backbone.kernel_size').items()}
    changed: Changes = {'model.backbone.type': (of_backbone['model.backbone.type'], 'mmpelk.Enlarged')}
    constructor = resolved(base).get(key := 'optim_wrapper.constructor', ABSENT)
    if constructor == ABSENT:
        changed[key] = (ABSENT, 'mmpelk.PeripheralOptimWrapperConstructor')
    else:
        changed[key] = (constructor, 'mmpelk.LayerDecayOptimWrapperConstructor')
        changed['optim_wrapper.paramwise_cfg.peripheral_lr_mult'] = (ABSENT, 0.1)
    return moved | gone | kernels | changed


ENLARGED: dict[str, tuple[str, int | dict[str, int]]] = {
    'seg/upernet_convnext_t_enlarged_ade20k': (
        'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
        {'stages.0.*': 51, 'stages.1.*': 49, 'stages.2.*': 47, 'stages.3.*': 13},
    ),
    'det/rtmdet_tiny_enlarged_coco': ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco', 31),
    'det/rtmdet_ins_tiny_enlarged_coco': ('mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco', 31),
    'cls/mobilenet_v2_enlarged_in1k': ('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k', 31),
    'cls/mobilenet_v3_large_enlarged_in1k': ('mmpretrain::mobilenet_v3/mobilenet-v3-large_8xb128_in1k', 31),
}

# At 384 x 384, testing on the whole image.
LARGE_IMAGES: Changes = {
    'train_dataloader.dataset.pipeline.1.scale': (224, 384),
    'val_dataloader.dataset.pipeline.1.edge': ('short', ABSENT),
    'val_dataloader.dataset.pipeline.1.scale': (256, 384),
    'val_dataloader.dataset.pipeline.1.type': ('ResizeEdge', 'Resize'),
    'val_dataloader.dataset.pipeline.2.crop_size': (224, ABSENT),
    'val_dataloader.dataset.pipeline.2.type': ('CenterCrop', 'PackInputs'),
    'val_dataloader.dataset.pipeline.3.type': ('PackInputs', ABSENT),
}
SMALL: Changes = {
    'custom_hooks': ([sparsity(update_interval=2000, prune_rate=0.5), EMA],
                     [sparsity(update_interval=100, prune_rate=0.3), EMA]),
    'model.backbone.arch': ('tiny', 'small'),
    'model.backbone.drop_path_rate': (0.1, 0.4),
}  # fmt: skip
BASE: Changes = SMALL | {
    'model.backbone.arch': ('tiny', 'base'),
    'model.backbone.drop_path_rate': (0.1, 0.5),
    'model.head.in_channels': (998, 1331),
}
ALL_CHANNELS: Changes = {
    'model.backbone.conv_ratio': (ABSENT, 1.0),
    'model.backbone.positional_embedding': (ABSENT, None),
}
K101: Changes = {'model.backbone.arch': ('base', 'base-101')}
BIG_CASCADE: Changes = {
    'model.backbone.drop_path_rate': (0.6, 0.7),
    'optim_wrapper.paramwise_cfg.decay_rate': (0.7, 0.8),
}


def dinov3(size: str, before: str = 'URL') -> Changes:
    return {'model.backbone.init_cfg.checkpoint': (before, f'timm://convnext_{size}.dinov3_lvd1689m')}


LARGE: Changes = dinov3('large', 'timm://convnext_base.dinov3_lvd1689m') | {
    'model.backbone.arch': ('convnext-base', 'convnext-large')
}

UPERNET, CASCADE = (
    'mmseg::convnext/convnext-{}_upernet_8xb2-amp-160k_ade20k-512x512',
    ('mmdet::convnext/cascade-mask-rcnn_convnext-{}-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco'),
)
RESNET, EMBEDDINGS = (256, 512, 1024, 2048), ('query_embed', 'query_feat', 'level_embed')
THEIR_T, THEIR_B, THEIR_L = (96, 192, 384, 768), (128, 256, 512, 1024), (192, 384, 768, 1536)

# Recipe, what it is compared with, and all that they differ in: the value there, and here.
DIFFERENCES: dict[str, tuple[str | tuple[str, ...], Changes]] = {
    'seg/upernet_pelk_t_ade20k': (UPERNET.format('tiny'), segmentation(THEIR_T, T) | weights('t')),
    'seg/upernet_pelk_s_ade20k': (UPERNET.format('small'), segmentation(THEIR_T, T) | weights('s')),
    'seg/upernet_pelk_b_ade20k': (UPERNET.format('base'), segmentation(THEIR_B, B) | weights('b')),
    'seg/upernet_pelk_b_101_ade20k': (
        'seg/upernet_pelk_b_ade20k',
        K101 | weights('b_101', 'checkpoints/pelk_b_in1k.pth'),
    ),
    'det/cascade_mask_rcnn_pelk_t_coco': (CASCADE.format('t'), cascade(THEIR_T, T, 6) | weights('t')),
    'det/cascade_mask_rcnn_pelk_s_coco': (CASCADE.format('s'), cascade(THEIR_T, T, 12) | weights('s')),
    # mmdet has none for ConvNeXt-B; it is as deep as ConvNeXt-S. Drop path and decay are those of ConvNeXt's paper.
    'det/cascade_mask_rcnn_pelk_b_coco': (
        CASCADE.format('s'),
        cascade(THEIR_T, B, 12) | weights('b') | BIG_CASCADE | {'model.backbone.arch': ('small', 'base')},
    ),
    'det/cascade_mask_rcnn_pelk_b_101_coco': (
        'det/cascade_mask_rcnn_pelk_b_coco',
        K101 | weights('b_101', 'checkpoints/pelk_b_in1k.pth'),
    ),
    **{
        f'seg/upernet_pelk_convnext_{size[0]}_ade20k': (
            UPERNET.format(size),
            inflated(segmentation(widths, widths), size, size),
        )
        for size, widths in (('tiny', THEIR_T), ('small', THEIR_T), ('base', THEIR_B))
    },
    **{
        f'det/cascade_mask_rcnn_pelk_convnext_{size[0]}_coco': (
            CASCADE.format(size[0]),
            inflated(cascade(THEIR_T, THEIR_T, layers), size, size),
        )
        for size, layers in (('tiny', 6), ('small', 12))
    },
    'det/cascade_mask_rcnn_pelk_convnext_b_coco': (
        CASCADE.format('s'),
        inflated(cascade(THEIR_T, THEIR_B, 12), 'small', 'base') | BIG_CASCADE,
    ),
    **{
        f'{name}_dinov3_{size[0]}_{data}': (f'{name}_convnext_{size[0]}_{data}', dinov3(size))
        for size in ('tiny', 'small', 'base')
        for name, data in (('seg/upernet_pelk', 'ade20k'), ('det/cascade_mask_rcnn_pelk', 'coco'))
    },
    'seg/upernet_pelk_dinov3_l_ade20k': (
        'seg/upernet_pelk_dinov3_b_ade20k',
        LARGE
        | {
            'model.auxiliary_head.in_channels': (THEIR_B[2], THEIR_L[2]),
            'model.decode_head.in_channels': (THEIR_B, THEIR_L),
        },
    ),
    'det/cascade_mask_rcnn_pelk_dinov3_l_coco': (
        'det/cascade_mask_rcnn_pelk_dinov3_b_coco',
        LARGE | {'model.neck.in_channels': (THEIR_B, THEIR_L)},
    ),
    **{
        f'seg/upernet_pelk_dinov3_{size}_frozen_ade20k': (
            f'seg/upernet_pelk_dinov3_{size}_ade20k',
            {'model.backbone.frozen_stages': (ABSENT, 4), 'model.backbone.kernel_sizes': (ABSENT, (7, 7, 7, 7))},
        )
        for size in 'tsbl'
    },
    'det/mask_rcnn_pelk_t_coco_1x': (
        # With the toolbox's training at one scale.
        ('mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco', 'mmdet::_base_/datasets/coco_instance'),
        PELK
        | weights('t')
        | {
            'model.backbone.drop_path_rate': (0.4, 0.2),
            'model.backbone.norm_cfg': (ABSENT, SYNC_BN | dict(type='BN')),
            'model.backbone.norm_eval': (ABSENT, True),
            'model.neck.in_channels': (THEIR_T, T),
            'optim_wrapper.accumulative_counts': (ABSENT, 4),
            'optim_wrapper.paramwise_cfg.num_layers': (6, ABSENT),
            'param_scheduler.1.end': (36, 12),
            'param_scheduler.1.milestones': ((27, 33), (8, 11)),
            'train_cfg.max_epochs': (36, 12),
            'train_dataloader.batch_size': (2, 4),
        },
    ),
    'seg/mask2former_pelk_t_ade20k': (
        'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
        instead_of_resnet(0.3, dict(deep_stem=False, frozen_stages=-1, norm_cfg=SYNC_BN | dict(requires_grad=False)))
        | {f'optim_wrapper.paramwise_cfg.custom_keys.{key}.lr_mult': (1.0, ABSENT) for key in EMBEDDINGS}
        | {
            'model.decode_head.in_channels': (RESNET, T),
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.decay_mult': (1.0, ABSENT),
            'optim_wrapper.paramwise_cfg.decay_rate': (ABSENT, 0.9),
            'optim_wrapper.paramwise_cfg.decay_type': (ABSENT, 'stage_wise'),
            'optim_wrapper.paramwise_cfg.norm_decay_mult': (0.0, ABSENT),  # our constructor's, too
            'optim_wrapper.paramwise_cfg.num_layers': (ABSENT, 6),
        },
    ),
    'seg/mask2former_pelk_convnext_t_ade20k': (
        'seg/mask2former_pelk_t_ade20k',
        with_large_kernels('decode_head.in_channels', slice(0, 4)),
    ),
    'det/dino_4scale_pelk_t_coco': (
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco',
        instead_of_resnet(0.2, dict(frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True))
        | {
            'model.neck.in_channels': (RESNET[1:], T[1:]),
            'optim_wrapper.paramwise_cfg.decay_rate': (ABSENT, 0.7),
            'optim_wrapper.paramwise_cfg.decay_type': (ABSENT, 'layer_wise'),
        },
    ),
    'det/dino_4scale_pelk_convnext_t_coco': (
        'det/dino_4scale_pelk_t_coco',
        with_large_kernels('neck.in_channels', slice(1, 4)),
    ),
    'cls/pelk_t_in1k': (
        'mmpretrain::convnext/convnext-tiny_32xb128_in1k',
        HOOKS
        | {
            'auto_scale_lr.enable': (ABSENT, False),
            'custom_hooks': (
                [EMA | dict(priority='ABOVE_NORMAL')],
                [sparsity(update_interval=2000, prune_rate=0.5), EMA],
            ),
            'default_hooks.checkpoint.max_keep_ckpts': (ABSENT, 3),
            'default_hooks.logger.interval': (100, 50),
            'env_cfg.cudnn_benchmark': (False, True),
            'model.backbone.norm_cfg': (ABSENT, SYNC_BN),
            'model.backbone.type': ('ConvNeXt', 'mmpelk.PeLK'),
            'model.head.in_channels': (768, 998),
            # PeLK initialises its own layers in the same way.
            'model.head.init_cfg': (None, dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0)),
            'model.init_cfg': (dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0), ABSENT),
            'optim_wrapper.clip_grad': (None, ABSENT),
            'optim_wrapper.optimizer.eps': (1e-8, ABSENT),  # the default
            'optim_wrapper.paramwise_cfg.custom_keys..absolute_pos_embed.decay_mult': (0.0, ABSENT),
            'optim_wrapper.paramwise_cfg.custom_keys..relative_position_bias_table.decay_mult': (0.0, ABSENT),
            'optim_wrapper.paramwise_cfg.custom_keys.positional_embedding.decay_mult': (ABSENT, 0.0),
            'optim_wrapper.type': (ABSENT, 'OptimWrapper'),
            'param_scheduler.0.begin': (ABSENT, 0),
            'param_scheduler.0.start_factor': (1e-3, 1e-6),  # SLaK's, as is the next
            'param_scheduler.1.eta_min': (1e-5, 1e-6),
            'param_scheduler.1.convert_to_iter_based': (ABSENT, True),
            'param_scheduler.1.end': (ABSENT, 300),
            'randomness.deterministic': (False, ABSENT),
            'randomness.seed': (None, ABSENT),
            'val_dataloader.batch_size': (64, 128),
            **{f'{split}_dataloader.num_workers': (5, 8) for split in ('train', 'val')},
            **{f'{split}_dataloader.persistent_workers': (ABSENT, True) for split in ('train', 'val')},
        },
    ),
    'cls/pelk_convnext_t_in1k': (
        'cls/pelk_t_in1k',
        {
            'custom_hooks': ([sparsity(update_interval=2000, prune_rate=0.5), EMA], [EMA]),
            'model.backbone.arch': ('tiny', 'convnext-tiny'),
            'model.head.in_channels': (998, 768),
            'optim_wrapper.constructor': (ABSENT, 'mmpelk.PeripheralOptimWrapperConstructor'),
        },
    ),
    'cls/pelk_s_in1k': ('cls/pelk_t_in1k', SMALL),
    'cls/pelk_b_in1k': ('cls/pelk_t_in1k', BASE),
    **{
        f'cls/pelk_{size}_unit_in1k': (
            f'cls/pelk_{size}_in1k',
            {'custom_hooks': ([sparsity(**rate), EMA], [sparsity(**rate, **UNITS), EMA])},
        )
        for size, rate in (
            ('t', dict(update_interval=2000, prune_rate=0.5)),
            ('s', dict(update_interval=100, prune_rate=0.3)),
            ('b', dict(update_interval=100, prune_rate=0.3)),
        )
    },
    'cls/pelk_b_in1k_384': (
        'cls/pelk_b_in1k',
        LARGE_IMAGES
        | {
            # The same batch at the same step: both hooks count iterations, of which a step has four.
            'custom_hooks': (
                [sparsity(update_interval=100, prune_rate=0.3), EMA],
                [sparsity(update_interval=4 * 100, prune_rate=0.3), EMA | dict(interval=4)],
            ),
            'optim_wrapper.accumulative_counts': (ABSENT, 4),
            'train_dataloader.batch_size': (128, 128 // 4),
        },
    ),
    'cls/pelk_b_101_in1k_384': ('cls/pelk_b_in1k_384', K101),
    'cls/slak_t_in1k': ('cls/pelk_t_in1k', {'model.backbone.mixer': (ABSENT, 'stripe'), **ALL_CHANNELS}),
    'cls/replk_51_t_in1k': ('cls/pelk_t_in1k', {'model.backbone.mixer': (ABSENT, 'dense'), **ALL_CHANNELS}),
    'cls/convnext_t_in1k': (
        'cls/pelk_t_in1k',
        ALL_CHANNELS
        | {
            'custom_hooks': ([sparsity(update_interval=2000, prune_rate=0.5), EMA], [EMA]),
            'model.backbone.channels': (ABSENT, THEIR_T),
            'model.backbone.kernel_sizes': (ABSENT, (7, 7, 7, 7)),
            'model.backbone.mixer': (ABSENT, 'conv7'),
            'model.head.in_channels': (998, 768),
        },
    ),
}


@pytest.mark.parametrize('name', DIFFERENCES)
def test_recipe_differs_in_nothing_else(name: str) -> None:
    base, changes = DIFFERENCES[name]
    assert difference(base, name) == changes


@pytest.mark.parametrize('name', ENLARGED)
def test_enlarged_recipe_differs_in_nothing_else(name: str) -> None:
    base, kernel_size = ENLARGED[name]
    assert difference(base, name) == enlarged(base, kernel_size)


def test_every_recipe_is_compared() -> None:
    assert [f'{name}.py' for name in sorted({*DIFFERENCES, *ENLARGED})] == [
        name for name in RECIPES if not name.startswith('demo/')
    ]


@pytest.mark.parametrize(
    ('name', 'base'),
    [
        ('upernet_pelk_nano_synthetic', 'seg/upernet_pelk_t_ade20k'),
        ('mask_rcnn_pelk_nano_synthetic', 'det/mask_rcnn_pelk_t_coco_1x'),
        ('mask_rcnn_pelk_nano_coco_overfit', 'demo/mask_rcnn_pelk_nano_synthetic'),
        ('pelk_nano_digits', 'cls/pelk_t_in1k'),
        *((f'{mixer}_nano_digits', 'demo/pelk_nano_digits') for mixer in ('conv7', 'stripe')),
    ],
)
def test_demo_is_as_its_results_were_measured(name: str, base: str, compare: Callable[[str], None]) -> None:
    """All that it sets otherwise than the recipe, or the demo, that it varies."""
    compare('\n'.join(f'{key}: {after}' for key, (_, after) in sorted(difference(base, f'demo/{name}').items())))


@pytest.mark.parametrize(
    ('name', 'theirs'),
    [
        *((f'seg/upernet_pelk_convnext_{size[0]}_ade20k', UPERNET.format(size)) for size in ('tiny', 'small', 'base')),
        *((f'det/cascade_mask_rcnn_pelk_convnext_{size}_coco', CASCADE.format(size)) for size in 'ts'),
        *((name, UPERNET.format('tiny')) for name in RECIPES if re.search('(2former|4scale)_pelk_convnext_t', name)),
        ('det/cascade_mask_rcnn_pelk_convnext_b_coco', UPERNET.format('base')),
    ],
)
def test_weights_are_the_file_of_the_toolbox(name: str, theirs: str) -> None:
    files = [
        Config.fromfile(config(one.removesuffix('.py'))).model.backbone.init_cfg.checkpoint for one in (name, theirs)
    ]
    assert files[0].rpartition('/')[2] == files[1].rpartition('/')[2]


@pytest.mark.parametrize('name', [name for name in RECIPES if 'upernet' in name])
def test_mmsegs_tools_find_the_preprocessor(name: str) -> None:
    """At the top of the config, as ``visualization_cam.py`` reads it."""
    cfg = Config.fromfile(CONFIGS / name)
    for key in ('type', 'mean', 'std', 'bgr_to_rgb'):
        assert cfg.data_preprocessor[key] == cfg.model.data_preprocessor[key]


def test_recipe_survives_its_dump() -> None:
    cfg = Config.fromfile(config('det/cascade_mask_rcnn_pelk_t_coco'))
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


def test_package_lists_every_recipe() -> None:
    assert mmpelk.list_configs() == RECIPES


def test_model_index_names_existing_recipes() -> None:
    load = pytest.importorskip('modelindex.load_model_index').load
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    configs = {Path(model.config) for model in index.models}
    assert {CONFIGS.relative_to(ROOT) / name for name in RECIPES if not name.startswith('demo/')} <= configs
    assert all((ROOT / config).is_file() for config in configs)
