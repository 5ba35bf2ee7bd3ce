"""Analyses that return data; the tools print and plot it."""
