# Table 1: SLaK-51, 51 x 5 + 5 x 51, w/o.
_base_ = './table1_slak_51.py'

model = dict(
    backbone=dict(init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/table1_slak_51_no_sparsity.pth')),
)
custom_hooks = []
