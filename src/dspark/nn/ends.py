"""The two frozen matrices that a drafter borrows from its target.

Legend: V vocabulary, d hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Ends:
    """Embedding and language-model head of the target, both ``[V, d]``; the same tensor where they are tied.

    ``scale``: embedded rows are multiplied by it (Gemma), rather than a copy of the matrix.
    """

    embedding: Tensor
    head: Tensor
    scale: float = field(default=1.0, kw_only=True)
