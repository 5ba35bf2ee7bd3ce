# Table 6: [10, 8, 4, 2, 1, 1], 3 x 3.
_base_ = './pelk_t.py'

model = dict(backbone=dict(center_size=3))
