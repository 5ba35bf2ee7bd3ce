"""Where things lie, for tests that run the project as a user does."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
TOOLS = ROOT / 'tools'
RECIPES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob('*/*.py') if path.parent.name[0] != '_')


def sample_data(name: str) -> Path:
    """Folder of a data set of real images that is not part of the project; the test is skipped where there is none."""
    folder = Path(os.environ.get('MMPELK_SAMPLE_DATA', ROOT.parent / 'shared' / 'data')) / name
    if not folder.is_dir():
        pytest.skip(f'no sample data in {folder}; set MMPELK_SAMPLE_DATA to the folder that holds {name}')
    return folder
