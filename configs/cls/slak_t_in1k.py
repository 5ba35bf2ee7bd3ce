# SLaK-T: stripes of 51 x 5 and 5 x 51 on all channels. Everything else is PeLK-T's recipe, which is SLaK-T's.
_base_ = './pelk_t_in1k.py'

model = dict(backbone=dict(mixer='stripe', conv_ratio=1.0, positional_embedding=None))
