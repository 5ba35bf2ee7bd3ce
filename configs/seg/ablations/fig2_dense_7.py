# Fig. 2 on ADE20K: dense kernels of K = 7, without sparsity.
_base_ = './fig2_stripe_7.py'

model = dict(
    backbone=dict(
        mixer='dense',
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/fig2_dense_7.pth'),
    ),
)
