# ConvNeXt's mixer in the nano network of the classification demo, at as many parameters.
_base_ = './pelk_nano_digits.py'

model = dict(
    backbone=dict(mixer='conv7', channels=(44, 87), positional_embedding=None),
    head=dict(in_channels=87),
)
