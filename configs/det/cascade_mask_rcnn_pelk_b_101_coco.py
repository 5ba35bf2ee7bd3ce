_base_ = './cascade_mask_rcnn_pelk_b_coco.py'

model = dict(
    backbone=dict(
        arch='base-101',
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_b_101_in1k.pth'),
    ),
)
