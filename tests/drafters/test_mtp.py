"""MTP-1: by its formula, on disk, and refused where it can't be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dspark.drafters.checkpoint import load_drafter, save_drafter
from dspark.drafters.config import MTPConfig
from dspark.drafters.mtp import MTPDrafter
from dspark.drafters.state import DSparkState
from dspark.foundation.errors import UserError
from tiny import tiny_chain, tiny_target

TARGET = tiny_target()


def drafted(drafter: Any, seed: int = 0) -> Any:
    taps = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))
    seen = []

    def sample(slot: int, logits: torch.Tensor, support: torch.Tensor | None) -> tuple[int, torch.Tensor]:
        seen.append(logits)
        return int(logits.argmax()), logits.softmax(-1)

    return DSparkState(drafter).draft([1, 2, 3, 4, 5, 6, 7], taps, sample), torch.stack(seen)


@pytest.mark.parametrize("draft_ids", [None, (2, 5, 30, 62)], ids=["full", "pruned"])
def test_a_checkpoint_comes_back_and_drafts_one_token(tmp_path: Path, draft_ids: tuple[int, ...] | None) -> None:
    drafter = tiny_chain(TARGET, "mtp", draft_ids=draft_ids)
    save_drafter(tmp_path / "mtp", drafter, TARGET.identity)
    again = load_drafter(tmp_path / "mtp", TARGET.identity, TARGET.ends, torch.float32)
    assert isinstance(again, MTPDrafter) and again.config == drafter.config
    (draft, logits), (other, same) = drafted(drafter), drafted(again)
    assert len(draft.tokens) == 1 and draft.tokens == other.tokens and torch.equal(logits, same)
    again.round_to_bytes()
    again.pack()
    assert_close(drafted(again)[1], logits, rtol=0.1, atol=0.1)  # rounded weights draft about the same
    assert not torch.equal(drafted(again)[1], logits)
    assert draft.confidence == draft.peaks


def test_where_it_starts_it_is_the_targets_own_last_layer_on_the_hidden_state() -> None:
    drafter, layer = tiny_chain(TARGET, "mtp"), tiny_target(pack=False).layer_weights(2)
    assert isinstance(drafter, MTPDrafter)
    own = drafter.layer.started_as(layer)
    assert own.keys() == dict(drafter.layer.named_parameters()).keys() - {
        "self_attn.q_norm.weight",
        "self_attn.k_norm.weight",
    }
    drafter.layer.load_state_dict(own, strict=False)
    hidden, embedded = torch.randn(3, 32), torch.randn(3, 32)
    residual, read = drafter.layer.join(hidden, embedded)
    unit = hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_close(residual, unit)
    assert_close(read, unit / (unit.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * layer["input_layernorm.weight"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_size": 2}, "block_size is 2; MTP-1 drafts 1 token"),
        ({"target_layer_ids": (1,)}, r"target_layer_ids is \[1\]; MTP-1 reads the last layer alone, \[2\]"),
        ({"target_layer_ids": (1, 2)}, "reads the last layer alone"),
        ({"num_hidden_layers": 2}, "mtp drafters have 1"),
        ({"step_loss_decay": 0}, "step_loss_decay is 0; expected more than 0"),
    ],
)
def test_what_is_no_mtp_1_is_refused(changes: dict[str, Any], words: str) -> None:
    values = vars(tiny_chain(TARGET, "mtp").config)
    with pytest.raises(UserError, match=words):
        MTPConfig(**(values | changes))
