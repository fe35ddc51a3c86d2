"""The self-probe: what a target must show before it is served.

Some models run and never call the registered attention function, others scale embeddings or logits outside the two
matrices. Twelve random ids tell; a model that fails is refused by name with the check that failed.

Legend: T tokens, V vocabulary, d hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.targets.ragged import RaggedBatch

if TYPE_CHECKING:
    from dspark.targets.model import Target

PROBE_TOKENS = 12
# Largest allowed difference, as a share of the largest reference entry.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def probe_ids(vocab_size: int) -> Tensor:
    """The probe's fixed random ids ``[T]``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (PROBE_TOKENS,), generator=generator)


def probe(target: Target, eager_logits_TV: Tensor) -> None:
    """Compare the seam with Hugging Face's own eager attention; raises UserError naming the check that failed."""
    ids_T = probe_ids(target.vocab_size).to(target.device)
    cache = target.new_cache(blocks=1, size=PROBE_TOKENS)
    tables = cache.tables()
    # In two steps, so that cached positions are read back as well.
    half = PROBE_TOKENS // 2
    hidden = []
    for part in (ids_T[:half], ids_T[half:]):
        batch = RaggedBatch(cache, tables, [len(part)])
        step = target.forward(part, batch, taps=(-1,))
        hidden.append(step.hidden_TD)
        if not torch.equal(_written(batch), torch.ones(len(cache.keys), dtype=torch.bool)):
            _refuse(target, "the attention seam was not called in every layer")
        assert step.features_TF is not None
        if not _close(step.features_TF, target.embed(part)):
            _refuse(target, "the first layer's input is not the embedding of the token")
    if not _close(target.head(torch.cat(hidden)), eager_logits_TV):
        _refuse(target, "its logits through the attention seam differ from Hugging Face's own")


def _written(batch: RaggedBatch) -> Tensor:
    rows = batch.rows_T
    return torch.tensor([bool(k[:, rows].any()) for k in batch.cache.keys])


def _close(found: Tensor, expected: Tensor) -> bool:
    limit = _TOLERANCE[expected.dtype] * expected.float().abs().max()
    return bool((found.float() - expected.float()).abs().max() <= limit)


def _refuse(target: Target, failed: str) -> None:
    raise UserError(f"{target.name} ({target.architecture}) can't be served exactly: {failed}; use another target")
