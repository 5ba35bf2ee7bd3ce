# Fig. 2 on ADE20K: dense kernels of K = 31, without sparsity.
_base_ = './fig2_stripe_31.py'

model = dict(
    backbone=dict(
        mixer='dense',
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/fig2_dense_31.pth'),
    ),
)
