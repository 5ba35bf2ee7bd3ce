# Mask R-CNN on PeLK: mmdet's, with another backbone. A recipe adds the size of its backbone and the neck's widths.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpelk.PeLK',
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        layer_scale_init_value=1.0,  # ConvNeXt's for detection; the pretrained values replace it
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
)
