"""The one kind of error that is meant for people."""

from __future__ import annotations


class UserError(ValueError):
    """Input that can't be used: the message says what was found, what was expected and what to do.

    The command line prints it as a single line and exits with 2; anything else is a failure of ours.
    """
