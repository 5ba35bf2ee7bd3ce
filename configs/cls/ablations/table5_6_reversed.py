# Table 5, row 6: fine at the rim, coarse towards the centre.
_base_ = './table5_1_ones.py'

grid = [1, 1, 2, 4, 8, 1]
model = dict(backbone=dict(sharing_grids=[grid, grid, grid, grid]))
