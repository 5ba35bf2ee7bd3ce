"""Detection recipes for pure-Python configs."""
