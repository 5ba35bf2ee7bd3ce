# Table 5, row 5: the grid of Eq. 2.
_base_ = './table5_1_ones.py'

grid = [8, 4, 2, 1, 1, 1]
model = dict(backbone=dict(sharing_grids=[grid, grid, grid, grid]))
