# What every task shares. A task adds its scope, its visualizer and what depends on its loop.
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # docs/reliability.md: nothing is lost by a kill, a full disk, a preemption, a bad file or a bad batch.
    resume=dict(type='mmpelk.ResumeHook'),
    divergence=dict(type='mmpelk.DivergenceHook'),
    check_data=dict(type='mmpelk.CheckDataHook'),
    preemption=dict(type='mmpelk.PreemptionHook'),
    progress_line=dict(type='mmpelk.ProgressLineHook'),  # on a terminal alone
    run_estimate=dict(type='mmpelk.RunEstimateHook'),
    progress_picture=dict(type='mmpelk.ProgressPictureHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
