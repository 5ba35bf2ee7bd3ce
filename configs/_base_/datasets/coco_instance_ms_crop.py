# COCO 2017 in the layout of MMDetection's docs/en/user_guides/dataset_prepare.md, trained at several scales: resized to
# a short side of 480 to 800, half of the time after a random crop. As ConvNeXt's, which took it from DETR.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

multi_scale = dict(
    type='RandomChoiceResize', scales=[(short_side, 1333) for short_side in range(480, 801, 32)], keep_ratio=True
)
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [multi_scale],
            [
                dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                multi_scale,
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
