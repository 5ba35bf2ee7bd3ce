_base_ = './cascade_mask_rcnn_pelk_t_coco.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.7,  # ConvNeXt-B's Cascade Mask R-CNN
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_b_in1k.pth'),
    ),
    neck=dict(in_channels=_base_.widths.base),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))  # ConvNeXt-B's Cascade Mask R-CNN
