"""Errors that tools show as one line, without a traceback."""

from mmpelk.fault_tolerance.errors import DataError, UserError

__all__ = ['DataError', 'UserError']
