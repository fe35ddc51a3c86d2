"""What goes into the batched core, what it keeps of a request under way, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dspark.drafters.ngram import PromptLookup
from dspark.nn.blocks import BlockTable
from dspark.speculation.acceptance import Finish, Round
from dspark.speculation.coupling import Coupling
from dspark.speculation.draws import SeededDraws
from dspark.speculation.recalibration import LEVEL, Tilt
from dspark.speculation.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """One prompt to be answered; ``seed`` fixes every draw of its answer.

    ``ignore_stop``: the answer goes on to ``max_tokens``, whatever it says (for measurements). ``coupled``: the seed
    fixes the text, too, whatever is drafted and verified (``speculation.coupling``); nothing to a greedy request, whose
    text is fixed anyway.
    """

    id: str
    prompt_ids: list[int]
    sampling: Sampling
    seed: int
    max_tokens: int
    ignore_stop: bool = False
    coupled: bool = False

    def coupling(self, vocabulary: int) -> Coupling | None:
        """The noise that its tokens are drawn with; None where they are drawn otherwise, or not at all."""
        return Coupling(self.seed, vocabulary) if self.coupled and not self.sampling.greedy else None


@dataclass(frozen=True)
class Completion:
    """An answer exactly as it was sampled; ends with a stop id iff ``finish_reason`` is "stop"."""

    request: Request
    output_ids: list[int]
    finish_reason: Finish
    rounds: tuple[Round, ...]


@dataclass(eq=False)
class Running:
    """A request under way. ``ids`` are prompt and output; the cache holds the first ``table.length`` of them.

    ``limit``: output tokens at most, those asked for or fewer where the context ends.
    """

    request: Request
    draws: SeededDraws
    limit: int
    lookup: PromptLookup | None = None
    coupling: Coupling | None = None
    ids: list[int] = field(default_factory=list)
    table: BlockTable = field(default_factory=BlockTable)
    rounds: list[Round] = field(default_factory=list)
    tilt: Tilt = LEVEL

    def __post_init__(self) -> None:
        self.ids = self.ids or list(self.request.prompt_ids)

    @property
    def output_ids(self) -> list[int]:
        """What was answered so far."""
        return self.ids[len(self.request.prompt_ids) :]

    @property
    def written(self) -> int:
        """Output tokens so far, and the output position of the next one."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def room(self) -> int:
        """Output tokens that may still come."""
        return self.limit - self.written

    def picks(self, p_NV: Tensor, slot: int = 0, support: Tensor | None = None) -> Tensor:
        """``Coupling.picks`` of the next round's slots from ``slot`` on; only of a coupled request."""
        assert self.coupling is not None
        return self.coupling.picks(p_NV, self.written + slot, support)

    @property
    def unread(self) -> int:
        """Tokens to be run before the request can go on: of the prompt, or of everything after a preemption.

        Before the first output token the whole prompt counts, later everything before the anchor.
        """
        return len(self.ids) - self.table.length - bool(self.rounds)

    @property
    def anchor(self) -> int:
        """The last committed token, which the next round runs."""
        return self.ids[-1]
