"""Classification recipes for pure-Python configs."""
