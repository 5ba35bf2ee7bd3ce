# Fig. 2: dense kernels of K = 51, without sparsity.
_base_ = './fig2_stripe_51.py'

model = dict(backbone=dict(mixer='dense'))
