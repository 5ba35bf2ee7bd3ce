# Table 7: PeLK-101, 224 x 224, 101-69-67-13.
_base_ = './pelk_t.py'

model = dict(backbone=dict(kernel_sizes=(101, 69, 67, 13), center_size=7))
