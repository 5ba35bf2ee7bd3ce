# Fig. 2: dense kernels of K = 13, without sparsity.
_base_ = './fig2_stripe_13.py'

model = dict(backbone=dict(mixer='dense'))
