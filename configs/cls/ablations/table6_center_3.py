# Table 6: a fine-grained centre of 3 x 3.
_base_ = './pelk_t.py'

model = dict(backbone=dict(center_size=3))
