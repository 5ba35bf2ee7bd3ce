"""Segmentation recipes for pure-Python configs."""
