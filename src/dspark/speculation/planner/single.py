"""How many drafts are worth verifying (Algorithm 1), and whether drafting pays at all.

Losslessness forbids a search over the whole block: a_k knows x_1..x_{k-1}, so the length that looks best in hindsight
depends on the very tokens whose verification it decides (App. A). Walked from the left and stopped at the first draft
that does not pay, the decision about x_k rests on what was known before x_k was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.confidence import Calibrations, nearest
from dspark.speculation.loop import VerifyLength, WhenToDraft, always, verify_all
from dspark.speculation.sampling import Sampling


@dataclass(frozen=True)
class Planning:
    """How rounds are planned: how many of their drafts are verified, which of them draft, ``draft_slots``, how many
    tokens the drafter then drafts (None: as many as in its training), how confidence is read (as trained where nobody
    calibrated it), and ``special``, how the rounds of samplings are planned of which more is known. By default
    everything is drafted and verified.
    """

    verify_length: VerifyLength = verify_all
    when: WhenToDraft = always
    draft_slots: int | None = None
    calibrations: Calibrations = Calibrations()
    special: Mapping[Sampling, Planning] = field(default_factory=dict)

    def of(self, sampling: Sampling) -> Planning:
        """How a request with these settings, or the nearest ones that are special, is planned."""
        near = nearest(sampling, self.special)
        return self if near is None else self.special[near]


WHOLE = Planning()
_UNKNOWN = Calibrations()


@dataclass(frozen=True)
class EarlyStop:
    """Algorithm 1 for a single request, as a ``VerifyLength``.

    ``seconds[l]``: what a complete round takes that verifies ``l`` drafts, for l = 0..K; its reciprocals are the
    paper's SPS. Without survival (of a draft that says nothing of itself) every draft is verified. UserError for
    seconds that are none.
    """

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds or not all(0 < each < float("inf") for each in self.seconds):
            raise UserError(f"rounds take {list(self.seconds)} seconds; expected positive numbers, one for each length")

    def __call__(self, drafted: int, survival: Sequence[float] | None) -> int:
        """Length to verify; never more than there are costs for."""
        if survival is None:
            return drafted
        return early_stop(survival[:drafted], self.seconds)


# In plain steps, what drafts may have lost and still be made; the share of a gain or loss that is left a round later;
# and how little of one is no longer looked at.
_CREDIT, _FADING, _FORGOTTEN = 0.6, 0.97, 0.01
# The credit where drafts are known to lose on average.
_DOUBT = 0.2


@dataclass(frozen=True)
class WhileItPays:
    """Draft while what a request's drafts have gained and lost so far leaves it no further behind than a small credit;
    copies have a credit of their own: a ``WhenToDraft``.

    ``seconds[l]``: what a complete round takes that verifies ``l`` drafts, drafting included; ``plain``: what a step
    without a draft takes. A drafted round gains what plain steps would have taken for its tokens, less its own price.
    Gains and losses fade from round to round, so drafting comes back after it failed, and the sooner the less it has
    lost; where no draft ever stands, one that loses half a plain step is tried every 20 rounds. The prices are those
    measured at the start, and the past is the request's own, so its rounds don't depend on its neighbours. ``credit``
    of the drafter's own drafts, in plain steps (None: as large as that of copies).
    """

    seconds: tuple[float, ...]
    plain: float
    credit: float | None = None

    def __post_init__(self) -> None:
        if not self.seconds or not all(0 < each < float("inf") for each in (*self.seconds, self.plain)):
            raise UserError(f"rounds take {[*self.seconds, self.plain]} seconds; expected positive numbers")

    def __call__(self, rounds: Sequence[Round], source: Source) -> bool:
        """Whether ``source`` may propose in the next round."""
        credit = _CREDIT if source == "lookup" or self.credit is None else self.credit
        balance, left = credit * self.plain, 1.0
        for index in range(len(rounds) - 1, 0, -1):
            each = rounds[index]
            if each.drafted and each.source == source:
                balance += left * (len(each.tokens) * self.plain - self._price(each))
            left *= _FADING
            if left < _FORGOTTEN:
                break
        return balance >= 0

    def _price(self, round: Round) -> float:
        whole = self.seconds[min(round.verified, len(self.seconds) - 1)]
        return whole if round.source == "drafter" else whole - self.seconds[0] + self.plain  # a copy costs nothing


def with_slots(seconds: Sequence[float], single: float, slots: int) -> tuple[float, ...]:
    """Seconds of rounds that draft ``slots`` tokens in place of all K, verifying 0..K (copies may be longer).

    ``seconds[l]``: of rounds that draft K tokens and verify l; ``single``: of one that drafts one token and verifies
    none. In between a draft's price is taken as a straight line.
    """
    block = len(seconds) - 1
    spared = max(0.0, seconds[0] - single) * (block - slots) / max(1, block - 1)
    return tuple(each - spared for each in seconds)


def best_slots(survival: Sequence[float], seconds: Sequence[float], single: float) -> int:
    """How many tokens to draft: the block that would yield most tokens a second were it always verified whole.

    ``survival[k-1]``: the share of blocks whose first k drafts are accepted, as found in training; ``seconds`` and
    ``single`` as for ``with_slots``. A block has at least one slot; the longest is taken where all are equal.
    """
    best, slots = 0.0, 1
    for k in range(1, min(len(survival), len(seconds) - 1) + 1):
        rate = (1 + sum(survival[:k])) / with_slots(seconds, single, k)[k]
        if rate >= best:
            best, slots = rate, k
    return slots


def early_stop(survival: Sequence[float], seconds: Sequence[float]) -> int:
    """The first length from which one draft more does not raise the expected tokens a second.

    ``survival``: a_1..a_K; the target's own token counts as certain.
    """
    expected, rate = 1.0, 1.0 / seconds[0]
    for length, (a, duration) in enumerate(zip(survival, seconds[1:], strict=False)):
        expected += a
        if expected / duration <= rate:
            return length
        rate = expected / duration
    return min(len(survival), len(seconds) - 1)


# In plain steps, about what one sampled request took on a CPU (docs/lab_log.md): a draft, and each that is verified,
# where rows are multiplied one by one and where they share a reading of the weights.
_ONE_BY_ONE, _SHARED = (0.4, 0.2), (0.3, 0.05)


def without_a_clock(
    block: int, survival: Sequence[float], shared: bool = False, calibrations: Calibrations = _UNKNOWN
) -> Planning:
    """Plans from prices that no clock has measured, for requests whose texts depend on how rounds are planned.

    How many drafts are verified decides which draws a sampled request uses, so measured prices would make a seed mean
    other texts on another machine, or on this one tomorrow. ``block``: K; ``survival`` as for ``best_slots``, of
    temperature 1, empty where nobody knows: then blocks are whole. ``shared``: whether the target's rows share a
    reading of its weights. Where ``calibrations`` have counted survival for a sampling, its blocks are as long as that
    says, and if even these lose on average drafts have less credit.
    """
    draft, verified = _SHARED if shared else _ONE_BY_ONE
    seconds = tuple(1 + draft + verified * drafts for drafts in range(block + 1))

    def planned(shares: Sequence[float]) -> Planning:
        slots = best_slots(shares, seconds, seconds[0]) if shares else block
        loses = all(1 + sum(shares[:k]) < seconds[k] for k in range(1, min(len(shares), block) + 1))
        pays = WhileItPays(seconds, 1.0, _DOUBT if shares and loses else None)
        return Planning(EarlyStop(seconds), pays, slots if slots < block else None, calibrations)

    counted = {Sampling(1.0): tuple(survival), **calibrations.survival}  # training counts at temperature 1
    special = {each: planned(shares) for each, shares in counted.items() if shares and not each.greedy}
    return replace(planned(survival), special=special)
