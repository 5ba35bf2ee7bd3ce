_base_ = [
    '../_base_/models/pelk_widths.py',
    '../_base_/models/upernet_pelk.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/seg_adamw_160k.py',
    '../_base_/seg_runtime.py',
    '../_base_/sparsity_fixed.py',
]

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.4,  # ConvNeXt-T's UperNet
        # ImageNet-1K weights from your own pre-training: nobody has published any. See docs/training.md.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_t_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=_base_.widths.tiny),
    auxiliary_head=dict(in_channels=_base_.widths.tiny[2]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=6))  # ConvNeXt-T's UperNet
