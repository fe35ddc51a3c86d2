"""What the engine did in the last seconds: the figures that gauges and people look at."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

# Seconds that count as lately, for speed and for what drafts gained.
SPEED, GAIN = 2.0, 10.0


@dataclass(frozen=True)
class Moment:
    """Sums of one step: tokens that were written; rounds behind prefill, what they gained, verified and accepted; of
    those that were planned, what they verified and accepted and how much of it was expected; its seconds.
    """

    at: float
    tokens: int
    rounds: int
    gained: int
    verified: int
    accepted: int
    planned: int
    stood: int
    expected: float
    seconds: float


class Lately:
    """The last moments; written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self._moments: deque[Moment] = deque()
        self._lock = threading.Lock()

    def add(self, moment: Moment) -> None:
        """One more; those that are too old go."""
        with self._lock:
            self._moments.append(moment)
            while self._moments[0].at < moment.at - GAIN:
                self._moments.popleft()

    def tokens_per_second(self, now: float) -> float:
        """Over the last two seconds."""
        return sum(each.tokens for each in self._since(now - SPEED)) / SPEED

    def figures(self, now: float) -> dict[str, float | None]:
        """Tokens a round (``tau``), drafts verified a round, share of them that stood; of planned ones, the share
        that stood and the share that was expected to; milliseconds of a step. None of what did not happen.
        """
        moments = self._since(now - GAIN)
        rounds, verified = sum(each.rounds for each in moments), sum(each.verified for each in moments)
        planned = sum(each.planned for each in moments)
        return {
            "tau": _ratio(sum(each.gained for each in moments), rounds),
            "verify_length": _ratio(verified, rounds),
            "acceptance": _ratio(sum(each.accepted for each in moments), verified),
            "planned_acceptance": _ratio(sum(each.stood for each in moments), planned),
            "expected_acceptance": _ratio(sum(each.expected for each in moments), planned),
            "step_ms": _ratio(1000 * sum(each.seconds for each in moments), len(moments)),
        }

    def _since(self, begin: float) -> list[Moment]:
        with self._lock:
            return [each for each in self._moments if each.at >= begin]


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
