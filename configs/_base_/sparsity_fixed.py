# The paper's sparsity as it is used downstream: the backbone keeps the masks that its pretrained weights bring.
# To train densely: --cfg-options custom_hooks.0.mode=dense
custom_hooks = [dict(type='mmpelk.SparsityHook', mode='fixed')]
