"""Errors of the supervisor that the command line reports."""

from __future__ import annotations


class BootError(Exception):
    """The stack did not start; the text gives the reason."""


class Busy(BootError):
    """Another keeper has the run directory: it is starting, running or stopping."""
