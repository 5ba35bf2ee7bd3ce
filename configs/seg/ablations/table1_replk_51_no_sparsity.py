# Table 1 on ADE20K: dense kernels, without sparsity.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(
    backbone=dict(
        mixer='dense',
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/table1_replk_51_no_sparsity.pth'),
    ),
)
