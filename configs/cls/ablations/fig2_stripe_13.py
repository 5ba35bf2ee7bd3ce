# Fig. 2: stripe (K x 5), 13.
_base_ = './pelk_t.py'

model = dict(
    backbone=dict(arch=dict(kernel_sizes=(13, 13, 13, 13)), mixer='stripe', conv_ratio=1.0, positional_embedding=None),
)
custom_hooks = [_base_.ema]
