# Table 1: stripes, with sparsity. SLaK-T for 120 epochs.
_base_ = './pelk_t.py'

model = dict(backbone=dict(mixer='stripe', conv_ratio=1.0, positional_embedding=None))
