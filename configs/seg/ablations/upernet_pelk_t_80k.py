# UperNet on PeLK-T for the 80k iterations of Section 3: what Table 1 and Fig. 2 vary. Warm-up, decay and drop path as
# for 160k, because the paper's appendix is missing.
_base_ = '../upernet_pelk_t_ade20k.py'

model = dict(
    backbone=dict(
        # Pre-trained for 120 epochs, too: configs/cls/ablations.
        init_cfg=dict(checkpoint='{{$MMPELK_CHECKPOINTS:checkpoints}}/pelk_t.pth'),
    ),
)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = 80000
train_cfg = dict(max_iters=80000)
