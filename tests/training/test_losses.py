"""The fused loss against the plain formula and against the reference implementation's golden terms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dspark.data.features import FeatureBatch
from dspark.drafters.checkpoint import load_drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.foundation.artifacts import read_json
from dspark.foundation.identity import ModelIdentity
from dspark.kernels.distance import can_measure, distances
from dspark.kernels.tiles import can_tile
from dspark.nn.ends import Ends
from dspark.training import losses
from dspark.training.anchors import blocks_at
from dspark.training.losses import Mix, Slots, distribution_loss, paced
from dspark.training.objective import objective
from dspark.training.outputs import Outputs
from dspark.training.recipe import LossSettings
from tiny import VOCAB, tiny_drafter, tiny_target

GOLDEN = Path(__file__).parents[1] / "golden"


def random_slots(
    n: int, vocab: int, outside: float, dtype: torch.dtype = torch.float64
) -> tuple[Slots, Tensor, Tensor]:
    """Slots, head rows and Markov matrix; ``outside``: logit mass of the target beyond the draft vocabulary."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    head, markov, target = normal(vocab, 6), normal(vocab, 3), normal(n, 6)
    log_mass = torch.logaddexp((target @ head.T).logsumexp(-1), torch.full((n,), outside, dtype=dtype))
    labels = torch.randint(-1, vocab, (n,), generator=g)
    places = torch.cat([torch.arange(1 + size % 5) for size in range(n)])[:n]  # blocks of 1 to 5 slots
    return Slots(normal(n, 6), normal(n, 3), target, log_mass, labels, places), head, markov


def plain(slots: Slots, head: Tensor, markov: Tensor, mix: Mix, decay: float | None, top_k: int = 0) -> Tensor:
    """The same loss written as the specification does, by torch's own operations and autograd."""
    base, bias = slots.hidden @ head.T, slots.summed @ markov.T
    logits = base + bias
    if top_k:
        logits = torch.where(base >= base.sort(-1, descending=True).values[:, top_k - 1 : top_k], logits, base)
    p_d = torch.softmax(logits, -1)
    p_t = torch.exp(slots.target_hidden @ head.T - slots.log_mass[:, None])
    l1 = (p_d - p_t).abs().sum(-1) + (1 - p_t.sum(-1))
    soft = -(p_t * p_d.log()).sum(-1)
    hard = torch.nn.functional.cross_entropy(logits, slots.labels, ignore_index=-1, reduction="none")
    weights = (
        written_out(1 - l1.detach() / 2, slots.places) if decay is None else (-slots.places.to(l1.dtype) / decay).exp()
    )
    return (weights / weights.sum() * (mix.hard_ce * hard + mix.soft_ce * soft + mix.l1 * l1)).sum()


