# Fig. 2 on ADE20K: stripes of K = 51, without sparsity.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(
    backbone=dict(
        kernel_sizes=(51, 49, 47, 13),
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/fig2_stripe_51.pth'),
    ),
)
