"""What must hold for any weights: who sees what, and that every road to the same numbers gives them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dspark.drafters.heads import peaks
from dspark.drafters.state import DSparkState

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# More blocks than one attention group holds, in no order, two at the very ends of the context.
ANCHORS = [[17, 3, 0, 21, 8, 9, 30, 12, 1, 25, 28], [2, 30, 5, 6, 11, 0, 19, 22, 14, 7, 29]]
ROWS = 31


def _sequences(drafter, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, drafter.config.vocab_size, (2, ROWS + 8), generator=generator)
    taps = torch.randn(2, ROWS, drafter.config.taps_width, generator=generator)
    return ids, taps, torch.tensor(ANCHORS)


# Of whole vectors, as compiled kernels want it.
WIDE = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64, "num_attention_heads": 4, "markov_rank": 32}
HEADS = {
    "vanilla": {},
    "gated": {"markov_head_type": "gated"},
    "rnn": {"markov_head_type": "rnn"},
    "top-k": {"markov_top_k": 7},
    "none": {"markov_rank": 0},
    "window": {"draft_window": 9},
    "blind": {"confidence_head_with_markov": False},
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("way", ["modules", "packed", "compiled"])
def test_training_path_equals_decoding_path(make_drafter, forced, way, kind):
    drafter = make_drafter(**((WIDE if way == "compiled" else {}) | HEADS[kind]))
    ids, taps, anchors = _sequences(drafter)
    slots = drafter.config.block_size
    steps = anchors[..., None] + torch.arange(slots)
    prev = ids[torch.arange(2)[:, None, None], steps]
    with torch.no_grad():
        hidden = drafter(taps, ids.gather(1, anchors), anchors)
        logits, confidence = drafter.logits(hidden, prev), drafter.confidence_logits(hidden, prev)
    if way != "modules":
        drafter.pack()
        drafter.pack()  # once more changes nothing
        assert (drafter.compiled is not None) == (way == "compiled")
        assert (drafter.program is not None) == (way == "compiled" and kind != "top-k")
    for row in range(2):
        for block, anchor in enumerate(ANCHORS[row]):
            seen: list[Tensor] = []
            labels = ids[row, anchor + 1 : anchor + 1 + slots].tolist()
            sample = forced(seen, labels)
            draft = DSparkState(drafter).draft(ids[row, : anchor + 1].tolist(), taps[row, :anchor], sample)
            assert_close(torch.stack(seen), logits[row, block], **TOLERANCE)
            assert_close(torch.tensor(draft.confidence), confidence[row, block], **TOLERANCE)
            assert draft.tokens == labels


@pytest.mark.parametrize("sizes", [{}, WIDE], ids=["modules", "compiled"])
def test_a_context_that_grows_equals_one_computed_at_once(make_drafter, forced, sizes):
    drafter = make_drafter(**sizes)
    if sizes:
        drafter.pack()
        assert drafter.compiled is not None
    generator = torch.Generator().manual_seed(2)
    rows = 700  # well beyond the first capacity of the cache
    ids = torch.randint(0, 50, (rows + 1,), generator=generator).tolist()
    taps = torch.randn(rows, drafter.config.taps_width, generator=generator)
    state, done, rounds = DSparkState(drafter), 0, 0
    while done < rows:
        step = min(rows - done, [201, 1, 5, 2, 97, 4][rounds % 6])
        end, grown, once = done + step, [], []
        indices = torch.randint(0, 50, (4,), generator=generator).tolist()
        draft = state.draft(ids[: end + 1], taps[done:end], forced(grown, indices))
        whole = DSparkState(drafter).draft(ids[: end + 1], taps[:end], forced(once, indices))
        assert_close(torch.stack(grown), torch.stack(once), **TOLERANCE)
        assert_close(draft.confidence, whole.confidence, **TOLERANCE)
        done, rounds = end, rounds + 1
    assert rounds > 10 and state.length == rows


def test_a_block_sees_the_rows_before_its_anchor_and_nothing_else(make_drafter):
    drafter = make_drafter()
    ids, taps, anchors = _sequences(drafter)
    anchor_ids = ids.gather(1, anchors)
    with torch.no_grad():
        before = drafter(taps, anchor_ids, anchors)
        for row in (0, 11, ROWS - 1):
            changed = taps.clone()
            changed[0, row] += 3.0
            moved = (drafter(changed, anchor_ids, anchors) - before).abs().amax(dim=(2, 3))
            seen = torch.tensor([[row < a for a in ANCHORS[0]], [False] * len(ANCHORS[1])])
            assert torch.equal(moved > 1e-3, seen), row
            assert (moved[~seen] < 1e-5).all()
        other = anchor_ids.clone()
        other[0, 4] = (other[0, 4] + 1) % drafter.config.vocab_size
        moved = (drafter(taps, other, anchors) - before).abs().amax(dim=(2, 3))
        # Every slot of the block itself feels its anchor, no other block does.
        assert ((drafter(taps, other, anchors) - before)[0, 4].abs().amax(-1) > 1e-3).all()
        moved[0, 4] = 0
        assert moved.max() < 1e-5


def test_a_window_ends_where_it_says(make_drafter):
    """Slot j of a block at a sees rows from a + j - window + 1 on; one layer, for slots of a block see each other."""
    drafter = make_drafter(num_hidden_layers=1, draft_window=9)
    ids, taps, _ = _sequences(drafter)
    anchor = torch.full((2, 1), 20)
    with torch.no_grad():
        before = drafter(taps, ids.gather(1, anchor), anchor)
        for slot in range(drafter.config.block_size):
            for row, felt in ((20 + slot - 9, False), (20 + slot - 8, True)):
                other = taps.clone()
                other[:, row] += 1
                moved = (drafter(other, ids.gather(1, anchor), anchor) - before)[:, 0, slot].abs().max()
                assert (moved > 1e-4) == felt, (slot, row)


def test_padding_behind_a_sequence_changes_nothing(make_drafter):
    drafter = make_drafter()
    ids, taps, anchors = _sequences(drafter)
    anchor_ids = ids.gather(1, anchors)
    padded = torch.cat((taps, torch.full((2, 5, taps.shape[-1]), 100.0)), dim=1)
    with torch.no_grad():
        assert_close(drafter(padded, anchor_ids, anchors), drafter(taps, anchor_ids, anchors), **TOLERANCE)


def test_gradients_of_many_blocks_are_the_sum_of_each_alone(make_drafter):
    drafter = make_drafter()
    ids, taps, anchors = _sequences(drafter)
    anchor_ids = ids.gather(1, anchors)
    weights = torch.randn(2, anchors.shape[1], 4, 24, generator=torch.Generator().manual_seed(3))
    backbone = [p for n, p in drafter.named_parameters() if not n.startswith(("markov", "confidence"))]
    together = torch.autograd.grad((drafter(taps, anchor_ids, anchors) * weights).sum(), backbone)
    alone = [torch.zeros_like(p) for p in backbone]
    for block in range(anchors.shape[1]):
        one = slice(block, block + 1)
        hidden = drafter(taps, anchor_ids[:, one], anchors[:, one])
        gradients = torch.autograd.grad((hidden * weights[:, one]).sum(), backbone)
        alone = [total + gradient for total, gradient in zip(alone, gradients, strict=True)]
    for first, second in zip(together, alone, strict=True):
        assert first.abs().max() > 0
        assert_close(first, second, rtol=1e-4, atol=1e-4 * float(second.abs().max()))


# Whether each slot's logits stay when x_2 changes: a vanilla head forgets what came before x_{k-1}, an RNN does not.
SAME = {
    "vanilla": [True, True, False, True],
    "gated": [True, True, False, True],
    "rnn": [True, True, False, False],
    "top-k": [True, True, False, True],
    "none": [True] * 4,
    "window": [True, True, False, True],
    "blind": [True, True, False, True],
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_slot_knows_the_tokens_before_it_and_not_its_own(make_drafter, forced, kind):
    drafter = make_drafter(**HEADS[kind])
    ids, taps, _ = _sequences(drafter)
    first, second, chain = [], [], [11, 12, 13, 14]
    one = DSparkState(drafter).draft(ids[0, :10].tolist(), taps[0, :9], forced(first, chain))
    chain[1] = 40
    two = DSparkState(drafter).draft(ids[0, :10].tolist(), taps[0, :9], forced(second, chain))
    for slot, same in enumerate(SAME[kind]):
        assert torch.equal(first[slot], second[slot]) == same
        if kind != "rnn":  # confidence reads the token before it, not the state
            assert (one.confidence[slot] == two.confidence[slot]) == (same or kind == "blind")


def test_only_the_largest_base_logits_get_the_bias(make_drafter):
    ids = torch.tensor([3, 9, 20, 41])
    whole, some = make_drafter(), make_drafter(markov_top_k=7)
    hidden = torch.randn(4, 24, generator=torch.Generator().manual_seed(3))
    base, biased, part = whole.base_logits(hidden), whole.logits(hidden, ids), some.logits(hidden, ids)
    top = base >= base.sort(descending=True).values[:, 6:7]
    assert top.sum() == 28
    assert torch.equal(torch.where(top, biased, base), part) and not torch.equal(part, biased)


def test_a_pruned_vocabulary_is_the_full_one_restricted(make_drafter, forced):
    kept = (0, 3, 4, 9, 17, 30, 31, 48)
    full, pruned = make_drafter(), make_drafter(draft_ids=kept)
    weights = full.state_dict()
    weights["markov_head.markov_w2.weight"] = weights["markov_head.markov_w2.weight"][list(kept)]
    pruned.load_state_dict(weights)
    pruned.head = full.head[list(kept)]
    pruned.embedding = full.embedding
    ids, taps, _ = _sequences(full)
    committed = [*ids[0, :9].tolist(), 5]  # an anchor outside the draft vocabulary
    wide, narrow, indices = [], [], [2, 7, 0, 4]
    expected = DSparkState(full).draft(committed, taps[0, :9], forced(wide, [kept[i] for i in indices]))
    draft = DSparkState(pruned).draft(committed, taps[0, :9], forced(narrow, indices))
    assert_close(torch.stack(narrow), torch.stack(wide)[:, list(kept)], **TOLERANCE)
    assert draft.tokens == expected.tokens == [kept[i] for i in indices]
    assert_close(draft.confidence, expected.confidence, **TOLERANCE)
    dense = draft.dense(50)
    assert_close(dense.sum(-1), torch.ones(4))
    assert torch.equal(dense[:, list(kept)], draft.probs)
    assert dense[:, [i for i in range(50) if i not in kept]].abs().max() == 0


def test_the_pruned_head_is_gathered_from_the_targets(make_drafter):
    full, pruned = make_drafter(), make_drafter(draft_ids=(1, 5, 49))
    assert torch.equal(pruned.head, full.head[[1, 5, 49]]) and pruned.head.is_contiguous()
    assert pruned.support.tolist() == [1, 5, 49]
    assert pruned.markov_head.markov_w1.weight.shape == (50, 5)
    assert pruned.markov_head.markov_w2.weight.shape == (3, 5)


def test_the_frozen_ends_are_no_part_of_the_module_state(make_drafter):
    drafter = make_drafter()
    frozen = {drafter.embedding.data_ptr(), drafter.head.data_ptr()}
    owned = [*drafter.parameters(), *drafter.buffers(), *drafter.state_dict().values()]
    assert not frozen & {tensor.data_ptr() for tensor in owned}
    assert not drafter.head.requires_grad and not drafter.embedding.requires_grad
    drafter.to(torch.bfloat16)
    assert drafter.head.dtype == torch.float32 and drafter.dtype == torch.bfloat16


def test_the_probabilities_that_were_sampled_from_are_kept(make_drafter):
    drafter, given = make_drafter(), []

    def sample(slot, logits, support):
        given.append(torch.softmax(logits.double() / (slot + 1), dim=-1))
        return slot, given[-1]

    draft = DSparkState(drafter).draft([1], None, sample)
    assert draft.probs.dtype == torch.float64
    assert torch.equal(draft.probs, torch.stack(given))


def test_an_empty_context_is_allowed(make_drafter, greedy):
    drafter, seen = make_drafter(), []
    draft = DSparkState(drafter).draft([9], None, greedy(seen))
    taps = torch.zeros(1, 1, drafter.config.taps_width)
    with torch.no_grad():
        hidden = drafter(taps, torch.tensor([[9]]), torch.tensor([[0]]))[0, 0]
        expected = drafter.logits(hidden, torch.tensor([9, *draft.tokens[:-1]]))
    assert_close(torch.stack(seen), expected, **TOLERANCE)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])
def test_bf16_drafts_close_to_fp32(make_drafter, forced, dtypes):
    own, head = dtypes
    exact, rounded, seen, coarse = make_drafter(), make_drafter().to(own), [], []
    rounded.head, rounded.embedding = rounded.head.to(head), rounded.embedding.to(head)
    ids, taps, _ = _sequences(exact)
    DSparkState(exact).draft(ids[0, :21].tolist(), taps[0, :20], forced(seen, [1, 2, 3, 4]))
    draft = DSparkState(rounded).draft(ids[0, :21].tolist(), taps[0, :20], forced(coarse, [1, 2, 3, 4]))
    assert coarse[0].dtype == torch.promote_types(own, head)
    assert draft.probs.dtype == torch.float32
    scale = torch.stack(seen).abs().max()
    assert (torch.stack(coarse).float() - torch.stack(seen)).abs().max() < 0.05 * scale


def test_rows_that_do_not_match_the_committed_ids_are_refused(make_drafter, greedy):
    drafter = make_drafter()
    state = DSparkState(drafter)
    taps = torch.randn(6, drafter.config.taps_width)
    for rows in (taps[:4], taps[:6], None):
        with pytest.raises(ValueError, match="one for every token before the anchor"):
            state.draft([1, 2, 3, 4, 5, 6], rows, greedy([]))
    assert state.length == 0
    state.draft([1, 2, 3, 4, 5, 6], taps[:5], greedy([]))
    with pytest.raises(ValueError, match="5 rows and was given 0 more"):
        state.draft([1, 2, 3, 4, 5, 6, 7], None, greedy([]))
    assert state.length == 5


@pytest.mark.parametrize("width", [64, 50_257], ids=["compiled", "PyTorch"])
def test_peaks_do_not_depend_on_other_rows(width):
    logits = torch.randn(5, width, generator=torch.Generator().manual_seed(0)) * 3
    together = peaks(logits)
    assert torch.equal(together, torch.cat([peaks(row) for row in logits.split(1)]))
    assert_close(together.double(), torch.logit(logits.double().softmax(-1).amax(-1)), rtol=1e-4, atol=1e-4)
    assert 14 < float(peaks(torch.tensor([[99.0, 0.0]]))) < 16


def test_without_a_confidence_head_a_drafter_is_as_sure_as_its_own_laws(make_drafter, greedy):
    silent, seen = make_drafter(enable_confidence_head=False), []
    draft = DSparkState(silent).draft([1], None, greedy(seen))
    largest = torch.stack(seen).softmax(dim=-1).amax(dim=-1)
    assert_close(torch.tensor(draft.peaks), torch.logit(largest), rtol=1e-4, atol=1e-4)
    assert draft.confidence == draft.peaks
    hidden_only = make_drafter(confidence_head_with_markov=False)
    assert hidden_only.confidence_head.proj.weight.shape == (1, 24)
    assert len(DSparkState(hidden_only).draft([1], None, greedy([])).confidence) == 4
