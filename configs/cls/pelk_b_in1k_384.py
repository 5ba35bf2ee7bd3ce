# PeLK-B of Table 4 at 384 x 384, trained from scratch as at 224: the paper says "experiment with" and no more.
# docs/classification.md has the config that fine-tunes pelk_b_in1k.py instead.
_base_ = [
    '../_base_/models/pelk_cls_b.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/cls_adamw_300e.py',
    '../_base_/cls_runtime.py',
]

train_dataloader = dict(batch_size=32)  # 3 times the pixels: 32 GPUs x 32, accumulated 4 times, for 4096
optim_wrapper = dict(accumulative_counts=4)
# SLaK-B's. Both hooks count iterations, and 4 of them are a step.
custom_hooks = [dict(update_interval=400, prune_rate=0.3, **_base_.sparsity), dict(interval=4, **_base_.ema)]
