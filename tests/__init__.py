"""Makes ``tests`` this folder for processes that tests start, whatever the environment has of that name."""
