# Table 7: PeLK-101 at 384 x 384.
_base_ = './pelk_t_384.py'

model = dict(backbone=dict(kernel_sizes=(101, 69, 67, 13), center_size=7))
