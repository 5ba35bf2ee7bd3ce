# Not of the paper: PeLK's kernels in ConvNeXt, which starts as that very network from its public ImageNet-1K weights.
_base_ = './cascade_mask_rcnn_pelk_b_coco.py'

model = dict(
    backbone=dict(
        arch='convnext-base',
        init_cfg=dict(
            _delete_=True,
            type='mmpelk.Inflated',
            # What the toolbox's own recipe starts from.
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/convnext/downstream/convnext-base_3rdparty_32xb128-noema_in1k_20220301-2a0ee547.pth',
        ),
    ),
    neck=dict(in_channels=_base_.widths.convnext_base),
)
custom_hooks = []  # these weights are dense
