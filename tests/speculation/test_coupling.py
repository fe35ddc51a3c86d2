"""The coupled mode: the law is the target's, and a seed is one text whatever is drafted, verified or searched for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.drafters.ngram import PromptLookup
from dspark.speculation.acceptance import Round, RoundTally, acceptance_probability
from dspark.speculation.coupling import Coupling
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import Draft, DrafterState, OneRequest, Sample, generate
from dspark.speculation.planner.algorithm import rates_of
from dspark.speculation.planner.joint import JointPlanning
from dspark.speculation.planner.plan import Plan, Present
from dspark.speculation.planner.scheduler import Memory, Scheduler
from dspark.speculation.rows import Counts
from dspark.speculation.sampling import Sampling, distribution
from dspark.speculation.together import generate_together
from enumeration import PROMPT, Logits, TableDrafter, TableTarget, constant_logits, mixed, random_logits

VOCABULARY = 4
PLAIN = Sampling(1.0)
SAMPLINGS = [PLAIN, Sampling(0.6), Sampling(1.0, top_k=2), Sampling(1.3, top_p=0.8)]
TARGET = random_logits(VOCABULARY, "coupled target")
DRAFTER = mixed(TARGET, random_logits(VOCABULARY, "coupled drafter"))
TOKENS = 12


def rounds_of(
    logits: Logits, drafter: DrafterState | None, seed: int, *, sampling: Sampling = PLAIN, **options: Any
) -> list[Round]:
    defaults: dict[str, Any] = {"max_tokens": TOKENS, "coupling": Coupling(seed, VOCABULARY)}
    coming = generate(
        TableTarget(logits),
        drafter,
        list(PROMPT),
        sampling=sampling,
        draws=SeededDraws(seed),
        **(defaults | options),
    )
    return list(coming)


def text_of(rounds: Sequence[Round]) -> list[int]:
    return [token for each in rounds for token in each.tokens]


def confidence(prefix: tuple[int, ...], slot: int) -> float:
    """Knows the drafts before its own, and differs a lot."""
    return 2 * float(random_logits(1, "coupled confidence")(prefix))


def searches(drafted: int, survival: Sequence[float] | None) -> int:
    """The search of App. A over the whole block, which bends the law of rejection sampling."""
    assert survival is not None
    tau = 1 + np.concatenate([[0.0], np.cumsum(survival)])
    return int((tau * np.array([1, 0.5, 0.45, 0.4, 0.38])[: drafted + 1]).argmax())


# The law.

LAW = torch.tensor([0.35, 0.0, 0.25, 0.2, 0.1, 0.07, 0.03, 0.0])
IDS = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19])
COUNT = 20_000


def chi_square(counts: Tensor, law: Tensor) -> float:
    """Over its value of chance .001 (Wilson and Hilferty): above 1 the counts are of another law."""
    possible = law > 0
    assert int(counts[~possible].sum()) == 0, "an id of probability 0 was picked"
    expected = law.double()[possible] * int(counts.sum())
    distance = float(((counts[possible] - expected) ** 2 / expected).sum())
    degrees = len(expected) - 1
    spread = 2 / (9 * degrees)
    return distance / (degrees * (1 - spread + 3.0902 * spread**0.5) ** 3)


def moved(law: Tensor) -> Tensor:
    """A control: 5 % of the mass elsewhere."""
    other = law.clone()
    other[0] -= 0.05
    other[2] += 0.05
    return other


@pytest.mark.parametrize(("dtype", "support"), [(torch.float32, None), (torch.float64, IDS)], ids=["whole", "pruned"])
def test_over_positions_picks_have_the_law_and_so_have_pairs_of_them(
    dtype: torch.dtype, support: Tensor | None
) -> None:
    p_NV = LAW.to(dtype).expand(2 * COUNT, -1)
    picks = Coupling(5, len(LAW) if support is None else 20).picks(p_NV, 0, support)
    counts = torch.bincount(picks, minlength=len(LAW))
    assert chi_square(counts, LAW) < 1 < 10 < chi_square(counts, moved(LAW))
    pairs = torch.bincount(picks[::2] * len(LAW) + picks[1::2], minlength=len(LAW) ** 2)
    apart, alike = LAW[:, None] * LAW, LAW.diag()
    assert chi_square(pairs, apart.flatten()) < 1 < 2 < chi_square(pairs, (0.95 * apart + 0.05 * alike).flatten())


def test_over_seeds_picks_have_the_law() -> None:
    picks = torch.cat([Coupling(seed, len(LAW)).picks(LAW[None], 3) for seed in range(COUNT)])
    counts = torch.bincount(picks, minlength=len(LAW))
    assert chi_square(counts, LAW) < 1 < 10 < chi_square(counts, moved(LAW))


def test_noise_belongs_to_the_seed_and_the_position_alone() -> None:
    rows = {(seed, i): Coupling(seed, 5).noise(i) for seed in (1, 2, 11) for i in (0, 1, 11)}
    assert len({row.numpy().tobytes() for row in rows.values()}) == 9
    wider, again = Coupling(1, 50), Coupling(1, 5)
    for i in [*range(30), *range(29, -1, -1)]:  # further than what is kept
        again.noise(i)
        assert torch.equal(again.noise(i), wider.noise(i)[:5])
    assert torch.equal(again.noise(11), rows[1, 11])


def test_picks_are_those_of_gumbel_noise_and_ties_go_to_the_lowest_id() -> None:
    coupling = Coupling(9, len(LAW))
    gumbel = -coupling.noise(4).log()
    assert int(coupling.picks(LAW[None], 4)) == int((LAW.double().log() + gumbel).argmax())
    assert int(coupling.picks(coupling.noise(4)[None], 4)) == 0
    with pytest.raises(ArithmeticError, match="NaN"):
        coupling.picks(torch.full((1, len(LAW)), torch.nan), 4)


def test_an_impossible_id_never_wins_even_without_waiting() -> None:
    class AtOnce(Coupling):
        def noise(self, position: int) -> Tensor:
            return super().noise(position).index_fill(0, torch.tensor(1), torch.finfo(torch.float64).tiny)

    assert int(AtOnce(0, 3).picks(torch.tensor([[0.5, 0.0, 0.5]]), 0)) != 1
    assert int(AtOnce(0, 3).picks(torch.tensor([[0.5, 1e-45, 0.5]]), 0)) == 1


# One text.


def test_a_seed_is_one_text_under_any_schedule() -> None:
    tally, sources = RoundTally(), set()

    @given(
        seed=st.integers(0, 2**63),
        block=st.integers(1, 4),
        lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5),
        rests=st.lists(st.booleans(), min_size=1, max_size=5),
        sampling=st.sampled_from(SAMPLINGS),
        support=st.sampled_from([None, [0, 2, 3]]),
        copies=st.booleans(),
        search=st.booleans(),
    )
    def one_text(seed: int, block: int, lengths: list[int], rests: list[bool], search: bool, **case: Any) -> None:
        asked = iter(lengths * TOKENS)
        rounds = rounds_of(
            TARGET,
            TableDrafter(DRAFTER, block, case["support"], confidence),
            seed,
            sampling=case["sampling"],
            verify_length=searches if search else lambda drafted, survival: next(asked),
            when=lambda before, source: not rests[len(before) % len(rests)],
            lookup=PromptLookup(2, 3, 1, cautious=True) if case["copies"] else None,
        )
        assert text_of(rounds) == text_of(rounds_of(TARGET, None, seed, sampling=case["sampling"]))
        tally.extend(rounds)
        sources.update(each.source for each in rounds if each.accepted)

    one_text()
    assert 0 < tally.accepted < tally.verified < tally.drafted
    assert sources == {"drafter", "lookup"}


def test_control_without_coupling_a_seed_is_many_texts() -> None:
    texts = {
        tuple(text_of(rounds_of(TARGET, TableDrafter(DRAFTER, block), 1, coupling=None, verify_length=keep)))
        for block in (1, 2, 3)
        for keep in (lambda drafted, survival: drafted, lambda drafted, survival: 1)
    }
    assert len(texts) > 2


def followed_by_a(search: Callable[[int], list[Round]], count: int = 1000) -> Tensor:
    firsts = [text_of(search(seed))[1] for seed in range(count)]
    return torch.bincount(torch.tensor(firsts), minlength=2)


def test_a_search_over_the_present_block_bends_nothing() -> None:
    """App. A: p_t = (.7, .3), p_d = (.5, .5); by rejection sampling the first drafted token is (.85, .15)."""

    def certain_after_a(prefix: tuple[int, ...], slot: int) -> float:
        return 1.386 if slot == 0 else 2.197 if prefix[-1] == 0 else -40.0

    def run(seed: int, **options: Any) -> list[Round]:
        drafter = TableDrafter(constant_logits(0.5, 0.5), 2, None, certain_after_a)
        return rounds_of(constant_logits(0.7, 0.3), drafter, seed, max_tokens=3, verify_length=searches, **options)

    law = torch.tensor([0.7, 0.3])
    coupled = followed_by_a(lambda seed: run(seed, coupling=Coupling(seed, 2)))
    assert chi_square(coupled, law) < 1
    bent = followed_by_a(lambda seed: run(seed, coupling=None))
    assert chi_square(bent, torch.tensor([0.85, 0.15])) < 1 < 5 < chi_square(bent, law)


class Searches(Scheduler):
    """A search without a stop over the present drafts of everybody."""

    def plan(self, memory: Memory, present: Present, slots: Counts, asked: Counts | None = None) -> Plan:
        survival_N, whose_N = present.ranked()
        rates = rates_of(
            present.requests, survival_N, self.seconds(present.requests, present.requests, len(survival_N))
        )
        return Plan.first(whose_N, int(rates.argmax()), present.requests)


@pytest.mark.parametrize("kind", [Searches, *(partial(Scheduler, form=f) for f in ("price", "averaged", "literal"))])
def test_requests_that_are_planned_together_write_what_each_would_alone(kind: Callable[..., Scheduler]) -> None:
    targets = [random_logits(VOCABULARY, f"coupled {i}") for i in range(3)]
    scheduler = kind(lambda requests, drafting, drafts: 1 + 0.2 * np.arange(drafts + 1) ** 1.2)
    tally = RoundTally()
    for seed in range(20):
        requests = [
            OneRequest(
                TableTarget(target),
                TableDrafter(mixed(target, DRAFTER), 3, None, confidence),
                list(PROMPT),
                sampling=SAMPLINGS[i],
                draws=SeededDraws(seed + i),
                max_tokens=TOKENS,
                coupling=Coupling(seed + i, VOCABULARY),
            )
            for i, target in enumerate(targets)
        ]
        for rounds in generate_together(requests, JointPlanning(scheduler), 3):
            tally.extend(rounds)
        for i, request in enumerate(requests):
            alone = rounds_of(targets[i], None, seed + i, sampling=SAMPLINGS[i])
            assert request.ids[len(PROMPT) :] == text_of(alone)
    assert 0 < tally.accepted < tally.verified < tally.drafted


@pytest.mark.parametrize("seed", range(5))
def test_a_greedy_request_is_what_it_is(seed: int) -> None:
    logits = random_logits(VOCABULARY, f"greedy {seed}")
    drafter = partial(TableDrafter, mixed(logits, DRAFTER, 0.7), 3, None, confidence)
    rounds = rounds_of(logits, drafter(), seed, sampling=Sampling(), max_tokens=30)
    assert rounds == rounds_of(logits, drafter(), seed, sampling=Sampling(), max_tokens=30, coupling=None)
    assert sum(each.accepted for each in rounds) > 0


# Controls: other noise.


class OfTheRound(Coupling):
    """Noise keyed by the round and its slot in place of the position."""

    request: OneRequest

    def odds(self, p_NV: Tensor, first: int, support: Tensor | None = None) -> Tensor:
        slot = first - (len(self.request.ids) - len(PROMPT))
        return super().odds(p_NV, 100 * len(self.request.rounds) + slot, support)


def test_control_noise_of_the_round_is_another_text_under_another_schedule() -> None:
    def text(kind: type[Coupling], block: int) -> list[int]:
        coupling = kind(3, VOCABULARY)
        request = OneRequest(
            TableTarget(TARGET),
            TableDrafter(DRAFTER, block),
            list(PROMPT),
            sampling=PLAIN,
            draws=SeededDraws(3),
            max_tokens=TOKENS,
            coupling=coupling,
        )
        if isinstance(coupling, OfTheRound):
            coupling.request = request
        request.start()
        while not request.finished:
            request.settle(draft := request.propose(), len(draft.tokens))
        assert sum(each.accepted for each in request.rounds) > 0
        return request.ids

    assert text(Coupling, 1) == text(Coupling, 3)
    assert text(OfTheRound, 1) != text(OfTheRound, 3)


class Deaf(TableDrafter):
    """Drafts with noise of its own."""

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        own = Coupling(77, VOCABULARY)

        def sample_apart(slot: int, logits: Tensor, support: Tensor | None) -> tuple[int, Tensor]:
            (p,) = own.law(distribution(logits, PLAIN)[None], len(ids) - len(PROMPT) + slot, support)
            return int(p.argmax()), p

        return super().draft(ids, features, sample_apart)


# Target and draft, some alike, some not, with an id that only one of them knows.
LAWS = [
    ((0.4, 0.3, 0.2, 0.1), (0.3, 0.4, 0.2, 0.1)),
    ((0.7, 0.1, 0.1, 0.1), (0.1, 0.7, 0.1, 0.1)),
    ((0.25, 0.25, 0.25, 0.25), (0.3, 0.3, 0.4, 0.0)),
]


def of_shared_noise(p_t: Tensor, p_d: Tensor) -> float:
    """Chance that both pick the same id: the least of E_u over max(p_t(u), p_d(u)) relative to v's, for every v."""
    chance = 0.0
    for v in range(len(p_t)):
        if p_t[v] > 0 and p_d[v] > 0:
            chance += 1 / float(torch.maximum(p_t / p_t[v], p_d / p_d[v]).sum())
    return chance


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=8))
def test_shared_noise_accepts_between_its_bound_and_rejection_samplings_rate(weights: list[tuple[int, int]]) -> None:
    p_t, p_d = (torch.tensor([pair[i] + 1e-9 for pair in weights], dtype=torch.float64) for i in (0, 1))
    p_t, p_d = p_t / p_t.sum(), p_d / p_d.sum()
    rejection = float(acceptance_probability(p_d, p_t))
    tv = 1 - rejection
    assert (1 - tv) / (1 + tv) - 1e-9 <= of_shared_noise(p_t, p_d) <= rejection + 1e-9


@pytest.mark.parametrize("laws", LAWS, ids=["alike", "unlike", "unknown"])
def test_what_is_accepted_and_control_less_of_it_by_noise_apart(laws: tuple[tuple[float, ...], ...]) -> None:
    p_t, p_d = (torch.tensor(law, dtype=torch.float64) for law in laws)
    target, drafted = (constant_logits(*law) for law in laws)
    tv = 1 - float(acceptance_probability(p_d, p_t))
    bound, expected = (1 - tv) / (1 + tv), of_shared_noise(p_t, p_d)
    rates = []
    for kind in (TableDrafter, Deaf):
        tally = RoundTally()
        for seed in range(20):
            rounds = rounds_of(target, kind(drafted, 1), seed, max_tokens=100)
            assert text_of(rounds) == text_of(rounds_of(target, None, seed, max_tokens=100))
            tally.extend(rounds)
        assert tally.observed_at[0] > 1000
        rates.append(tally.conditional_acceptance[0])
    spread = 4 * (0.25 / 1000) ** 0.5
    assert rates[0] == pytest.approx(expected, abs=spread) and bound - spread < rates[0] < 1 - tv + spread
    assert rates[1] == pytest.approx(float(p_t @ p_d), abs=spread) and rates[1] < bound
