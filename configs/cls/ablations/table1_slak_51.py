# Table 1: SLaK-51, 51 x 5 + 5 x 51, w/.
_base_ = './pelk_t.py'

model = dict(backbone=dict(mixer='stripe', conv_ratio=1.0, positional_embedding=None))
