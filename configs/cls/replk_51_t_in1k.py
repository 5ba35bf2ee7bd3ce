# "RepLK-51" of Table 1, for 300 epochs: SLaK-T with dense 51 x 51 kernels.
_base_ = './pelk_t_in1k.py'

model = dict(backbone=dict(mixer='dense', conv_ratio=1.0, positional_embedding=None))
