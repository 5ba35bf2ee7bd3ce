# Table 1 on ADE20K: stripes, without sparsity.
_base_ = './table1_slak_51.py'

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/table1_slak_51_no_sparsity.pth'),
    ),
)
custom_hooks = []
