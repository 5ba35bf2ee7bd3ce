# PeLK-S with a classifier.
_base_ = './pelk_cls_t.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.4))
