# docs/reliability.md: nothing is lost by a kill, a full disk, a preemption, a bad file or a bad batch. The name is not
# default_hooks, so that a child of a toolbox's whole recipe, which has those, can take these, too.
mmpelk_hooks = dict(
    resume=dict(type='mmpelk.ResumeHook'),
    divergence=dict(type='mmpelk.DivergenceHook'),
    check_data=dict(type='mmpelk.CheckDataHook'),
    preemption=dict(type='mmpelk.PreemptionHook'),
    progress_line=dict(type='mmpelk.ProgressLineHook'),  # on a terminal alone
    run_estimate=dict(type='mmpelk.RunEstimateHook'),
    progress_picture=dict(type='mmpelk.ProgressPictureHook'),
)
