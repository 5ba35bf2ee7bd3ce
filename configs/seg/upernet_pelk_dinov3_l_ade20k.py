# Not of the paper: PeLK's kernels in DINOv3's ConvNeXt. The weights have a licence of their own, see docs/inflation.md.
_base_ = './upernet_pelk_dinov3_b_ade20k.py'

model = dict(
    backbone=dict(arch='convnext-large', init_cfg=dict(checkpoint='timm://convnext_large.dinov3_lvd1689m')),
    decode_head=dict(in_channels=_base_.widths.convnext_large),
    auxiliary_head=dict(in_channels=_base_.widths.convnext_large[2]),
)
