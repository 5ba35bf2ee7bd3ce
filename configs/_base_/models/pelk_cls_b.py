# PeLK-B with a classifier.
_base_ = './pelk_cls_s.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5),
    head=dict(in_channels=_base_.widths.base[-1]),
)
