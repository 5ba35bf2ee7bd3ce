# Fig. 2: stripe (K x 5), 13.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(
    backbone=dict(
        kernel_sizes=(13, 13, 13, 13),
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/fig2_stripe_13.pth'),
    ),
)
