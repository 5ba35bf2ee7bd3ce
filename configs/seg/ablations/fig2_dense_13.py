# Fig. 2: dense (K x K), 13.
_base_ = './upernet_pelk_t_80k.py'

model = dict(
    backbone=dict(
        arch=dict(kernel_sizes=(13, 13, 13, 13)),
        mixer='dense',
        conv_ratio=1.0,
        positional_embedding=None,
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/fig2_dense_13.pth'),
    ),
)
custom_hooks = []
