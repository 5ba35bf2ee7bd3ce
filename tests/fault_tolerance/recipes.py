"""The recipes of the three tasks, shrunk until an iteration takes a tenth of a second; all that is random stays."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from tests.paths import CONFIGS

NETWORK = {
    'model.backbone.channels': (8, 12, 16, 20),
    'model.backbone.depths': (1, 1, 1, 1),
    'model.backbone.kernel_sizes': (13, 11, 9, 7),
    'model.backbone.drop_path_rate': 0.5,
    'model.backbone.init_cfg': None,
    'model.backbone.norm_cfg': dict(type='BN'),
    'default_hooks.checkpoint.max_keep_ckpts': 2,
    'default_hooks.logger.interval': 1,
    'train_dataloader.batch_size': 2,
    # Masks that change, and an average of weights that have them.
    'custom_hooks': [
        dict(type='mmpelk.SparsityHook', density=0.6, initialisation='erk', update_interval=2),
        dict(type='EMAHook', momentum=0.1),
    ],
}
NO_VALIDATION = {f'{part}_{kind}': None for part in ('val', 'test') for kind in ('cfg', 'dataloader', 'evaluator')}
SEG = {
    'model.data_preprocessor.size': (32, 32),
    'model.decode_head.in_channels': [8, 12, 16, 20],
    'model.decode_head.channels': 8,
    'model.decode_head.pool_scales': (1, 2),
    'model.decode_head.norm_cfg': dict(type='BN'),
    'model.auxiliary_head.in_channels': 16,
    'model.auxiliary_head.channels': 8,
    'model.auxiliary_head.norm_cfg': dict(type='BN'),
    'model.test_cfg': dict(mode='whole'),
    'train_dataloader.dataset.pipeline': [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', reduce_zero_label=True),
        dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ],
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'train_cfg.max_iters': 8,
    'train_cfg.val_interval': 3,
    'param_scheduler': [dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=2, end=8)],
    'default_hooks.checkpoint.interval': 2,
    'default_hooks.checkpoint.save_best': 'mIoU',
}
CLS = NO_VALIDATION | {
    'model.head.in_channels': 20,
    'train_dataloader.dataset.pipeline': [
        dict(type='LoadImageFromFile'),
        dict(type='RandomResizedCrop', scale=32),
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomErasing', erase_prob=0.5, mode='rand'),
        dict(type='PackInputs'),
    ],
    'train_cfg.max_epochs': 3,
    'param_scheduler': [dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=3, convert_to_iter_based=True)],
}
DET = NO_VALIDATION | {
    'model.neck': dict(in_channels=[8, 12, 16, 20], out_channels=8),
    'model.rpn_head': dict(in_channels=8, feat_channels=8),
    'model.roi_head.bbox_roi_extractor.out_channels': 8,
    'model.roi_head.bbox_head': dict(in_channels=8, conv_out_channels=8, fc_out_channels=16),
    'model.roi_head.mask_roi_extractor.out_channels': 8,
    'model.roi_head.mask_head': dict(in_channels=8, conv_out_channels=8),
    'train_dataloader.batch_size': 1,
    'train_cfg.max_epochs': 3,
    'param_scheduler': [dict(type='MultiStepLR', by_epoch=True, milestones=[1, 2])],
    'default_hooks.checkpoint.interval': 1,
}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    'seg': ('seg/upernet_pelk_t_ade20k.py', SEG),
    'cls': ('cls/pelk_t_in1k.py', CLS),
    'det': ('demo/mask_rcnn_pelk_nano_synthetic.py', DET),
}


def write_recipe(task: str, data_root: Path, out: Path, workers: int = 0, **changes: Any) -> Path:
    """A shrunk recipe as a config file; one of detection is for the demo's shapes.

    Args:
        task: ``'seg'``, ``'cls'`` or ``'det'``.
        data_root: Its data set.
        out: The file.
        workers: Processes that load training data.
        **changes: More settings, ``__`` for a dot.
    """
    name, settings = TASKS[task]
    cfg = Config.fromfile(CONFIGS / name)
    settings = NETWORK | settings | {key.replace('__', '.'): value for key, value in changes.items()}
    for part in ('train', 'val'):
        if settings.get(f'{part}_dataloader', True) is not None:
            settings[f'{part}_dataloader.dataset.data_root'] = str(data_root)
    settings |= {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}
    cfg.merge_from_dict(settings)
    cfg.randomness = settings.get('randomness', dict(seed=None))
    cfg.dump(out)
    return out
