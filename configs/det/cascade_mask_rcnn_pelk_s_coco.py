_base_ = './cascade_mask_rcnn_pelk_t_coco.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.6,  # ConvNeXt-S's Cascade Mask R-CNN
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_s_in1k.pth'),
    ),
)
