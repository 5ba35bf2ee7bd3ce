# Table 5, row 4.
_base_ = './table5_1_ones.py'

grid = [4, 4, 4, 2, 1, 1, 1]
model = dict(backbone=dict(sharing_grids=[grid, grid, grid, grid]))
