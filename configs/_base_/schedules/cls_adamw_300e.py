# 300 epochs at a batch of 4096 (32 GPUs x 128), as ConvNeXt and SLaK: the paper says "the training schedule" and its
# appendix is missing. Sparsity and its schedule are SLaK-T's.
max_epochs = 300
optim_wrapper = dict(
    type='OptimWrapper',  # float32, as ConvNeXt's and SLaK's recipes; --amp trains in mixed precision
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,  # layer scales
        custom_keys={'positional_embedding': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=20, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# As in the paper's columns, the classifier is sparse, too. EMA comes second: its copy of the model holds the masks.
sparsity = dict(type='mmpelk.SparsityHook', mode='dynamic', density=0.6, target=['backbone', 'head'])
ema = dict(type='EMAHook', momentum=1e-4)
custom_hooks = [dict(update_interval=2000, prune_rate=0.5, **sparsity), ema]
auto_scale_lr = dict(enable=False, base_batch_size=4096)
