"""Drafts for many requests at once: copies where the last words stood before, the drafter's blocks elsewhere.

Legend: R requests, K slots of a block, V_d draft vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from math import isfinite

import torch
from torch import Tensor

from dspark.decoding.request import Running
from dspark.decoding.sampler import sample
from dspark.drafters.choice import Chance, draws
from dspark.drafters.drafter import Room
from dspark.drafters.heads import peaks
from dspark.speculation.acceptance import Source
from dspark.speculation.draws import Purpose
from dspark.speculation.loop import Draft

Timer = Callable[[str], None]
NO_DRAFT = Draft([])


def propose(
    rows: Sequence[Running],
    room: Room | None,
    wanted: Callable[[Running, Source], bool],
    lap: Timer,
    slots: Callable[[Running], int | None] = lambda row: None,
    begins: Callable[[], None] = lambda: None,
) -> list[Draft]:
    """A draft for each request, exactly as the reference loop's drafter states would have made it.

    Whoever is not ``wanted`` to propose (a request's last token is the target's own, say) proposes nothing.
    ``slots``: how many drafts a request wants of the drafter (None: whole blocks). ``lap`` is told when a piece of the
    work is done, ``begins`` before the drafter works.
    """
    drafts = [_copied(row) if row.lookup is not None and wanted(row, "lookup") else NO_DRAFT for row in rows]
    asking = [i for i, row in enumerate(rows) if room and not drafts[i].tokens and wanted(row, "drafter")]
    lap("lookup")
    if asking:
        begins()
    for (_, _, program, length), mine in _together(rows, asking, room, slots).items():
        asked = [rows[i] for i in mine]
        assert room is not None
        made = (_as_program if program else _slot_by_slot)(room, asked, length, lap)
        for i, draft in zip(mine, made, strict=True):
            drafts[i] = draft
    if broken := [row for row, draft in zip(rows, drafts, strict=True) if draft.broken]:
        _mend(room, broken)
    return drafts


def _together(
    rows: Sequence[Running],
    asking: Sequence[int],
    room: Room | None,
    slots: Callable[[Running], int | None],
) -> dict[tuple[bool, bool, bool, int | None], list[int]]:
    """Who drafts with whom: greedy, coupled or sampled requests, by a program (which draws for no coupled ones) or
    slot by slot, blocks of one length.
    """
    groups: dict[tuple[bool, bool, bool, int | None], list[int]] = {}
    compiled = room is not None and room.drafter.program is not None
    for i in asking:
        sampling, coupled = rows[i].request.sampling, rows[i].coupling is not None
        program = compiled and (sampling.greedy or (draws(sampling) and not coupled))
        groups.setdefault((sampling.greedy, coupled, program, slots(rows[i])), []).append(i)
    return groups


def _copied(row: Running) -> Draft:
    assert row.lookup is not None
    return row.lookup.draft(row.ids, None, _no_sample)


def _as_program(room: Room, rows: Sequence[Running], length: int | None, lap: Timer) -> list[Draft]:
    """Every slot of all requests at once."""
    chance = None
    if not rows[0].request.sampling.greedy:
        block = range(length or room.drafter.config.block_size)
        u = [
            [row.draws.uniform(round=len(row.rounds), slot=slot, purpose=Purpose.DRAFT) for row in rows]
            for slot in block
        ]
        chance = Chance([row.request.sampling for row in rows], torch.tensor(u, dtype=torch.float64))
    drafted = room.draft([row.anchor for row in rows], [row.table for row in rows], length, chance)
    probs = [None] * len(rows) if drafted.p_KRV is None else drafted.p_KRV.transpose(0, 1)
    support = None if chance is None else room.drafter.support
    drawn = [None] * len(rows) if drafted.drawn is None else drafted.drawn
    drafts = _drafts(drafted.ids, probs, support, drafted.confidence, drafted.peaks, drawn)
    lap("draft")
    return drafts


def _slot_by_slot(room: Room, rows: Sequence[Running], length: int | None, lap: Timer) -> list[Draft]:
    """A slot of all requests at a time, each drawn before the next one's logits are asked for."""
    drafter = room.drafter
    drafting = room.begin([row.anchor for row in rows], [row.table for row in rows], length)
    lap("draft, parallel")
    chain_RK = torch.tensor([[row.anchor] * (drafting.slots + 1) for row in rows], device=drafter.device)
    probs, sure = [], []
    for slot in range(drafting.slots):
        logits_RV = drafting.logits(chain_RK[:, slot])
        index_R, p_RV = _drawn(logits_RV, rows, slot, drafter.support)
        chain_RK[:, slot + 1] = index_R if drafter.support is None else drafter.support[index_R]
        probs.append(p_RV)
        sure.append(peaks(logits_RV))
    drawn = [p_RV for p_RV in probs if p_RV is not None]
    p_RKV = torch.stack(drawn, dim=1) if drawn else [None] * len(rows)
    peaks_RK = torch.stack(sure, dim=1)
    confidence_RK = drafting.confidence(chain_RK[:, :-1], peaks_RK)
    said = confidence_RK.tolist(), peaks_RK.tolist()
    drafts = _drafts(chain_RK[:, 1:].tolist(), p_RKV, drafter.support, *said, [None] * len(rows))
    lap("draft, sequential")
    return drafts


def _drawn(
    logits_RV: Tensor, rows: Sequence[Running], slot: int, support: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``sample``; some token or other in rows that are no numbers, which say so themselves (``peaks``)."""
    try:
        return sample(logits_RV, rows, slot, Purpose.DRAFT, support)
    except ArithmeticError:
        sound_R1 = logits_RV.amax(dim=-1, keepdim=True).isfinite()
        if bool(sound_R1.all()):
            raise
        return sample(logits_RV.where(sound_R1, 0.0), rows, slot, Purpose.DRAFT, support)


def _drafts(
    ids: Iterable[list[int]],
    probs: Iterable[Tensor | None],
    support: Tensor | None,
    confidence: Iterable[list[float]],
    peaks: Iterable[list[float]],
    drawn: Iterable[list[float] | None],
) -> list[Draft]:
    """One for each request, up to its first slot that is broken."""
    drafts = []
    for tokens, p_KV, said, sure, p in zip(ids, probs, confidence, peaks, drawn, strict=True):
        draft = Draft(tokens, p_KV, support, said, sure, drawn=p)
        broken = (slot for slot, both in enumerate(zip(said, sure, strict=True)) if not isfinite(sum(both)))
        drafts.append(draft.sound(next(broken, len(tokens))))
    return drafts


def _mend(room: Room | None, rows: Sequence[Running]) -> None:
    """Say that drafts were broken, and leave nothing of these in the cache: masked, too, NaN may reach others."""
    assert room is not None
    room.cache.mend([*{block for row in rows for block in row.table.blocks}])
    warnings.warn(
        "a draft came to NaN or infinity: the drafter's weights are broken, or the features that it reads; answers stay"
        " exact, and are not sped up by such drafts",
        stacklevel=2,
    )


def _no_sample(slot: int, logits_V: Tensor, support: Tensor | None) -> tuple[int, Tensor]:
    raise AssertionError("a copy draws nothing")
