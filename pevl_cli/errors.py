"""Errors that are the user's to mend, as opposed to bugs of ours."""

from __future__ import annotations


class PevlError(Exception):
    """One clear sentence for the user: what is wrong, where, and what to do.

    The command line prints it in one line on stderr and ends with `exit_code`.
    """

    exit_code: int = 1


class UsageError(PevlError):
    """The command was called wrongly; nothing was done."""

    exit_code: int = 2
