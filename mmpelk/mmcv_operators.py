"""mmcv's compiled operators, which detection needs: are they there, and what compiles them?"""

import importlib
import importlib.metadata

_PACKAGES = ('onedl-mmcv', 'mmcv')


def _requirement() -> str:
    """The installed mmcv as a requirement, whichever line it is from."""
    for name in _PACKAGES:
        try:
            return f'{name}=={importlib.metadata.version(name)}'
        except importlib.metadata.PackageNotFoundError:
            continue
    return _PACKAGES[0]


def compile_command() -> str:
    """What to type in an environment that the project's set-up has not made."""
    return f'pip install --no-build-isolation --force-reinstall --no-deps --no-cache-dir {_requirement()}'


def import_error() -> ImportError | None:
    """Why the operators cannot be imported, or ``None`` if they can."""
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        return error
    return None
