"""What a planner decided, and what came of it: sums that anybody may read, and no decision does. Steps that only pass
are in them when they are made up for (``planners.Together``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dspark.speculation.acceptance import Round


@dataclass
class Ledger:
    """Since the planner began.

    ``steps`` with rounds, of them ``resting`` (nobody was asked to draft) and ``probing`` (a few were, to see whether
    it pays); ``rounds`` and their drafts, of which ``expected`` were foretold to be accepted; ``seconds`` of steps that
    read no prompt, and what costs had ``foretold`` for them.
    """

    steps: int = 0
    resting: int = 0
    probing: int = 0
    rounds: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    expected: float = 0.0
    seconds: float = 0.0
    foretold: float = 0.0

    def decided(self, asked: int, probing: bool) -> None:
        """A step was begun, in which so many requests were asked to draft."""
        self.steps += 1
        self.resting += not asked
        self.probing += probing

    def rested(self, steps: int, rounds: int) -> None:
        """So many steps were plain ones, with so many rounds together."""
        self.steps += steps
        self.resting += steps
        self.rounds += rounds

    def came(self, rounds: Sequence[Round], expected: float) -> None:
        """Of its drafts."""
        self.rounds += len(rounds)
        for round in rounds:
            self.drafted += round.drafted
            self.verified += round.verified
            self.accepted += round.accepted
        self.expected += expected

    def took(self, seconds: float, foretold: float) -> None:
        """Without prompts."""
        self.seconds += seconds
        self.foretold += foretold

    def since(self, before: dict[str, float]) -> dict[str, float]:
        """What was added to what ``asdict`` gave before."""
        return {name: value - before.get(name, 0) for name, value in asdict(self).items()}
