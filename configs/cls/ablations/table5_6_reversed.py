# Table 5: 6, [1, 1, 2, 4, 8, 1].
_base_ = './table5_1_ones.py'

model = dict(backbone=dict(sharing_grids=[[1, 1, 2, 4, 8, 1]] * 4))
