"""Errors of the supervisor that the command line tells."""

from __future__ import annotations


class BootError(Exception):
    """The stack did not come up; the text says why."""
