"""Protection of long trainings: checkpoints, exact resume, preemption, divergence, bad samples, safe loading.

Imports torch, mmengine and itself, nothing of PeLK.
"""
