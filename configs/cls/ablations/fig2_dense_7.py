# Fig. 2: dense kernels of K = 7, without sparsity.
_base_ = './fig2_stripe_7.py'

model = dict(backbone=dict(mixer='dense'))
