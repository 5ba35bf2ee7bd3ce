# Does it learn real boxes and masks? A nano PeLK Mask R-CNN trains on a handful of COCO images and is evaluated on the
# same ones: what it reaches says that the parts work together, and nothing about new images. Any small data set in
# COCO's layout will do, see docs/detection.md.
_base_ = './mask_rcnn_pelk_nano_synthetic.py'

num_classes = 80
model = dict(roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes)))

scale = (256, 192)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data_root = 'data/coco_few/'
ann_file = 'annotations/instances_train2017.json'
dataset = dict(data_root=data_root, metainfo=dict(_delete_=True))  # the 80 classes of CocoDataset
train_dataloader = dict(batch_size=3, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(
    dataset=dict(pipeline=test_pipeline, ann_file=ann_file, data_prefix=dict(img='train2017/'), **dataset)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + ann_file)
test_evaluator = val_evaluator

max_epochs = 300
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=50)
default_hooks = dict(checkpoint=dict(interval=50))
