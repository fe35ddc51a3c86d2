"""Training-time test: the table of shifts, the loss against a plain and slow formula, and that it teaches to draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import chain_recipe, conversations, new_trainer, recipe
from torch import Tensor
from torch.nn.functional import linear, silu

from dspark.data.features import FeatureBatch, OnlineFeatures
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.drafters.chain import ChainDrafter
from dspark.drafters.kinds import config_of
from dspark.drafters.state import DSparkState
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import RoundTally
from dspark.speculation.sampling import Sampling
from dspark.targets.session import TargetSession
from dspark.training.anchors import blocks_at, choose_anchors
from dspark.training.objective import objective
from dspark.training.recipe import Recipe
from dspark.training.start import new_drafter, same_drafter
from dspark.training.validation import validate
from tiny import tiny_chain, tiny_target

STEPS = {"eagle3": 3, "mtp": 1}
KINDS = pytest.mark.parametrize("kind", STEPS)


def everywhere(batch: FeatureBatch, steps: int) -> Any:
    """Every position that takes part, unrolled."""
    positions, valid = choose_anchors(batch.supervised, 10**6, torch.Generator(), steps)
    return blocks_at(batch.ids, batch.supervised, positions, valid, steps, unrolled=True)


@given(
    masks=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4).filter(
        lambda rows: any(any(row[2:]) for row in rows)
    ),
    steps=st.integers(1, 7),
)
def test_the_table_of_shifts(masks: list[list[bool]], steps: int) -> None:
    """Step i at t reads token t + 1 + i, predicts token t + 2 + i, and counts where that one is supervised."""
    supervised = torch.tensor(masks)
    ids = torch.arange(supervised.numel()).view_as(supervised)
    positions, valid = choose_anchors(supervised, 99, torch.Generator(), steps)
    blocks = blocks_at(ids, supervised, positions, valid, steps, unrolled=True)
    found, expected = set(), set()
    for row, mask in enumerate(masks):
        expected |= {(row, t, i) for t in range(12) for i in range(steps) if t + 2 + i < 12 and mask[t + 2 + i]}
        for column in range(positions.shape[1]):
            t = int(positions[row, column]) - 1
            for step in range(steps):
                if blocks.supervised[row, column, step]:
                    found.add((row, t, step))
                    assert blocks.previous[row, column, step] == ids[row, t + 1 + step]
                    assert blocks.labels[row, column, step] == ids[row, t + 2 + step]
    assert found == expected


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x_ND: Tensor, position: int, theta: float) -> Tensor:
    half = x_ND.shape[-1] // 2
    angles = position / theta ** (torch.arange(half) / half)
    first, second = x_ND[:, :half], x_ND[:, half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def joined(drafter: ChainDrafter, hidden: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """What the residual stream and attention get of a pair, by the specification."""
    layer, eps = drafter.layer, drafter.config.rms_norm_eps
    w = dict(layer.named_parameters())
    embedded = drafter.embedding[token]
    if drafter.config.kind == "mtp":
        both = torch.cat((normed(hidden, w["hnorm.weight"], eps), normed(embedded, w["enorm.weight"], eps)))
        x = linear(both, w["eh_proj.weight"])
        return x, normed(x, w["input_layernorm.weight"], eps)
    read = [normed(embedded, w["input_layernorm.weight"], eps), normed(hidden, w["hidden_norm.weight"], eps)]
    return hidden, torch.cat(read)


def slow_loss(drafter: ChainDrafter, batch: FeatureBatch, steps: int, decay: float, fault: str = "") -> Tensor:
    """Position by position, step by step, as section 8 says it; ``fault``: one of three ways to get it wrong."""
    config, layer = drafter.config, drafter.layer
    w, eps = dict(layer.named_parameters()), config.rms_norm_eps
    terms: list[list[Tensor]] = [[] for _ in range(steps)]
    for row, length in enumerate(batch.lengths.tolist()):
        ids, hidden_S = batch.ids[row], list(drafter.project(batch.taps[row]))
        chunks: list[list[tuple[Tensor, Tensor]]] = []
        for step in range(steps):
            chunks.append([])
            outputs = []
            for t in range(length - 1 - step):
                at = t if fault == "position" else t + step
                residual, read = joined(drafter, hidden_S[t], ids[t + 1 + step])
                q, k, v = (linear(read, w[f"self_attn.{name}_proj.weight"]).view(-1, config.head_dim) for name in "qkv")
                q = turned(normed(q, w["self_attn.q_norm.weight"], eps), at, config.rope_theta)
                k = turned(normed(k, w["self_attn.k_norm.weight"], eps), at, config.rope_theta)
                chunks[step].append((k, v))
                beside = t - 1 if fault == "diagonal" and t else t
                seen = chunks[0][: t + 1] + [chunk[min(beside, len(chunk) - 1)] for chunk in chunks[1:]]
                shared = len(q) // len(k)
                keys, values = (torch.stack(each).repeat_interleave(shared, dim=1) for each in zip(*seen, strict=True))
                shares = ((keys * q).sum(-1) * config.head_dim**-0.5).softmax(dim=0)
                x = residual + linear((shares[..., None] * values).sum(0).flatten(), w["self_attn.o_proj.weight"])
                y = normed(x, w["post_attention_layernorm.weight"], eps)
                gated = silu(linear(y, w["mlp.gate_proj.weight"])) * linear(y, w["mlp.up_proj.weight"])
                outputs.append(x + linear(gated, w["mlp.down_proj.weight"]))
                if t + 2 + step < length and batch.supervised[row, t + 2 + step]:
                    p_t = (drafter.head @ batch.hidden[row, t + (step if fault == "target" else 1 + step)]).softmax(-1)
                    p_d = (drafter.head @ normed(outputs[t], drafter.norm.weight, eps)).log_softmax(-1)
                    terms[step].append(-(p_t * p_d).sum())
            hidden_S = outputs
    return torch.stack([decay**step * torch.stack(some).mean() for step, some in enumerate(terms)]).sum()


@KINDS
def test_value_and_gradients_equal_the_slow_formula(kind: str) -> None:
    target = tiny_target(sharpness=2.0)
    drafter, steps = tiny_chain(target, kind), STEPS[kind]
    for name, parameter in drafter.named_parameters():  # fresh norms are ones, which would hide an order
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    examples = conversations(target, 3, prompt=4, answer=6)
    batch = OnlineFeatures(target, examples, drafter.config.target_layer_ids).batch([0, 1, 2])
    settings = chain_recipe(kind, unrolled=steps).loss
    ours = objective(drafter, batch, everywhere(batch, steps), settings).loss
    ours.backward()
    grads = {name: each.grad.clone() for name, each in drafter.named_parameters()}
    drafter.zero_grad()
    slow = slow_loss(drafter, batch, steps, 0.8)
    slow.backward()
    torch.testing.assert_close(ours, slow, rtol=1e-5, atol=1e-5)
    for name, each in drafter.named_parameters():
        torch.testing.assert_close(grads[name], each.grad, rtol=1e-4, atol=1e-5, msg=name)
        assert each.grad.abs().max() > 1e-4, f"{name} is taught"
    with torch.no_grad():
        for fault in ("position", "diagonal", "target")[-1 if steps == 1 else 0 :]:
            assert abs(slow_loss(drafter, batch, steps, 0.8, fault) - slow) > 1e-3, fault


@KINDS
def test_training_sees_what_decoding_sees(kind: str) -> None:
    target = tiny_target(sharpness=3.0)
    drafter, examples = tiny_chain(target, kind), conversations(target, 3)
    taps, slots, anchor = drafter.config.target_layer_ids, drafter.config.block_size, 14
    batch = OnlineFeatures(target, examples, taps).batch([0, 1, 2])
    previous = batch.ids[:, None, anchor : anchor + slots]
    with torch.no_grad():
        hidden = drafter.taught(batch.taps, batch.ids, previous, torch.full((3, 1), anchor))
        trained = drafter.base_logits(hidden)[:, 0]
    for row, example in enumerate(examples):
        session, decoded = TargetSession(target, capacity=64, taps=taps), []
        rest = iter(example.ids[anchor + 1 :])

        def forced(slot: int, logits: Tensor, _: Any, rest: Any = rest, decoded: list[Any] = decoded) -> Any:
            decoded.append(logits.clone())
            return next(rest), torch.softmax(logits, -1)

        first = session.extend(example.ids[:8], 1).features_TF
        features = [first, *(session.extend([token], 1).features_TF for token in example.ids[8:anchor])]
        DSparkState(drafter).draft(example.ids[: anchor + 1], torch.cat(features), forced)
        torch.testing.assert_close(torch.stack(decoded), trained[row], rtol=1e-5, atol=1e-5)


@KINDS
def test_padding_and_what_stands_behind_an_anchor_are_never_read(kind: str) -> None:
    target = tiny_target()
    drafter, examples, steps = tiny_chain(target, kind), conversations(target, 4), STEPS[kind]
    batch, settings = OnlineFeatures(target, examples, drafter.config.target_layer_ids).batch(range(4)), chain_recipe()
    assert len(set(batch.lengths.tolist())) == 4
    blocks = everywhere(batch, steps)
    found = objective(drafter, batch, blocks, settings.loss)
    for row, length in enumerate(batch.lengths.tolist()):
        batch.hidden[row, length:] = batch.log_mass[row, length:] = torch.nan
        batch.taps[row, length:] = 99.0
    again = objective(drafter, batch, blocks, settings.loss)
    assert torch.isfinite(found.loss)
    torch.testing.assert_close(again.loss, found.loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "tau"), [("eagle3", 3.0), ("mtp", 1.7)])
def test_conversations_can_be_learnt_by_heart(tmp_path: Path, kind: str, tau: float) -> None:
    """And then decoding for real keeps what was learnt, which no error of position survives."""
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    examples = conversations(tiny_target(sharpness=3.0, **sizes), 8)
    settings = chain_recipe(kind, lr=4e-3, steps=200, sequences=8, anchors=12, validate_every=200, save_every=200)
    trainer = new_trainer(tmp_path, examples, settings, **sizes)
    source = OnlineFeatures(trainer.target, examples, trainer.drafter.config.target_layer_ids, memory_bytes=10**8)
    head = trainer.target.ends.head
    before = validate(trainer.drafter, source, head, sequences=8, anchors=8)
    trainer.run_to_end()
    after = validate(trainer.drafter, source, head, sequences=8, anchors=8)
    assert before.greedy_tau < tau - 0.5 and after.greedy_tau > tau, (before, after)
    tally, decoder = RoundTally(), Decoder(trainer.target, trainer.drafter.eval(), lookup=False)
    for example in examples:
        tally.extend(decoder.stream(Request(example.id, example.ids[: example.start], Sampling(), 0, 24), "dspark"))
    assert tally.tau > tau


@KINDS
def test_it_starts_as_the_targets_own_layer(kind: str) -> None:
    target = tiny_target(sharpness=3.0, pack=False)
    found = []
    for other_numbers_drawn in (1, 2):
        torch.manual_seed(other_numbers_drawn)
        found.append(new_drafter(chain_recipe(kind), target, []))
    drafter, again = found
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in drafter.state_dict().items())
    assert isinstance(drafter, ChainDrafter)
    source, own = target.layer_weights(2), dict(drafter.layer.named_parameters())
    assert torch.equal(own["mlp.up_proj.weight"], source["mlp.up_proj.weight"])
    hidden, token, other = torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    at = drafter.rotary(torch.arange(5)[None])
    with torch.no_grad():
        rows, others = (drafter.layer.rows(hidden, each, at) for each in (token, other))
    torch.testing.assert_close(rows.k, others.k)  # tokens do not count yet
    torch.testing.assert_close(rows.v, others.v)
    assert all(each.requires_grad for each in drafter.parameters())


@KINDS
def test_a_run_that_was_stopped_goes_on_and_others_begin_where_it_ended(kind: str, tmp_path: Path) -> None:
    target = tiny_target(sharpness=3.0, pack=False)
    examples = conversations(tiny_target(sharpness=3.0), 6)
    settings = chain_recipe(kind, steps=4, validate_every=4, save_every=2)
    whole = new_trainer(tmp_path / "whole", examples, settings)
    whole.run_to_end()
    first = new_trainer(tmp_path / "halves", examples, settings)
    while first.step < 2:
        first._train_step()
    state = first.state()
    drafter = same_drafter(target, config_of(kind, state["config"]))
    second = new_trainer(tmp_path / "second", examples, settings)
    second.drafter.load_state_dict(drafter.state_dict())
    second.load(state)
    while second.step < 4:
        second._train_step()
    for name, each in whole.drafter.state_dict().items():
        assert torch.equal(second.drafter.state_dict()[name], each), name
    ended = tmp_path / "whole" / "drafter"
    on = settings.model_copy(update={"drafter": settings.drafter.model_copy(update={"initial": str(ended)})})
    going_on = new_drafter(on, target, examples)
    assert going_on.config == whole.drafter.config
    with pytest.raises(UserError, match=f"is of kind {kind}, the recipe's drafter.kind is dspark"):
        new_drafter(
            recipe().model_copy(update={"drafter": recipe().drafter.model_copy(update={"initial": str(ended)})}),
            target,
            examples,
        )


@pytest.mark.parametrize(
    ("drafter", "words"),
    [
        ({"mask_token_id": 5}, "a drafter of kind eagle3 has no mask_token_id"),
        ({"markov_rank": 0, "confidence_head": False}, "has no markov_rank, confidence_head"),
        ({"kind": "dspark"}, "a drafter of kind dspark needs mask_token_id"),
    ],
)
def test_a_recipe_of_two_minds_is_refused(drafter: dict[str, Any], words: str) -> None:
    values = chain_recipe().model_dump()
    values["drafter"] |= drafter
    with pytest.raises(ValueError, match=words):
        Recipe.model_validate(values)


def test_an_unrolled_drafter_learns_step_by_step() -> None:
    values = chain_recipe().model_dump()
    values["loss"] |= {"position_weights": "exponential"}
    with pytest.raises(ValueError, match="a drafter of kind eagle3 learns with 'steps'"):
        Recipe.model_validate(values)
    values = chain_recipe().model_dump()
    values["drafter"] |= {"layers": 2}
    with pytest.raises(UserError, match="num_hidden_layers is 2; eagle3 drafters have 1"):
        new_drafter(Recipe.model_validate(values), tiny_target(pack=False), [])
