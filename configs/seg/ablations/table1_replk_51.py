# Table 1: RepLK-51, 51 x 51, w/.
_base_ = './upernet_pelk_t_80k.py'

model = dict(
    backbone=dict(
        mixer='dense',
        conv_ratio=1.0,
        positional_embedding=None,
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/table1_replk_51.pth'),
    ),
)
