_base_ = './upernet_pelk_t_ade20k.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,  # ConvNeXt-B's UperNet
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_b_in1k.pth'),
    ),
    decode_head=dict(in_channels=_base_.widths.base),
    auxiliary_head=dict(in_channels=_base_.widths.base[2]),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))  # ConvNeXt-B's UperNet
