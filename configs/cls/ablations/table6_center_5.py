# Table 6: a fine-grained centre of 5 x 5.
_base_ = './pelk_t.py'

model = dict(backbone=dict(center_size=5))
