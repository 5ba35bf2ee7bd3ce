# ConvNeXt-T: 7 x 7 kernels on all channels, without the 1.3 times width and without sparsity.
_base_ = './pelk_t_in1k.py'

model = dict(
    backbone=dict(
        mixer='conv7',
        channels=(96, 192, 384, 768),
        kernel_sizes=(7, 7, 7, 7),
        conv_ratio=1.0,
        positional_embedding=None,
    ),
    head=dict(in_channels=768),
)
custom_hooks = [_base_.ema]
