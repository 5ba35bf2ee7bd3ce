# Table 6: [9, 8, 4, 2, 1, 1, 1], 5 x 5.
_base_ = './pelk_t.py'
