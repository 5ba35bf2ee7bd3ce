# Not of the paper: a light recipe for one GPU. Batch 16 as four times four images, one scale, 12 epochs; optimizer of
# ConvNeXt-T's Mask R-CNN (lr 1e-4, layer decay 0.95).
_base_ = [
    '../_base_/models/pelk_widths.py',
    '../_base_/models/mask_rcnn_pelk.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/det_adamw_3x.py',
    '../_base_/det_runtime.py',
    '../_base_/sparsity_fixed.py',
]

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.2,  # half of the 3x recipe's, for a third of its length: our choice
        # Four images are too few for batch statistics: keep those of the pre-training.
        norm_cfg=dict(type='BN'),
        norm_eval=True,
        # ImageNet-1K weights from your own pre-training: nobody has published any. See docs/training.md.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_t_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=_base_.widths.tiny),
)
train_dataloader = dict(batch_size=4)
max_epochs = 12
optim_wrapper = dict(accumulative_counts=4, optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(max_epochs=max_epochs)
