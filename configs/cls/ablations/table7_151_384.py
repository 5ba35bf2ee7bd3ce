# Table 7: PeLK-151 at 384 x 384. The paper gives no centre; 7 x 7 is PeLK-101's.
_base_ = './pelk_t_384.py'

model = dict(backbone=dict(kernel_sizes=(151, 89, 87, 13), center_size=7))
