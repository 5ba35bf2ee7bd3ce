# Table 6: a fine-grained centre of 1 x 1.
_base_ = './pelk_t.py'

model = dict(backbone=dict(center_size=1))
