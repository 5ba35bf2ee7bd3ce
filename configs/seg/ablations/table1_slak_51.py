# Table 1: SLaK-51, 51 x 5 + 5 x 51, w/.
_base_ = './upernet_pelk_t_80k.py'

model = dict(
    backbone=dict(
        mixer='stripe',
        conv_ratio=1.0,
        positional_embedding=None,
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/table1_slak_51.pth'),
    ),
)
