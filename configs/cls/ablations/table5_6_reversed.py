# Table 5: 6, [1, 1, 2, 4, 8, 1].
_base_ = './pelk_t.py'

model = dict(
    backbone=dict(
        arch=dict(kernel_sizes=(33, 33, 33, 33), sharing_grids=[[1, 1, 2, 4, 8, 1]] * 4),
        positional_embedding=None,
    ),
)
custom_hooks = [_base_.ema]
