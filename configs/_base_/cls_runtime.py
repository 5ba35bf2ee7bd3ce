_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(logger=dict(interval=50), checkpoint=dict(max_keep_ckpts=3))
env_cfg = dict(cudnn_benchmark=True)
