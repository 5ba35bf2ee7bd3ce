# Table 7: PeLK-101, 384 x 384, 101-69-67-13.
_base_ = './pelk_t_384.py'

model = dict(backbone=dict(kernel_sizes=(101, 69, 67, 13), center_size=7))
