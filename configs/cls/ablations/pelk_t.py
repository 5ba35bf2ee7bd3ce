# PeLK-T for 120 epochs: what the ablations vary.
_base_ = [
    '../../_base_/models/pelk_cls_t.py',
    '../../_base_/datasets/imagenet_224.py',
    '../../_base_/schedules/cls_adamw_120e.py',
    '../../_base_/cls_runtime.py',
]
