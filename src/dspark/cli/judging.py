"""Whether two texts of a prompt are one: how every verb that decodes in several ways finds out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspark.evaluation.evaluate import Task
    from dspark.evaluation.identity import Comparison
    from dspark.speculation.sampling import Sampling
    from dspark.targets.model import Target


def judge_of(target: Target, sampling: Sampling) -> Callable[[Task, list[int], list[int]], Comparison]:
    """Compares greedy or coupled texts; at a first difference plain's logits are computed anew, as plain did."""
    from dspark.evaluation.identity import coupled_scores, judge, replay
    from dspark.speculation.coupling import Coupling
    from dspark.targets.session import TargetSession

    def compare(task: Task, plain_ids: list[int], other_ids: list[int]) -> Comparison:
        capacity = len(task.prompt_ids) + len(plain_ids) + 1

        def fresh() -> TargetSession:
            return TargetSession(target, capacity)

        logits_at = replay(fresh, task.prompt_ids, plain_ids)
        if sampling.greedy:
            return judge(plain_ids, other_ids, logits_at, target.agreement)
        scores = coupled_scores(Coupling(task.seed, target.vocab_size), sampling)
        return judge(plain_ids, other_ids, logits_at, target.agreement, scores)

    return compare
