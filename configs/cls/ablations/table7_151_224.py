# Table 7: PeLK-151, 224 x 224, 151-89-87-13. The paper gives no centre for PeLK-151; the recipe has PeLK-101's 7 x 7.
_base_ = './pelk_t.py'

model = dict(backbone=dict(kernel_sizes=(151, 89, 87, 13), center_size=7))
