# PeLK-S with a classifier.
_base_ = './pelk_cls_t.py'

model = dict(backbone=dict(depths=(3, 3, 27, 3), drop_path_rate=0.4))
