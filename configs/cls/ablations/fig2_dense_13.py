# Fig. 2: dense (K x K), 13.
_base_ = './pelk_t.py'

model = dict(
    backbone=dict(arch=dict(kernel_sizes=(13, 13, 13, 13)), mixer='dense', conv_ratio=1.0, positional_embedding=None),
)
custom_hooks = [_base_.ema]
