# Table 6: a fine-grained centre of 7 x 7.
_base_ = './pelk_t.py'

model = dict(backbone=dict(center_size=7))
