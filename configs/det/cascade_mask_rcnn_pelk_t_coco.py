_base_ = [
    '../_base_/models/pelk_widths.py',
    '../_base_/models/cascade_mask_rcnn_pelk.py',
    '../_base_/datasets/coco_instance_ms_crop.py',
    '../_base_/schedules/det_adamw_3x.py',
    '../_base_/det_runtime.py',
    '../_base_/sparsity_fixed.py',
]

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.4,  # ConvNeXt-T's Cascade Mask R-CNN
        # ImageNet-1K weights from your own pre-training: nobody has published any. See docs/training.md.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_t_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=_base_.widths.tiny),
)
