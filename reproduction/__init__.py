"""The reproduction of the paper: what it prints, what is computed and measured of it, and docs/reproduction.md.

A package beside :mod:`mmpelk`, which never imports it: run it in the project's folder, as ``python -m reproduction`` or
``python -m reproduction.NAME``.
"""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What the benchmarks and trainings have written.
RESULTS = ROOT / 'benchmarks/results'


def argument_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m reproduction.MODULE``, described by the module's docstring."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f'python -m reproduction.{module}', description=doc, formatter_class=raw)
