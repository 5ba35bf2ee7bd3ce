# Table 6: [8, 8, 4, 2, 1, 1, 1, 1], 7 x 7.
_base_ = './pelk_t.py'

model = dict(backbone=dict(center_size=7))
