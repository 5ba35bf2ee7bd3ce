# PeLK-T of Table 4: 300 epochs at 224 x 224, 40 % dynamic sparsity.
_base_ = [
    '../_base_/models/pelk_cls_t.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/cls_adamw_300e.py',
    '../_base_/cls_runtime.py',
]