def written_out(accepted: Tensor, places: Tensor) -> Tensor:
    """D-PACE's weights by their definition: the derivative of the expected accepted length by log a_i."""
    logs = accepted.log().requires_grad_()
    starts = [*(places == 0).nonzero()[:, 0].tolist(), len(places)]
    blocks = [logs[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    length = sum(block[: k + 1].sum().exp() for block in blocks for k in range(len(block)))
    assert isinstance(length, Tensor)
    return torch.autograd.grad(length, logs)[0]


@pytest.mark.parametrize("outside", [-1e9, 0.5])
@pytest.mark.parametrize("mix", [Mix(1, 0, 0), Mix(0, 1, 0), Mix(0, 0, 1), Mix(0.1, 0.5, 0.9)], ids=str)
@pytest.mark.parametrize(("chunk", "top_k"), [(7, 0), (1000, 0), (7, 4), (1000, 11)])
@pytest.mark.parametrize("decay", [2.5, None])
def test_value_and_gradients_equal_the_plain_formula(
    outside: float, mix: Mix, chunk: int, top_k: int, decay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    slots, head, markov = random_slots(23, 11, outside)
    found = []
    for formula in (
        lambda s, m: 3 * distribution_loss(s, Outputs(head), m, mix, decay, top_k).loss,
        lambda s, m: 3 * plain(s, head, m, mix, decay, top_k),
    ):
        leaves = [t.clone().requires_grad_() for t in (slots.hidden, slots.summed, markov)]
        loss = formula(slots._replace(hidden=leaves[0], summed=leaves[1]), leaves[2])
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not can_tile(), reason="this CPU multiplies no bf16 (AVX512_BF16, AMX)")
def test_bf16_factors_leave_logits_and_gradients_near() -> None:
    head = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    exact, narrow = Outputs(head), Outputs(head, bf16=True)
    assert torch.equal(exact.logits(rows), rows @ head.T)
    for found, expected in (
        (narrow.logits(rows), rows @ head.T),
        (narrow.back(rows @ head.T), rows @ head.T @ head),
    ):
        apart = (found - expected).abs().max() / expected.abs().max()
        assert 1e-6 < apart < 5e-3, "rounded factors, and nothing worse"
    other = Outputs(head[:, :40], bf16=True)
    assert narrow.tiled and not other.tiled, "widths of no whole tiles stay as they are"
    assert torch.equal(other.logits(rows[:, :40]), rows[:, :40] @ head[:, :40].T)
    both = narrow.logits(rows)
    narrow.add_logits(rows, both)
    torch.testing.assert_close(both, 2 * narrow.logits(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [40, 64])
def test_head_and_sequential_head_round_together_or_not_at_all(width: int) -> None:
    g = torch.Generator().manual_seed(0)
    head, markov, hidden = (torch.randn(n, w, generator=g) for n, w in ((96, width), (96, 32), (41, width)))
    summed, target = torch.randn(41, 32, generator=g), torch.randn(41, width, generator=g)
    places = torch.arange(41) % 4
    slots = Slots(hidden, summed, target, (target @ head.T).logsumexp(-1), places, places)
    found = [distribution_loss(slots, Outputs(head, bf16), markov, Mix(0, 1, 1), 4.0) for bf16 in (False, True)]
    torch.testing.assert_close(found[1].loss, found[0].loss, rtol=1e-2, atol=1e-2)
    assert (found[1].loss == found[0].loss) == (width == 40 or not can_tile())


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("mix", [Mix(1, 0, 0), Mix(0, 1, 0), Mix(0, 0, 1), Mix(0.1, 0.5, 0.9)], ids=str)
@pytest.mark.parametrize(("decay", "top_k"), [(4.0, 0), (4.0, 9), (None, 0)])
def test_gradients_in_fp32_are_exact_to_a_hundred_thousandth(
    compiled: bool, mix: Mix, decay: float | None, top_k: int, request: pytest.FixtureRequest
) -> None:
    if not compiled:
        request.getfixturevalue("no_kernels")
    exact, head, markov = random_slots(300, 992 if compiled else 1000, outside=0.5)
    assert can_measure(torch.zeros(1, len(head))) == compiled
    found = []

    def fused(slots: Slots, head: Tensor, *others: Any) -> Tensor:
        return distribution_loss(slots, Outputs(head), *others).loss

    for dtype, formula in ((torch.float64, plain), (torch.float32, fused)):
        slots = Slots(*(each.to(dtype) if each.is_floating_point() else each for each in exact))
        leaves = [t.clone().to(dtype).requires_grad_() for t in (slots.hidden, slots.summed, markov)]
        loss = formula(slots._replace(hidden=leaves[0], summed=leaves[1]), head.to(dtype), leaves[2], mix, decay, top_k)
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for expected, ours in zip(*found, strict=True):
        assert (ours.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_measured_row_may_lack_a_label_or_a_chance() -> None:
    logits, target = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(0)).unbind()
    logits[0, 5] = target[0, 5] = -torch.inf  # neither draws it: nothing apart, nothing to learn
    labels = torch.tensor([-1, 5])
    mass = target.logsumexp(-1) + 0.3
    hard, soft, l1 = distances(gradient := logits.clone(), target.clone(), mass, labels, (1.0, 1.0, 1.0))
    p, q = logits.softmax(-1), (target - mass[:, None]).exp()
    torch.testing.assert_close(l1, (p - q).abs().sum(-1) + 1 - q.sum(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(soft, -(q * logits.log_softmax(-1)).nan_to_num(0.0).sum(-1), rtol=1e-5, atol=1e-6)
    assert hard[0] == 0 and hard[1] == pytest.approx(float(-logits[1].log_softmax(-1)[5]), rel=1e-5)
    assert gradient.isfinite().all() and gradient[0, 5] == 0


def test_a_broken_target_is_not_learnt_in_silence() -> None:
    logits, target = torch.zeros(2, 64), torch.zeros(2, 64)
    target[1, 7] = torch.nan
    mass, labels = torch.full((2,), 5.0), torch.zeros(2, dtype=torch.int64)
    terms = distances(logits, target, mass, labels, (0.0, 0.5, 1.0))
    assert terms[:, 0].isfinite().all() and terms[1:, 1].isnan().all() and logits[1].isnan().any()


def test_the_l1_term_counts_the_mass_that_can_not_be_drafted() -> None:
    slots, head, markov = random_slots(5, 11, outside=50.0)  # nearly all of the target's mass is outside
    distances = distribution_loss(slots, Outputs(head), markov, Mix(0, 0, 1), 4.0)
    assert (distances.l1 > 1.99).all()


def test_the_weights_follow_what_limits_acceptance() -> None:
    """A block's first slot weighs as much as its expected accepted length, a slot behind a sure rejection nothing."""
    weights = paced(torch.tensor([0.5, 0.0, 0.9, 1.0, 1.0, 1.0]), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert weights.tolist() == [0.5, 0.0, 0.0, 3.0, 2.0, 1.0]


def test_where_no_draft_has_a_chance_nothing_is_learnt_but_nothing_breaks() -> None:
    slots, head, markov = random_slots(6, 11, outside=200.0)  # all of the target's mass is outside
    slots.hidden.requires_grad_()
    found = distribution_loss(slots, Outputs(head), markov, Mix(0, 0, 1), None)
    found.loss.backward()
    assert slots.hidden.grad is not None and slots.hidden.grad.isfinite().all() and found.weights.isfinite().all()


def golden_drafter(folder: Path) -> DSparkDrafter:
    values = read_json(folder / "config.json")
    tensors = load_file(folder / "model.safetensors")
    identity = ModelIdentity(
        "golden",
        "Qwen3ForCausalLM",
        values["hidden_size"],
        values["vocab_size"],
        values["num_target_layers"],
        "",
        "",
        "",
    )
    return load_drafter(
        folder, identity, Ends(tensors["embed_tokens.weight"], tensors["lm_head.weight"]), torch.float32
    )


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn", "dflash"])
def test_loss_terms_match_the_reference_implementation(kind: str) -> None:
    folder = GOLDEN / f"deepspec_qwen3_tiny_{kind}"
    drafter = golden_drafter(folder)
    given = load_file(folder / "inputs.safetensors")
    expected = load_file(folder / "expected.safetensors")
    anchors = given["train_anchors"]
    blocks = blocks_at(
        given["train_ids"], given["train_loss_mask"].bool(), anchors, torch.ones_like(anchors, dtype=torch.bool), 5
    )
    supervised = expected["train_supervised"].bool()
    assert torch.equal(blocks.supervised, supervised)
    assert torch.equal(blocks.labels[supervised], expected["train_labels"][supervised])
    assert torch.equal(blocks.previous[supervised], expected["train_prev"][supervised])
    hidden = given["train_last_hidden"]
    batch = FeatureBatch(
        ids=given["train_ids"],
        supervised=given["train_loss_mask"].bool(),
        taps=given["train_context"],
        hidden=hidden,
        log_mass=(hidden @ drafter.head.T).logsumexp(-1),
        lengths=torch.full((len(hidden),), hidden.shape[1]),
    )
    weights = LossSettings(hard_ce=0.1, soft_ce=0.0, l1=0.9, confidence=1.0, decay=4.0)
    terms = objective(drafter, batch, blocks, weights)
    for name, found in (
        ("ce_loss", terms.hard_ce),
        ("l1_loss", terms.l1),
        ("confidence_loss", terms.confidence),
    ):
        if kind == "dflash" and name == "confidence_loss":  # it has no such head: 0 / 0 in the reference
            assert found == 0
            continue
        reference = expected[f"term_{name}_num"][0] / expected[f"term_{name}_den"][0]
        assert found == pytest.approx(float(reference), rel=1e-5)
    torch.testing.assert_close(terms.loss, expected["loss"][0], rtol=1e-5, atol=1e-5)


def test_a_pruned_vocabulary_skips_the_labels_outside_it() -> None:
    target = tiny_target()
    drafter = tiny_drafter(target, draft_ids=tuple(range(0, VOCAB, 3)))
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (2, 14), generator=g)
    hidden = torch.randn(2, 14, target.hidden_size, generator=g)
    batch = FeatureBatch(
        ids=ids,
        supervised=torch.ones_like(ids, dtype=torch.bool),
        taps=torch.randn(2, 14, 2 * target.hidden_size, generator=g),
        hidden=hidden,
        log_mass=(hidden @ target.ends.head.T).logsumexp(-1),
        lengths=torch.tensor([14, 14]),
    )
    anchors = torch.tensor([[2, 7], [4, 9]])
    blocks = blocks_at(ids, batch.supervised, anchors, torch.ones_like(anchors, dtype=torch.bool), 4)
    terms = objective(drafter, batch, blocks, LossSettings(hard_ce=1.0, soft_ce=0.0, l1=0.0, confidence=0.0, decay=4.0))
    blocks_hidden = drafter(batch.taps, blocks.anchor_ids, blocks.anchor_positions)
    expected = weight = 0.0
    for row in range(2):
        for column in range(2):
            for slot in range(4):
                at = int(anchors[row, column]) + slot
                share = math.exp(-slot / 4.0)
                weight += share
                label = int(ids[row, at + 1])
                if label % 3 == 0:
                    logits = drafter.logits(blocks_hidden[row, column, slot], ids[row, at])
                    expected -= share * float(logits.detach().log_softmax(-1)[label // 3])
    assert expected > 0
    assert terms.slots == 16
    assert float(terms.loss.detach()) == pytest.approx(expected / weight, rel=1e-5)
