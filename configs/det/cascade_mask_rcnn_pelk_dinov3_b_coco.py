# Not of the paper: PeLK's kernels in DINOv3's ConvNeXt. The weights have a licence of their own, see docs/inflation.md.
_base_ = './cascade_mask_rcnn_pelk_convnext_b_coco.py'

model = dict(backbone=dict(init_cfg=dict(checkpoint='timm://convnext_base.dinov3_lvd1689m')))
