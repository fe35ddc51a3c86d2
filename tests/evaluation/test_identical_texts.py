"""Identity of greedy and coupled texts: ties are explained, one wrong rollback is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dspark.drafters.ngram import PromptLookup
from dspark.evaluation.identity import (
    Comparison,
    IdentityTally,
    allowed_gap,
    coupled_scores,
    greedy_scores,
    judge,
    replay,
)
from dspark.speculation.coupling import Coupling
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import Round, Step, generate
from dspark.speculation.sampling import Sampling, distribution

VOCABULARY = 8
PROMPT = [1, 2, 3, 1, 2]


class Bigrams:
    """A target whose next token depends on the last two ids and, a little, on the parity of the length."""

    def __init__(self, noise: float = 0.0, wrong_rollbacks: int = 0) -> None:
        table = torch.Generator().manual_seed(5)
        self.table = torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=table) * 2
        self.noise, self.wrong_rollbacks = noise, wrong_rollbacks
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def extend(self, ids: list[int], logits: int) -> Step:
        self.ids += ids
        # Rows that run together round differently, as on a real machine.
        shift = self.noise * (torch.arange(VOCABULARY) % 2) * (len(ids) > 1)
        ends = range(self.length - logits, self.length)
        rows = [self.table[self.ids[i - 1], self.ids[i]] + 0.3 * (i % 2) * self.table[0, 0] for i in ends]
        return Step(torch.stack(rows) + shift, None)

    def truncate(self, length: int) -> None:
        if self.wrong_rollbacks and 0 < length < self.length:
            self.wrong_rollbacks -= 1
            length += 1  # one rejected row stays in the cache
        del self.ids[length:]


GREEDY, SAMPLED = Sampling(), Sampling(0.7, top_p=0.95)
SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])


def decode(target: Bigrams, drafted: bool, sampling: Sampling) -> list[Round]:
    drafter = PromptLookup(4) if drafted else None
    coupling = None if sampling.greedy else Coupling(3, VOCABULARY)
    options = {"sampling": sampling, "draws": SeededDraws(0), "max_tokens": 60, "coupling": coupling}
    return list(generate(target, drafter, PROMPT, **options))  # type: ignore[arg-type]


def compare(spec_target: Bigrams, sampling: Sampling = GREEDY) -> Comparison:
    plain, spec = decode(Bigrams(), False, sampling), decode(spec_target, True, sampling)
    assert sum(r.drafted for r in spec) > 0
    assert sum(r.accepted for r in spec) > 0
    assert sum(r.accepted for r in spec) < sum(r.verified for r in spec)  # some rollback really happened
    plain_ids, spec_ids = ([token for r in rounds for token in r.tokens] for rounds in (plain, spec))
    scores = greedy_scores if sampling.greedy else coupled_scores(Coupling(3, VOCABULARY), sampling)
    return judge(plain_ids, spec_ids, replay(Bigrams, PROMPT, plain_ids), torch.float32, scores)


@SAMPLINGS
def test_sound_decoding_is_identical(sampling: Sampling) -> None:
    comparison = compare(Bigrams(), sampling)
    assert comparison.equal
    assert not comparison.unexplained


@SAMPLINGS
def test_one_wrong_rollback_is_unexplained(sampling: Sampling) -> None:
    comparison = compare(Bigrams(wrong_rollbacks=1), sampling)
    assert not comparison.equal
    assert comparison.unexplained
    tally = IdentityTally()
    for each in (comparison, compare(Bigrams()), Comparison(3, 1e-5, 1e-4)):
        tally.add(each)
    assert tally.as_json() == {"equal": 1, "total": 3, "unexplained": 1}
    assert tally.gaps == [comparison.gap, 1e-5]


def at(*logits: float) -> Tensor:
    return torch.tensor(logits)


@pytest.mark.parametrize(
    ("row", "spec", "unexplained"),
    [
        (at(3.0, 3.0 - 5e-5, 0.0), 1, False),  # a tie within fp32
        (at(3.0, 3.0 - 2e-4, 0.0), 1, True),  # a real difference
        (at(3.0, 3.0 - 5e-5, 0.0), 2, True),  # a tie, and yet a third token
    ],
)
def test_only_a_tie_of_the_two_tokens_explains(row: Tensor, spec: int, unexplained: bool) -> None:
    asked: list[int] = []

    def logits_at(position: int) -> Tensor:
        asked.append(position)
        return row

    comparison = judge([2, 0, 1], [2, spec, 2], logits_at, torch.float32)
    assert comparison.position == 1
    assert comparison.unexplained == unexplained
    assert asked == [1]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_coupled_tie_is_one_of_logits_that_the_noise_has_moved(temperature: float) -> None:
    coupling, sampling, position = Coupling(8, 4), Sampling(temperature), 5
    scores = coupled_scores(coupling, sampling)
    row = at(1.0, 2.0, 0.5, -1.0).double()
    chosen = int(coupling.picks(distribution(row[None], sampling), position))
    moved = scores(position, row)
    assert int(moved.argmax()) == chosen
    other = (chosen + 1) % 4
    for gap in (5e-5, 2e-4):
        # A logit counts in full whatever the temperature.
        near = row.clone()
        near[other] += moved[chosen] - moved[other] - gap
        comparison = judge(
            [0] * position + [chosen], [0] * position + [other], lambda _, r=near: r, torch.float32, scores
        )
        assert comparison.gap == pytest.approx(gap, rel=1e-6)
        assert comparison.unexplained == (gap > 1e-4)


def test_an_id_that_is_never_drawn_explains_nothing() -> None:
    sampling = Sampling(1.0, top_k=2)
    scores = coupled_scores(Coupling(0, 3), sampling)
    row = at(3.0, 3.0, 3.0 - 1e-6)
    chosen = int(scores(0, row).argmax())
    assert judge([chosen], [2], lambda _: row, torch.float32, scores).unexplained


def test_bfloat16_counts_in_ulps_of_the_top_logit() -> None:
    # Between 16 and 32 bfloat16 steps by 1/8, whatever the sign.
    assert allowed_gap(16.0, torch.bfloat16) == allowed_gap(-31.9, torch.bfloat16) == 0.25
    assert allowed_gap(15.9, torch.bfloat16) == 0.125
    row = at(20.0, 19.75, 19.625).bfloat16()
    assert not judge([0], [1], lambda _: row, torch.bfloat16).unexplained
    assert judge([0], [2], lambda _: row, torch.bfloat16).unexplained


def test_a_text_that_ends_early_or_holds_nan_is_unexplained() -> None:
    def never(position: int) -> Tensor:
        raise AssertionError("nothing to look up")

    assert judge([1, 2], [1], never, torch.float32).unexplained
    assert judge([1], [2], lambda _: torch.full((3,), torch.nan), torch.float32).unexplained
