# Table 1 on ADE20K: dense kernels, with the sparsity of their pre-training.
_base_ = './table1_slak_51.py'

model = dict(
    backbone=dict(
        mixer='dense',
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/table1_replk_51.pth'),
    ),
)
