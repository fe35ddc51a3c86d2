"""Text that a page shows and never obeys."""

from __future__ import annotations

import re
from html import escape

# Characters that no HTML document may hold.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def literal(text: str) -> str:
    """``text`` as it can stand in an element or a quoted attribute; what HTML can't hold becomes U+FFFD."""
    return escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text), quote=True)
