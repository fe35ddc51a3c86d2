"""What a slot is taught, that features equal those of decoding, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import conversations, new_trainer, recipe

from dspark.data.features import OnlineFeatures
from dspark.data.prompts import held_out
from dspark.data.responses import Response
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.drafters.checkpoint import save_drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.state import DSparkState
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import RoundTally
from dspark.speculation.loop import Draft
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Forward
from dspark.targets.ragged import RaggedBatch
from dspark.targets.session import TargetSession
from dspark.training.anchors import blocks_at, choose_anchors
from dspark.training.learner import Learner
from dspark.training.objective import objective, supervised_slots
from dspark.training.recipe import DataSettings, Recipe
from dspark.training.run import Run
from dspark.training.schedule import Batches, learning_rate
from dspark.training.start import draft_vocabulary, new_drafter, with_vocabulary
from dspark.training.trainer import Trainer, split_examples
from dspark.training.validation import validate
from tiny import STOP, VOCAB, tiny_drafter, tiny_llama, tiny_target


def test_training_can_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    target, examples = tiny_target(sharpness=3.0, pack=False), conversations(tiny_target(sharpness=3.0), 6)
    settings = recipe()
    settings = settings.model_copy(update={"drafter": settings.drafter.model_copy(update={"draft_vocab_size": 32})})
    first = new_drafter(settings, target, examples)
    save_drafter(tmp_path / "first", first, target.identity)

    def going_on(**changes: Any) -> DSparkDrafter:
        drafter = settings.drafter.model_copy(update={"initial": str(tmp_path / "first")} | changes)
        return new_drafter(settings.model_copy(update={"drafter": drafter}), target, examples[:1])

    again = going_on()
    assert again.config == first.config, "its draft vocabulary is its own, not that of other answers"
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert going_on(block_size=3).config.block_size == 3, "no weight depends on it"
    answers = examples[0].ids[examples[0].start :]
    assert going_on(draft_vocab_size=16).config.draft_ids == draft_vocabulary(answers, 16, VOCAB, target.stop_ids)
    assert going_on(draft_vocab_size=0).config.draft_ids is None
    with pytest.raises(UserError, match=r"has num_hidden_layers 2 \(recipe: 3\)"):
        going_on(layers=3)
    with pytest.raises(UserError, match=r"has enable_confidence_head True \(recipe: False\)"):
        going_on(confidence_head=False)
    with pytest.raises(UserError, match="nowhere"):
        going_on(initial=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("size", [48, 16, 0])
@pytest.mark.parametrize("rank", [8, 0])
def test_a_trained_drafter_may_learn_other_ids_and_keeps_what_it_knows_of_its_own(size: int, rank: int) -> None:
    target = tiny_target(pack=False)
    ids = tuple(range(1, VOCAB, 2))
    drafter = tiny_drafter(target, markov_rank=rank, draft_ids=ids)
    wanted = tuple(range(size)) if size else None
    other = with_vocabulary(drafter, target, wanted)
    hidden, before = torch.randn(2, 4, 32), torch.randint(0, VOCAB, (2, 4))
    old, new = drafter.logits(hidden, before), other.logits(hidden, before)
    inside = range(VOCAB) if wanted is None else wanted
    known = [(inside.index(i), ids.index(i)) for i in inside if i in ids]
    assert len(known) == (size or VOCAB) // 2
    torch.testing.assert_close(new[..., [n for n, _ in known]], old[..., [o for _, o in known]])
    unknown = [inside.index(i) for i in inside if i not in ids]
    torch.testing.assert_close(new[..., unknown], (hidden @ other.head.T)[..., unknown])  # no bias yet
    assert torch.equal(other.confidence_logits(hidden, before), drafter.confidence_logits(hidden, before))


@pytest.mark.parametrize("initial", ["target", "random"])
def test_the_first_weights_are_those_of_the_seed(initial: str) -> None:
    target = tiny_target(sharpness=3.0, pack=False)
    settings = recipe()
    settings = settings.model_copy(update={"drafter": settings.drafter.model_copy(update={"initial": initial})})
    found = []
    for other_numbers_drawn in (1, 2):
        torch.manual_seed(other_numbers_drawn)
        found.append(new_drafter(settings, target, conversations(target, 2)).state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@given(
    masks=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4).filter(
        lambda rows: any(a and b for row in rows for a, b in zip(row, row[1:], strict=False))
    ),
    count=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_anchors_and_labels_follow_the_specification(masks: list[list[bool]], count: int, seed: int) -> None:
    supervised = torch.tensor(masks)
    ids = torch.arange(supervised.numel()).view_as(supervised)
    positions, valid = choose_anchors(supervised, count, torch.Generator().manual_seed(seed))
    blocks = blocks_at(ids, supervised, positions, valid, block_size=4)
    for row, mask in enumerate(masks):
        chosen = positions[row][valid[row]].tolist()
        candidates = [a for a in range(11) if mask[a] and mask[a + 1]]
        assert chosen == sorted(set(chosen)) and set(chosen) <= set(candidates)
        assert len(chosen) == min(count, len(candidates))
        for column in range(positions.shape[1]):
            taught = blocks.supervised[row, column].tolist()
            if not valid[row, column]:
                assert not any(taught)
                continue
            anchor = int(positions[row, column])
            assert blocks.anchor_ids[row, column] == ids[row, anchor]
            run = 0
            while run < 4 and anchor + 1 + run < 12 and mask[anchor + 1 + run]:
                run += 1
            assert taught == [slot < run for slot in range(4)]
            for slot in range(run):
                assert blocks.labels[row, column, slot] == ids[row, anchor + 1 + slot]
                assert blocks.previous[row, column, slot] == ids[row, anchor + slot]


def test_training_sees_what_decoding_sees() -> None:
    """Features, block and logits of training equal those of decoding at the same positions, fp32."""
    target = tiny_target(sharpness=3.0)
    drafter = tiny_drafter(target)
    examples = conversations(target, 3)
    batch = OnlineFeatures(target, examples, (0, 1)).batch([0, 1, 2])
    anchor = 14
    positions = torch.full((3, 1), anchor)
    blocks = blocks_at(batch.ids, batch.supervised, positions, torch.ones_like(positions, dtype=torch.bool), 4)
    slots, _ = supervised_slots(drafter, batch, blocks)
    trained = drafter.logits(slots.hidden, blocks.previous[blocks.supervised]).view(3, 4, -1)
    for row, example in enumerate(examples):
        session = TargetSession(target, capacity=64, taps=(0, 1))
        state = DSparkState(drafter)
        rest = iter(example.ids[anchor + 1 :])
        decoded = []

        def forced(slot: int, logits: torch.Tensor, _: Any, rest: Any = rest, decoded: list[Any] = decoded) -> Any:
            decoded.append(logits.clone())
            return next(rest), torch.softmax(logits, -1)

        # a prefill, then one token at a time, as rounds with nothing accepted would bring them
        first = session.extend(example.ids[:8], 1).features_TF
        features = [first, *(session.extend([token], 1).features_TF for token in example.ids[8:anchor])]
        draft = state.draft(example.ids[: anchor + 1], torch.cat(features), forced)
        assert isinstance(draft, Draft)
        torch.testing.assert_close(torch.cat(features), batch.taps[row, :anchor], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.stack(decoded), trained[row], rtol=1e-5, atol=1e-5)
        logits = session.extend(example.ids[anchor : anchor + 4], 4).logits_NV
        ours = (batch.hidden[row, anchor : anchor + 4] @ target.ends.head.T) - batch.log_mass[
            row, anchor : anchor + 4, None
        ]
        torch.testing.assert_close(ours, logits.log_softmax(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_features_equal_computed_ones(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target()
    examples = conversations(target, 4, answer=10)
    computed = OnlineFeatures(target, examples, (0, 1), keep_dtype=dtype)
    kept = OnlineFeatures(target, examples, (0, 1), memory_bytes=20_000, keep_dtype=dtype)
    first, runs, forward = kept.batch([0, 1]), [], target.forward

    def counted(ids: torch.Tensor, batch: RaggedBatch, taps: Sequence[int] = ()) -> Forward:
        runs.append(len(batch.counts))
        return forward(ids, batch, taps)

    monkeypatch.setattr(target, "forward", counted)
    again = kept.batch([0, 1])
    assert not runs, "both were kept"
    names = ("ids", "supervised", "taps", "hidden", "log_mass", "lengths")
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in names)
    assert again.taps.dtype == dtype
    mixed, fresh = kept.batch([1, 3, 0]), computed.batch([1, 3, 0])
    assert runs == [1, 3], "only the third was missing"
    for name in names:
        torch.testing.assert_close(getattr(mixed, name), getattr(fresh, name))


def test_padding_is_never_read() -> None:
    target = tiny_target()
    drafter = tiny_drafter(target)
    examples = conversations(target, 4)
    together, settings = OnlineFeatures(target, examples, (0, 1)).batch([0, 1, 2, 3]), recipe().loss
    assert len(set(together.lengths.tolist())) == 4
    positions, valid = choose_anchors(together.supervised, 6, torch.Generator().manual_seed(0))
    blocks = blocks_at(together.ids, together.supervised, positions, valid, 4)
    found = objective(drafter, together, blocks, settings)
    for row, length in enumerate(together.lengths.tolist()):
        for rows in (together.taps, together.hidden, together.log_mass):
            rows[row, length:] = torch.nan
    again = objective(drafter, together, blocks, settings)
    assert torch.equal(found.loss, again.loss) and torch.isfinite(found.loss)


def test_thirty_two_conversations_can_be_learnt_by_heart(tmp_path: Path) -> None:
    """And then decoding for real keeps what was learnt, which no error of position survives: tau above 5."""
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    examples = conversations(tiny_target(sharpness=3.0, **sizes), 32)
    settings = recipe(lr=4e-3, steps=300, sequences=16, anchors=16, validate_every=300, save_every=300)
    trainer = new_trainer(tmp_path, examples, settings, **sizes)
    source = OnlineFeatures(trainer.target, examples, (0, 1), memory_bytes=10**8)
    head = trainer.target.ends.head
    before = validate(trainer.drafter, source, head, sequences=8, anchors=8)
    assert before.tau < 1.5 and before.greedy_tau < 1.5
    trainer.run_to_end()
    after = validate(trainer.drafter, source, head, sequences=8, anchors=8)
    assert after.tau > 5 and after.greedy_tau > 5, (before, after)
    tally, decoder = RoundTally(), Decoder(trainer.target, trainer.drafter.eval())
    for example in examples:
        request = Request(example.id, example.ids[: example.start], Sampling(), 0, 24)
        tally.extend(decoder.stream(request, "dspark"))
    assert tally.tau > 5


def test_dflash_learns_by_cross_entropy_alone() -> None:
    target = tiny_target(sharpness=3.0, pack=False)
    examples = conversations(target, 4)
    values = recipe().model_dump()
    values["drafter"] |= {"markov_rank": 0, "confidence_head": False}
    values["loss"] |= {"hard_ce": 1.0, "soft_ce": 0.0, "l1": 0.0}
    settings = Recipe.model_validate(values)
    drafter = new_drafter(settings, target, examples)
    assert not [name for name in drafter.state_dict() if name.startswith(("markov", "confidence"))]
    batch = OnlineFeatures(target, examples, (0, 1)).batch(range(4))
    positions, valid = choose_anchors(batch.supervised, 9, torch.Generator().manual_seed(0))
    blocks = blocks_at(batch.ids, batch.supervised, positions, valid, 7)
    found = objective(drafter, batch, blocks, settings.loss).loss
    found.backward()
    grads = {name: each.grad for name, each in drafter.named_parameters()}
    drafter.zero_grad()
    losses, weights = [], []
    hidden = drafter(batch.taps, blocks.anchor_ids, blocks.anchor_positions)
    for row, column, slot in blocks.supervised.nonzero().tolist():
        logits, label = drafter.head @ hidden[row, column, slot], int(positions[row, column]) + 1 + slot
        losses.append(torch.nn.functional.cross_entropy(logits, batch.ids[row, label]))
        weights.append(math.exp(-slot / 4))
    expected = torch.stack(losses) @ torch.tensor(weights) / sum(weights)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, each in drafter.named_parameters():
        torch.testing.assert_close(grads[name], each.grad, rtol=1e-4, atol=1e-5, msg=name)
    before = float(found.detach())
    learner = Learner(settings, drafter)
    for _ in range(5):
        figures = learner.learn(batch)
    assert figures["loss"] == figures["hard_ce"] < before
    assert figures["confidence"] == 0


def test_long_gradients_are_cut_to_the_clip_and_short_ones_stay() -> None:
    """By what the optimiser remembers of its first step: a tenth of the gradient that it saw."""
    target = tiny_target(sharpness=3.0, pack=False)
    examples = conversations(target, 4)
    batch = OnlineFeatures(target, examples, (0, 1)).batch(range(4))
    norms = []
    for clip in (1e-3, 1e9):
        values = recipe().model_dump()
        values["optimizer"] |= {"clip": clip}
        settings = Recipe.model_validate(values)
        learner = Learner(settings, new_drafter(settings, target, examples))
        norms.append(learner.learn(batch)["gradient_norm"])
        seen = [state["exp_avg"].flatten() * 10 for state in learner.optimizer.state.values()]
        assert float(torch.cat(seen).norm()) == pytest.approx(min(clip, norms[-1]), rel=1e-4)
    assert norms[0] == norms[1] > 1e-3


def test_steps_of_short_blocks_are_those_of_a_drafter_with_short_blocks() -> None:
    target = tiny_target(sharpness=3.0, pack=False)
    examples = conversations(target, 4)
    batch = OnlineFeatures(target, examples, (0, 1)).batch(range(4))

    def after(block_size: int, steps: int, **trainer: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        settings = recipe(steps=steps, **trainer)
        drafter = settings.drafter.model_copy(update={"block_size": block_size})
        learner = Learner(settings.model_copy(update={"drafter": drafter}), new_drafter(settings, target, examples))
        learner.drafter.config = replace(learner.drafter.config, block_size=block_size)
        return [learner.learn(batch) for _ in range(steps)], learner.drafter.state_dict()

    always = after(7, 3, anchors=4, short_share=1.0, short_slots=3)
    short = after(3, 3, anchors=9)  # 4 blocks of 7 slots have the room of 9 of 3
    assert always[0] == short[0] and all(torch.equal(tensor, short[1][name]) for name, tensor in always[1].items())
    whole = after(7, 3, anchors=4, short_slots=3)
    assert whole[0] != short[0]
    mixed = after(7, 12, anchors=4, short_share=0.5, short_slots=3)
    assert mixed[0] not in (after(7, 12, anchors=4)[0], after(3, 12, anchors=9)[0]), "some steps of either kind"


def test_a_bf16_target_trains_an_fp32_drafter(tmp_path: Path) -> None:
    target = tiny_target(tiny_llama(sharpness=3.0).to(torch.bfloat16), pack=False)
    examples = conversations(target, 8)
    drafter = new_drafter(recipe(), target, examples)
    trainer = Trainer(recipe(), Run(tmp_path, recipe(), resume=False), target, drafter, examples, examples[:2])
    assert trainer.run_to_end().validation.blocks > 0
    assert {p.dtype for p in drafter.parameters()} == {torch.float32}


def test_answers_are_split_by_id_alone_and_held_out_ones_in_an_order_of_their_own() -> None:
    responses = [
        Response(f"q{i}", turn, [], [1, 2], [3 + i % 50, 4, 5], "length", "tiny", {})
        for i in range(100)
        for turn in (0, 1)
    ]
    training, held = split_examples(responses, DataSettings(responses=(Path("x"),), held_out_percent=20))
    ids = [{e.id.rsplit("/", 1)[0] for e in side} for side in (training, held)]
    assert ids[0] | ids[1] == {f"q{i}" for i in range(100)} and not ids[0] & ids[1]
    assert len(training) + len(held) == 200 and len(held) == 2 * len(ids[1]) and 10 < len(ids[1]) < 35
    assert all(held_out(name, 20) for name in ids[1])
    reordered = split_examples(responses[::-1], DataSettings(responses=(Path("x"),), held_out_percent=20))[1]
    assert held == reordered != sorted(held, key=lambda e: e.id)
    with pytest.raises(UserError, match="both must be"):
        split_examples(responses[:1], DataSettings(responses=(Path("x"),)))


def test_every_epoch_holds_every_example_once() -> None:
    lengths = [5 + (7 * i) % 31 for i in range(50)]
    batches = Batches(lengths, size=8, seed=3)
    epochs = [[batches.at(step) for step in range(epoch * 7, epoch * 7 + 7)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(50))
    assert epochs[0] != epochs[1]
    assert Batches(lengths, size=8, seed=3).at(9) == batches.at(9)


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False)) and rates[100] == pytest.approx(0)


def test_the_draft_vocabulary_is_the_most_frequent_ids_with_the_stop_ids() -> None:
    assert draft_vocabulary([9, 9, 9, 5, 5, 7], 4, VOCAB, [STOP]) == (STOP, 5, 7, 9)
    assert draft_vocabulary([9], 4, VOCAB, [STOP]) == (0, 1, STOP, 9)
    with pytest.raises(UserError, match="draft_vocab_size"):
        draft_vocabulary([9], VOCAB + 1, VOCAB, [STOP])


def test_products_in_bf16_are_others_but_near_and_weights_stay_fp32(tmp_path: Path) -> None:
    examples = conversations(tiny_target(sharpness=3.0), 6)
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = new_trainer(tmp_path / precision, examples, recipe(precision=precision))
        losses.append(trainer.learner.learn(trainer._training.batch([0, 1, 2, 3]))["loss"])
        assert {each.dtype for each in trainer.drafter.parameters()} == {torch.float32}
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
