"""The one kind of error that is meant for people."""

from __future__ import annotations


class UserError(ValueError):
    """Input that can't be used: the message says what was found, what was expected and what to do.

    The command line prints it as a single line and exits with 2; anything else is a failure of ours.
    """


def first_line(error: BaseException) -> str:
    """The first line of what a library says about its error; the kind of error where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
