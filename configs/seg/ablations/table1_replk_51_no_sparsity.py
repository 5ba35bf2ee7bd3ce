# Table 1: RepLK-51, 51 x 51, w/o.
_base_ = './table1_slak_51_no_sparsity.py'

model = dict(
    backbone=dict(
        mixer='dense',
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/table1_replk_51_no_sparsity.pth'),
    ),
)
