# Fig. 2: stripe (K x 5), 7.
_base_ = './upernet_pelk_t_80k.py'

model = dict(
    backbone=dict(
        arch=dict(kernel_sizes=(7, 7, 7, 7)),
        mixer='stripe',
        conv_ratio=1.0,
        positional_embedding=None,
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/fig2_stripe_7.pth'),
    ),
)
custom_hooks = []
