"""Protection of long trainings: checkpoints, exact resume, preemption, divergence, bad samples, safe loading.

Imports torch, mmengine, what both need (numpy) or read (safetensors) and itself, nothing of PeLK.
"""
