globals().update(__import__('mmpelk').resolve_recipe(__file__))
