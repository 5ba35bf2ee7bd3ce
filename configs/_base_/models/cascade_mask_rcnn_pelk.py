# Cascade Mask R-CNN of ConvNeXt and SLaK on PeLK: mmdet's, with another backbone and 4conv1fc GIoU box heads. A recipe
# adds the size of its backbone and the neck's widths.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpelk.PeLK',
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        layer_scale_init_value=1.0,  # ConvNeXt's for detection; the pretrained values replace it
        norm_cfg=norm_cfg,
    ),
    roi_head=dict(
        # The three stages differ in nothing but the spread of the box deltas that they expect.
        bbox_head=[
            dict(
                type='Shared4Conv1FCBBoxHead',
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[std_xy, std_xy, std_wh, std_wh],
                ),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=norm_cfg,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for std_xy, std_wh in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
        ],
    ),
)
