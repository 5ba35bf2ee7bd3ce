# Table 1 on ADE20K: stripes, with the sparsity of their pre-training.
_base_ = './upernet_pelk_t_80k.py'

model = dict(
    backbone=dict(
        mixer='stripe',
        conv_ratio=1.0,
        positional_embedding=None,
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/table1_slak_51.pth'),
    ),
)
