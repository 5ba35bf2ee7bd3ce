# Not of the paper: PeLK's kernels in DINOv3's ConvNeXt. The weights have a licence of their own, see docs/inflation.md.
_base_ = './cascade_mask_rcnn_pelk_dinov3_b_coco.py'

model = dict(
    backbone=dict(arch='convnext-large', init_cfg=dict(checkpoint='timm://convnext_large.dinov3_lvd1689m')),
    neck=dict(in_channels=_base_.widths.convnext_large),
)
