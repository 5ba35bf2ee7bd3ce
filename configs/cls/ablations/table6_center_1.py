# Table 6: [11, 8, 4, 2, 1], 1 x 1.
_base_ = './pelk_t.py'

model = dict(backbone=dict(center_size=1))
