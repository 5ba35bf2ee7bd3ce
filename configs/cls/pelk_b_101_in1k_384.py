# PeLK-B-101 of Table 4: kernels of 101 for the larger maps of 384 x 384.
_base_ = './pelk_b_in1k_384.py'

model = dict(backbone=dict(arch='base-101'))
