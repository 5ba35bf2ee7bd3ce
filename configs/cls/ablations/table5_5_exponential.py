# Table 5: 5, [8, 4, 2, 1, 1, 1].
_base_ = './table5_1_ones.py'

model = dict(backbone=dict(sharing_grids=[[8, 4, 2, 1, 1, 1]] * 4))
