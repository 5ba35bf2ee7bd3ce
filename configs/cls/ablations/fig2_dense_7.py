# Fig. 2: dense (K x K), 7.
_base_ = './pelk_t.py'

model = dict(
    backbone=dict(arch=dict(kernel_sizes=(7, 7, 7, 7)), mixer='dense', conv_ratio=1.0, positional_embedding=None),
)
custom_hooks = [_base_.ema]
