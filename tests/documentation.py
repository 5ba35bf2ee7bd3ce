"""Programs as the documentation prints them."""

import re

from tests.paths import ROOT


def program(contains: str, language: str = 'python', page: str = 'deployment.md') -> str:
    """The first program of a page that contains a word.

    Args:
        contains: The word.
        language: Of the program.
        page: Below ``docs/``.
    """
    text = (ROOT / 'docs' / page).read_text()
    programs = re.findall(rf'^ *```{re.escape(language)}\n(.*?)^ *```', text, re.MULTILINE | re.DOTALL)
    return next(found for found in programs if contains in found)
