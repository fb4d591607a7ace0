"""Errors with a message for the user, as opposed to bugs in pevl."""

from __future__ import annotations


class PevlError(Exception):
    """A problem that the user can solve; the message says what is wrong, where, and what to do.

    The command line prints the message in one line on stderr and ends with `exit_code`.
    """

    exit_code: int = 1


class UsageError(PevlError):
    """The command has a wrong option or argument; nothing was done."""

    exit_code: int = 2
