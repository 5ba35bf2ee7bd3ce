_base_ = [
    '../_base_/models/upernet_pelk.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/seg_adamw_160k.py',
    '../_base_/seg_runtime.py',
    '../_base_/sparsity_fixed.py',
]

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,  # ConvNeXt-B's UperNet
        # ImageNet-1K weights from your own pre-training: nobody has published any. See docs/training.md.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_b_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=[166, 332, 665, 1331]),
    auxiliary_head=dict(in_channels=665),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))  # ConvNeXt-B's UperNet
