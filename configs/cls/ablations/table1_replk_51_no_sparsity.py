# Table 1: RepLK-51, 51 x 51, w/o.
_base_ = './pelk_t.py'

model = dict(backbone=dict(mixer='dense', conv_ratio=1.0, positional_embedding=None))
custom_hooks = [_base_.ema]
