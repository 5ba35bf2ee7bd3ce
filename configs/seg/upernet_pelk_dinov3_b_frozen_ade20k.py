# DINOv3's ConvNeXt as it is, under UperNet. Large kernels would stay zero in their periphery and only cost time.
_base_ = './upernet_pelk_dinov3_b_ade20k.py'

model = dict(backbone=dict(kernel_sizes=(7, 7, 7, 7), frozen_stages=4))
