"""Keeps transformers' own bars and advice off the terminal: the verbs say what people need to know."""

from __future__ import annotations


def quieten() -> None:
    """Only errors of transformers are shown from here on; downloads from the hub keep their progress bar."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
