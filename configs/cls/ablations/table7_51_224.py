# Table 7: PeLK, 224 x 224, 51-49-47-13.
_base_ = './table6_center_5.py'
