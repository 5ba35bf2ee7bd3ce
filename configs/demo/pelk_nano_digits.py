# The classification demo: a nano PeLK on the handwritten digits of tools/demo/make_classification_data.py.
# conv7_nano_digits.py and stripe_nano_digits.py are networks of as many parameters with other mixers.
_base_ = [
    '../_base_/models/pelk_cls_t.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/cls_adamw_300e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(
        depths=(1, 1),
        channels=(40, 80),
        kernel_sizes=(13, 7),
        stem_patch_size=2,
        conv_ratio=1.0,  # as the networks it is compared with
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
        norm_cfg=dict(type='BN'),
    ),
    head=dict(num_classes=10, in_channels=80, topk=(1,)),
    train_cfg=None,  # neither mixup nor cutmix
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(_delete_=True, type='CustomDataset', data_root='data/demo_classification')
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_prefix='train', pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_prefix='test', pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

max_epochs = 12
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=1, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
custom_hooks = []
default_hooks = dict(logger=dict(interval=7), checkpoint=dict(interval=max_epochs, max_keep_ckpts=1))
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
