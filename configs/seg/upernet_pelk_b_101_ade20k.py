_base_ = './upernet_pelk_b_ade20k.py'

model = dict(
    backbone=dict(
        arch='base-101',
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_b_101_in1k.pth'),
    ),
)
