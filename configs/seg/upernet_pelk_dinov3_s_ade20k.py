# Not of the paper: PeLK's kernels in DINOv3's ConvNeXt. The weights have a licence of their own, see docs/inflation.md.
_base_ = './upernet_pelk_convnext_s_ade20k.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='timm://convnext_small.dinov3_lvd1689m')))
