_base_ = './upernet_pelk_t_ade20k.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,  # ConvNeXt-S's UperNet
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_s_in1k.pth'),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))  # ConvNeXt-S's UperNet
