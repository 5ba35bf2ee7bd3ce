# Table 5: 5, [8, 4, 2, 1, 1, 1].
_base_ = './pelk_t.py'

model = dict(
    backbone=dict(
        arch=dict(kernel_sizes=(33, 33, 33, 33), sharing_grids=[[8, 4, 2, 1, 1, 1]] * 4),
        positional_embedding=None,
    ),
)
custom_hooks = [_base_.ema]
