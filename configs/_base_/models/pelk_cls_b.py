# PeLK-B with a classifier.
_base_ = './pelk_cls_s.py'

model = dict(
    backbone=dict(arch=dict(channels=(166, 332, 665, 1331)), drop_path_rate=0.5),
    head=dict(in_channels=1331),
)
