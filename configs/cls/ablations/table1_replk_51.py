# Table 1: RepLK-51, 51 x 51, w/.
_base_ = './table1_slak_51.py'

model = dict(backbone=dict(mixer='dense'))
