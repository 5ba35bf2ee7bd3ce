"""Where weights come from and go to: checkpoints, names of other projects, inflation, publication."""
