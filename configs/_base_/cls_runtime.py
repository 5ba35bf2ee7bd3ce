_base_ = './default_runtime.py'

default_scope = 'mmpretrain'
default_hooks = dict(
    checkpoint=dict(type='mmpelk.CheckpointHook', interval=1, max_keep_ckpts=3),
    visualization=dict(type='VisualizationHook', enable=False),
)
visualizer = dict(type='UniversalVisualizer', vis_backends={{_base_.vis_backends}})
