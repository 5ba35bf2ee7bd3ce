# Fig. 2: dense kernels of K = 31, without sparsity.
_base_ = './fig2_stripe_31.py'

model = dict(backbone=dict(mixer='dense'))
