# The demo: a PeLK of two stages on the pictures of tools/demo/make_segmentation_data.py, minutes on two CPU cores.
# docs/demo.md says what the set asks of a network, and why this one is as it is.
_base_ = [
    '../_base_/models/upernet_pelk.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/seg_adamw_160k.py',
    '../_base_/seg_runtime.py',
]
# Name, colour in paintings (all of different luminance), weight in the loss (the rarer, the more).
_classes = dict(
    sand=([240, 222, 180], 1.0),
    grass=([160, 205, 140], 1.0),
    water=([120, 165, 215], 1.0),
    disc=([175, 75, 150], 3.0),
    box=([60, 45, 70], 3.0),
    wall_white=([205, 205, 205], 2.0),
    wall_black=([30, 30, 30], 2.0),
    wall_red=([130, 40, 40], 2.0),
    tent_white=([255, 255, 255], 6.0),
    tent_black=([0, 0, 0], 6.0),
    tent_red=([230, 20, 20], 6.0),
)
metainfo = dict(classes=tuple(_classes), palette=[colour for colour, _ in _classes.values()])
channels = [32, 64]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        # The maps are 32x32 and 16x16. Deeper networks see the whole picture with 7x7 kernels too.
        depths=(1, 1),
        channels=channels,
        kernel_sizes=(31, 29),
        out_indices=(0, 1),
    ),
    decode_head=dict(
        in_channels=channels,
        in_index=[0, 1],
        pool_scales=(),  # no pyramid pooling: the kernels of the backbone are all that sees far
        channels=32,
        dropout_ratio=0.0,
        num_classes=len(_classes),
        loss_decode=dict(class_weight=[weight for _, weight in _classes.values()]),
    ),
    auxiliary_head=None,
    test_cfg=dict(_delete_=True, mode='whole'),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
# ADE20KDataset insists on its own class names; this is its parent.
_dataset = dict(type='BaseSegDataset', data_root='data/demo_segmentation', metainfo=metainfo, reduce_zero_label=True)
# The pictures are small: loading them takes less time than handing them over between processes.
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline, **_dataset)
)
val_dataloader = dict(
    batch_size=15, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **_dataset)
)
test_dataloader = val_dataloader

max_iters = 700
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.03, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=100)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=max_iters))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=8)
