"""The reproduction of the paper: what it prints, what is computed and measured of it, and docs/reproduction.md.

A package beside :mod:`mmpelk`, which never imports it: run it in the project's folder, as ``python -m reproduction`` or
``python -m reproduction.NAME``.
"""

from pathlib import Path

__all__ = ['RESULTS', 'ROOT']

ROOT = Path(__file__).resolve().parents[1]
#: What the benchmarks and trainings have written.
RESULTS = ROOT / 'benchmarks/results'
