"""What all drafters are: modules between the target's embedding and head, and what decoding and training ask of them.

Legend: B sequences, S positions, F = L*d tapped features, A anchors of a sequence, K slots, R requests, d hidden size,
V vocabulary, V_d draft vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from dspark.drafters.config import DrafterConfig
from dspark.drafters.heads import MarkovHead
from dspark.foundation.errors import UserError
from dspark.nn.blocks import BlockTable
from dspark.nn.cache import KVCache
from dspark.nn.ends import Ends
from dspark.nn.forms import rounded_to_bytes
from dspark.nn.norm import RMSNorm

if TYPE_CHECKING:
    from dspark.drafters.chain_program import ChainProgram
    from dspark.drafters.choice import Chance, Drafted
    from dspark.drafters.program import DraftProgram


class Drafter(nn.Module):
    """Embedding and head are the target's: ``embedding [V, d]`` and ``head [V_d, d]`` are plain frozen tensors: not
    parameters, not in the state dict, and left where they are by ``.to()``. The head's rows of a pruned vocabulary
    are gathered once into a tensor of their own.
    """

    config_type: ClassVar[type[DrafterConfig]]
    norm: RMSNorm
    """Behind the last layer."""
    markov_head: MarkovHead
    """What the previous token adds to a slot's logits."""
    program: DraftProgram | ChainProgram | None
    """How it drafts once it is packed, where that can be a program."""

    def __init__(self, config: DrafterConfig, ends: Ends) -> None:
        super().__init__()
        _check_ends(config, ends)
        self.config = config
        self.embedding, self.embedding_scale = ends.embedding.detach(), ends.scale
        self.head, self.support = _head_rows(config, ends)
        self.packed_head: nn.Module | None = None
        self.program = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the trained parameters (the norms are never packed, so they always tell)."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the trained parameters."""
        return self.norm.weight.device

    @property
    def markov_top_k(self) -> int:
        """So many of the largest base logits get that; 0: all do."""
        return 0

    def base_logits(self, hidden: Tensor) -> Tensor:
        """``U [..., V_d]`` of ``h [..., d]`` through the frozen head, in the head's dtype."""
        hidden = hidden.to(self.head.dtype)
        return linear(hidden, self.head) if self.packed_head is None else self.packed_head(hidden)

    def embed(self, ids: Tensor) -> Tensor:
        """Target ids ``[...]`` to ``[..., d]``, in the drafter's dtype."""
        rows = embedding(ids, self.embedding)
        return (rows if self.embedding_scale == 1.0 else rows * self.embedding_scale).to(self.dtype)

    @torch.no_grad()
    def round_to_bytes(self) -> None:
        """Round weight matrices to bytes in groups of 32 inputs, where a packed drafter reads them as such.

        A draft of few tokens takes as long as its weights take to be read, and proposes the same with half of their
        bytes (docs/lab_log.md); what is accepted is the target's business alone. Before ``pack``.
        """
        if self.packed_head is None and self.reads_bytes():
            for each in self.modules():
                if isinstance(each, nn.Linear) and each.out_features > 1:
                    each.weight.copy_(rounded_to_bytes(each.weight))

    @abstractmethod
    def reads_bytes(self) -> bool:
        """Whether ``pack`` finds weights that were rounded to bytes."""

    @abstractmethod
    def pack(self, rounds: torch.dtype | None = None) -> None:
        """Repack the linear layers and the head for few rows (fp32 on a CPU); no training or saving after.

        ``rounds``: round what is multiplied, where the hardware has instructions for it (``PanelLinear.round``).
        """

    @abstractmethod
    def new_room(self, blocks: int, size: int) -> Room:
        """Where the context of many requests lies: ``blocks`` blocks of ``size`` rows."""

    @abstractmethod
    def taught(self, taps_BSF: Tensor, ids_BS: Tensor, previous_BAK: Tensor, positions_BA: Tensor) -> Tensor:
        """Training: ``h [B, A, K, d]`` behind the final norm, for tapped hidden states of any floating dtype.

        Slot j of the block at anchor position a follows the true tokens ``previous[..., :j + 1]``, the anchor first,
        and predicts position a + j + 1. Sequences are padded at the end: rows from an anchor on are never seen,
        whatever finite numbers they hold.
        """


class Drafting(Protocol):
    """Blocks of R requests that are being drafted, slot by slot."""

    @property
    def slots(self) -> int:
        """K."""
        ...

    def logits(self, previous_R: Tensor) -> Tensor:
        """``[R, V_d]`` of the next slot, behind the target ids ``previous [R]``: the anchors first."""
        ...

    def confidence(self, previous_RK: Tensor, peaks_RK: Tensor) -> Tensor:
        """Logits of c_k ``[R, K]``, for the tokens before each slot and how sure the drafter was of its own likeliest
        (``heads.peaks``).
        """
        ...


class Room(Protocol):
    """Context rows of many requests on a drafter, in the blocks of a cache.

    The blocks have the numbers of the target's own, so a request's table serves both.
    """

    cache: KVCache
    reads_next: bool
    """Whether a row depends on the token behind it, so that equal beginnings have no equal rows to share."""

    @property
    def drafter(self) -> Drafter:
        """Whose rows they are."""
        ...

    def extend(
        self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, following_T: Tensor | None = None
    ) -> None:
        """Take over the target's tapped features of committed positions, which nobody else may write any more; their
        rows, ``rows_T``, are made when somebody drafts from these blocks.

        ``following``: the token behind each position, where that is read.
        """
        ...

    def drop(self, block: int) -> None:
        """Nobody will read the rows of this block until they are written again."""
        ...

    def late(self) -> float:
        """Seconds since this was last asked that went into rows whose features had waited for longer than a step."""
        ...

    def begin(self, anchors: Sequence[int], tables: Sequence[BlockTable], slots: int | None = None) -> Drafting:
        """A block of each request. ``tables``: of everything before the anchors, with room for K positions more.
        ``slots``: K, that of the drafter's training if None.
        """
        ...

    def draft(
        self,
        anchors: Sequence[int],
        tables: Sequence[BlockTable],
        slots: int | None = None,
        chance: Chance | None = None,
    ) -> Drafted:
        """Whole drafts of greedy requests (``chance`` None) or sampled ones; only of a drafter with a ``program``.

        Other arguments as for ``begin``.
        """
        ...

    def grown(self, size: int) -> Room:
        """The same rows in blocks of more room."""
        ...


def _check_ends(config: DrafterConfig, ends: Ends) -> None:
    expected = (config.vocab_size, config.hidden_size)
    for name, matrix in (("embedding", ends.embedding), ("head", ends.head)):
        if tuple(matrix.shape) != expected:
            raise UserError(
                f"the target's {name} is {list(matrix.shape)}, the drafter was made for {list(expected)} "
                "(vocabulary, hidden size); use it with the target it was trained for"
            )


def _head_rows(config: DrafterConfig, ends: Ends) -> tuple[Tensor, Tensor | None]:
    head = ends.head.detach()
    if config.draft_ids is None:
        return head, None
    support = torch.tensor(config.draft_ids, dtype=torch.int64, device=head.device)
    return head[support], support
