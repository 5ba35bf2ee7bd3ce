"""A data set of one's own: what is in it, what is wrong with it, and a config that fits it and the machine."""

from .classification import read_classification
from .dataset import DataSet, Note, UnknownLayoutError
from .detection import read_detection
from .foreign import convert
from .machine import Machine
from .meaning import Answers
from .outlines import has_outlines
from .plan import Plan, make_plan
from .report import print_report
from .segmentation import read_segmentation
from .writing import config_path, write_findings, write_project

__all__ = [
    'Answers',
    'DataSet',
    'Machine',
    'Note',
    'Plan',
    'UnknownLayoutError',
    'config_path',
    'convert',
    'has_outlines',
    'make_plan',
    'print_report',
    'read_classification',
    'read_detection',
    'read_segmentation',
    'write_findings',
    'write_project',
]
