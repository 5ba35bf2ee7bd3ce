# Fig. 2: dense (K x K), 7.
_base_ = './table1_replk_51_no_sparsity.py'

model = dict(
    backbone=dict(
        kernel_sizes=(7, 7, 7, 7),
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/fig2_dense_7.pth'),
    ),
)
