# Table 5: 1, [1, 1, ..., 1, 1].
_base_ = './pelk_t.py'

model = dict(backbone=dict(sharing_grids=[[1] * 17] * 4, kernel_sizes=(33, 33, 33, 33), positional_embedding=None))
custom_hooks = [_base_.ema]
