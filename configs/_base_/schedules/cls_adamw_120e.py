# The 120 epochs of Section 3 and of the ablations.
_base_ = './cls_adamw_300e.py'

max_epochs = 120
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_epochs
train_cfg = dict(max_epochs=max_epochs)
