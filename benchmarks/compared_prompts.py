"""Real decoding of a comparison's prompts, whole blocks of a drafter's own, and the figures of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dspark.cli.eval_prompts import Dialogue, asked_of_files, domains_of
from dspark.decoding.engine import BLOCK, Engine, Limits
from dspark.decoding.modes import Mode
from dspark.decoding.request import Completion, Request
from dspark.drafters.drafter import Drafter
from dspark.evaluation.intervals import interval
from dspark.evaluation.summary import tau_of
from dspark.speculation.acceptance import Round, RoundTally
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target

SAMPLINGS = {"greedy": Sampling(), "temperature 1": Sampling(1.0)}
CONTEXTS = (0, 128, 256, 512, 2048)  # edges, in tokens before the anchor


class Prompts:
    """What is decoded, by domain."""

    def __init__(self, target: Target, domains: Sequence[str], limit: int, max_tokens: int) -> None:
        self._target, self._max_tokens = target, max_tokens
        asked = asked_of_files(domains_of([], list(domains)), limit)
        self._tasks = [Dialogue.of(each).task(target.chat, 0) for each in asked]
        self._domain = {task.key[0] + task.id: task.domain for task in self._tasks}

    def decoded(self, drafter: Drafter | None) -> dict[str, Any]:
        """Figures by sampling; without a drafter those of prompt lookup."""
        return {name: self._figures(self._answers(drafter, sampling)) for name, sampling in SAMPLINGS.items()}

    def _answers(self, drafter: Drafter | None, sampling: Sampling) -> list[Completion]:
        requests = [Request(t.key[0] + t.id, t.prompt_ids, sampling, t.seed, self._max_tokens) for t in self._tasks]
        longest = max(len(each.prompt_ids) for each in requests) + self._max_tokens + 2 * BLOCK
        limits, mode = Limits(len(requests), len(requests) * longest), _mode(drafter)
        return list(Engine(self._target, requests, limits, mode, drafter, lookup=mode == "ngram").run())

    def _figures(self, answers: Sequence[Completion]) -> dict[str, Any]:
        whole, domains, contexts = RoundTally(), defaultdict(RoundTally), defaultdict(RoundTally)
        sums: dict[str, list[list[float]]] = defaultdict(list)
        for answer in answers:
            domain = self._domain[answer.request.id]
            for context, each in _placed(answer):
                for tally in (whole, domains[domain], contexts[context]):
                    tally.add(each)
            gained = len(answer.output_ids) - len(answer.rounds[0].tokens)
            sums[domain].append([gained, len(answer.rounds) - 1])
        return {
            "tau": whole.tau,
            "macro_tau": float(np.mean([each.tau for each in domains.values()])),
            "tau_interval": interval([np.array(each, dtype=np.float64) for each in sums.values()], tau_of),
            "rounds": whole.rounds,
            "prompts": len(answers),
            "domains": {name: {"tau": each.tau, "rounds": each.rounds} for name, each in sorted(domains.items())},
            "conditional_acceptance": whole.conditional_acceptance,
            "reached": whole.observed_at,
            "contexts": [
                {"from": first, "to": last, "tau": contexts[first].tau, "rounds": contexts[first].rounds}
                for first, last in zip(CONTEXTS, CONTEXTS[1:], strict=False)
                if contexts[first].rounds
            ],
        }


def _mode(drafter: Drafter | None) -> Mode:
    return "ngram" if drafter is None else "dspark"


def _placed(answer: Completion) -> Iterator[tuple[int, Round]]:
    """Rounds with the lower edge of their context."""
    length = len(answer.request.prompt_ids)
    for each in answer.rounds:
        yield max(edge for edge in CONTEXTS if edge <= length), each
        length += len(each.tokens)
