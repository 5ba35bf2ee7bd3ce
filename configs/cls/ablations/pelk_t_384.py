# PeLK-T for 120 epochs at 384 x 384.
_base_ = [
    '../../_base_/models/pelk_cls_t.py',
    '../../_base_/datasets/imagenet_384.py',
    '../../_base_/schedules/cls_adamw_120e.py',
    '../../_base_/cls_runtime.py',
]
