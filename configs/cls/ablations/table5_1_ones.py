# Table 5, row 1: a grid of ones, that is dense 33 x 33 kernels. PeLK-T without embedding and without sparsity.
# The table prints one grid for all stages, so all stages have its K.
_base_ = './pelk_t.py'

grid = [1] * 33
model = dict(
    backbone=dict(
        kernel_sizes=(33, 33, 33, 33),
        sharing_grids=[grid, grid, grid, grid],
        positional_embedding=None,
    )
)
custom_hooks = [_base_.ema]
