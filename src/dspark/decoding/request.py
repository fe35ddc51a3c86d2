"""What goes into the batched core, what it keeps of a request under way, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from dspark.decoding.logprobs import TokenLogprob
from dspark.decoding.wishes import Wishes
from dspark.drafters.ngram import PromptLookup
from dspark.nn.blocks import BlockTable
from dspark.speculation.acceptance import Finish, Round
from dspark.speculation.coupling import Coupling
from dspark.speculation.draws import SeededDraws
from dspark.speculation.recalibration import LEVEL, Tilt
from dspark.speculation.sampling import Sampling

Reason = Literal["cancelled", "deadline", "broken"]


@dataclass(frozen=True)
class Request:
    """One prompt to be answered; ``seed`` fixes every draw of its answer.

    ``ignore_stop``: the answer goes on to ``max_tokens``, whatever it says (for measurements). ``coupled``: the seed
    fixes the text, too, whatever is drafted and verified (``speculation.coupling``); nothing to a greedy request, whose
    text is fixed anyway. ``wishes``: what its logits are changed by, token by token. An answer also ends at one of its
    own ``stop_ids``, or where its text first holds one of the ``stops``. ``logprobs``: how many alternatives of each
    token are told with its log-probability (None: nothing). The lower ``priority`` goes first; at ``deadline``, on the
    clock of whoever runs the engine, it is given up. ``drafts``: how many tokens are drafted for it in every round
    where a planner lets it choose (None: as the others' rounds are planned).
    """

    id: str
    prompt_ids: list[int]
    sampling: Sampling
    seed: int
    max_tokens: int
    ignore_stop: bool = False
    coupled: bool = False
    wishes: Wishes | None = None
    stop_ids: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    priority: int = 0
    deadline: float | None = None
    drafts: int | None = None

    def coupling(self, vocabulary: int) -> Coupling | None:
        """The noise that its tokens are drawn with; None where they are drawn otherwise, or not at all."""
        return Coupling(self.seed, vocabulary) if self.coupled and not self.sampling.greedy else None


@dataclass(frozen=True)
class Completion:
    """An answer exactly as it was sampled; ends with a stop id, or with the token that completes a stop text, iff
    ``finish_reason`` is "stop". ``logprobs`` of its tokens, where they were asked for.
    """

    request: Request
    output_ids: list[int]
    finish_reason: Finish
    rounds: tuple[Round, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class GivenUp:
    """A request that was not answered to the end, what it had written, and why."""

    request: Request
    output_ids: list[int]
    reason: Reason


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
    number: int = 0  # the how manieth it was to come
    logprobs: list[TokenLogprob] = field(default_factory=list)

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

    def stops_behind(self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int | None:
        """How many of the ``tokens`` that come next there are up to the one that completes a stop text; None where none
        does. What stands before the tokens that are wished for at least is not looked at.
        """
        wishes, output = self.request.wishes, self.output_ids
        before = decode([*output, *tokens][: wishes.min_tokens if wishes else 0])

        def stopped(count: int) -> bool:
            text = decode([*output, *tokens[:count]])
            return any(text.find(stop, max(0, len(before) - len(stop) + 1)) >= 0 for stop in self.request.stops)

        return next((n for n in range(1, len(tokens) + 1) if stopped(n)), None) if stopped(len(tokens)) else None

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
