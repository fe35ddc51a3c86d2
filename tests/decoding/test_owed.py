"""Context rows that wait until somebody drafts from them: the same drafts to the bit, and none made in vain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dspark.decoding import proposer
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.planners import Apart
from dspark.decoding.request import Request, Running
from dspark.drafters import owed
from dspark.drafters.blocks import DrafterBlocks
from dspark.drafters.drafter import Drafter
from dspark.drafters.owed import OwedRows
from dspark.drafters.pairs import ChainRoom
from dspark.nn.blocks import BlockTable
from dspark.speculation.acceptance import Source
from dspark.speculation.loop import Draft
from dspark.speculation.planner.single import WHOLE
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from tiny import tiny_chain, tiny_drafter, tiny_target

SHARED = [1, *range(3, 15)]
PROMPTS = [[1, 5, 9, 13], [*SHARED, 7], [1, 4, 4, 8, 16, 32, 3, 6, 12], [*SHARED, 9], [1, 20, 21], [*SHARED, 7, 5]]
SAMPLINGS = [Sampling(), Sampling(1.0), Sampling(0.8, top_k=12)]
KINDS = pytest.mark.parametrize("kind", ["dspark", "eagle3", "mtp"])
ROOMY, TIGHT = Limits(6, 640, block=8), Limits(6, 110, block=2)


def pair(kind: str, packed: bool = True) -> tuple[Target, Drafter]:
    target = tiny_target(sharpness=2.0)
    drafter: Drafter = tiny_drafter(target) if kind == "dspark" else tiny_chain(target, kind)
    if packed:
        drafter.pack()
    return target, drafter


class Seldom(Apart):
    """Every so many steps all draft, or as few of them as share a remainder."""

    def __init__(self, every: int, among: int = 1) -> None:
        super().__init__(WHOLE, WHOLE)
        self._every, self._among, self._step = every, among, 0

    def begin(self, rows: Sequence[Running]) -> None:
        self._step += 1

    def wanted(self, row: Running, source: Source) -> bool:
        return self._step % self._every == 0 and (row.number + self._step) % self._among == 0


class Seen:
    """Every draft that comes about, and how many context rows are made."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.drafts: list[Draft] = []
        self.made = 0
        drafts_of = proposer._drafts

        def noted(*about: Any) -> list[Draft]:
            found = drafts_of(*about)
            self.drafts += found
            return found

        patch.setattr(proposer, "_drafts", noted)
        for kind in (DrafterBlocks, ChainRoom):
            patch.setattr(kind, "take", self._counted(kind.take))

    def _counted(self, take: Callable[..., None]) -> Callable[..., None]:
        def counted(room: OwedRows, features_TF: Tensor, *about: Tensor) -> None:
            self.made += len(features_TF)
            take(room, features_TF, *about)

        return counted


def run(kind: str, limits: Limits, planner: Seldom, patch: pytest.MonkeyPatch, tokens: int = 40) -> tuple[Engine, Seen]:
    target, drafter = pair(kind)
    requests = [
        Request(f"{i}", prompt, SAMPLINGS[i % len(SAMPLINGS)], i, tokens, ignore_stop=True)
        for i, prompt in enumerate(PROMPTS)
    ]
    engine = Engine(target, requests, limits, "dspark", drafter, lookup=False, planner=planner)
    with patch.context() as inner:
        seen = Seen(inner)
        assert len(list(engine.run())) == len(PROMPTS)
    return engine, seen


def at_once(patch: pytest.MonkeyPatch) -> None:
    """Nothing waits."""
    extend = OwedRows.extend

    def extended(room: OwedRows, *rows: Any) -> None:
        extend(room, *rows)
        room.settle_all()

    patch.setattr(OwedRows, "extend", extended)


def same(a: Sequence[Draft], b: Sequence[Draft]) -> bool:
    """Of tokens, laws and confidence to the bit."""

    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y if x is None or y is None else torch.equal(x, y)

    said = [[(draft.tokens, draft.confidence, draft.peaks) for draft in drafts] for drafts in (a, b)]
    return said[0] == said[1] and all(equal(x.probs, y.probs) for x, y in zip(a, b, strict=True))


@KINDS
@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "preempted"])
@pytest.mark.parametrize("few", [False, True], ids=["all wait", "few may wait"])
def test_drafts_are_those_of_rows_made_at_once(
    kind: str, limits: Limits, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of requests that share beginnings, are preempted and follow others in their blocks."""
    if few:
        monkeypatch.setattr(owed, "_AT_ONCE", 8)
        monkeypatch.setattr(owed, "_BYTES", 0)
    engine, found = run(kind, limits, Seldom(5, among=2), monkeypatch)
    assert (engine.admission.preemptions > 2) == (limits is TIGHT)
    with monkeypatch.context() as patch:
        at_once(patch)
        _, expected = run(kind, limits, Seldom(5, among=2), monkeypatch)
    assert len(found.drafts) > 10 and same(found.drafts, expected.drafts)
    assert found.made < expected.made, "those of blocks that are let go of are not made"


@KINDS
def test_control_rows_that_are_never_made_draft_otherwise(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = run(kind, ROOMY, Seldom(5), monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(OwedRows, "settle", lambda room, tables: None)
        _, found = run(kind, ROOMY, Seldom(5), monkeypatch)
    assert len(found.drafts) > 10 and not same(found.drafts[:6], expected.drafts[:6])


@KINDS
def test_nobody_who_never_drafts_has_rows_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing waits when all is over and forgotten."""
    engine, seen = run(kind, ROOMY, Seldom(10**6), monkeypatch)
    assert not seen.made
    engine.pool.forget()
    room = engine._drafter
    assert isinstance(room, OwedRows)
    room.settle([])
    assert not room._fresh and not room._waiting
    assert len(room._free) == len(room._features_SF)


@KINDS
def test_who_drafts_has_its_own_rows_made_alone(kind: str) -> None:
    _, drafter = pair(kind)
    room = drafter.new_room(4, 32)
    assert isinstance(room, OwedRows)
    features_TF = torch.randn(60, drafter.config.taps_width, generator=torch.Generator().manual_seed(0))
    at_T = torch.arange(60)
    with torch.inference_mode():
        room.extend(features_TF, at_T % 30, at_T + 2, at_T)
        assert not room._waiting and room.late() == 0.0
        room.draft([5], [BlockTable([0], 28)])
    written = room.cache.both(0).abs().sum(dim=(0, 2)) > 0
    assert written[2:32].all() and not written[32:62].any() and list(room._waiting) == [1]


@KINDS
def test_rows_of_the_last_step_alone_need_no_places(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who drafts in every step has its rows made of what the step left; what waits of others stays where it is."""
    _, drafter = pair(kind)
    rooms = [drafter.new_room(4, 32) for _ in range(2)]
    features_TF, at_T = torch.randn(20, drafter.config.taps_width), torch.arange(20)
    put: list[OwedRows] = []
    placed = OwedRows._placed

    def noted(room: OwedRows, rows_N: Any) -> Any:
        put.append(room)
        return placed(room, rows_N)

    monkeypatch.setattr(OwedRows, "_placed", noted)
    with torch.inference_mode():
        for room, waits in zip(rooms, (False, True), strict=True):
            assert isinstance(room, OwedRows)
            room.extend(features_TF[:2], at_T[:2], at_T[:2] + 64, at_T[:2])
            room.settle([])
            put.clear()
            for first in range(0, 20, 5):
                new = slice(first, first + 5)
                room.extend(features_TF[new], at_T[new], at_T[new], at_T[new])
                if waits and first < 15:
                    room.settle([])  # by somebody else
                else:
                    room.settle([BlockTable([0], 32)])
            assert bool(put) == waits and list(room._waiting) == [2]
            assert (room.late() > 0) == waits
    assert torch.equal(*(room.cache.both(0) for room in rooms)) and rooms[0].cache.both(0)[:, :20].abs().sum() > 0


def test_only_what_waited_for_longer_than_a_step_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    _, drafter = pair("dspark")
    room = drafter.new_room(4, 32)
    assert isinstance(room, OwedRows)
    features_TF = torch.randn(12, drafter.config.taps_width)
    clock = iter(range(100))
    monkeypatch.setattr(owed, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    with torch.inference_mode():
        for first, late in ((0, 0.0), (3, 0.0), (6, 0.5)):
            at_T = torch.arange(first, first + 3)
            if first == 6:  # those of a step before wait as well
                room.extend(features_TF[9:], at_T + 3, at_T + 3)
            room.extend(features_TF[at_T], at_T, at_T)
            room.settle([BlockTable([0], 12)])
            assert room.late() == late and room.late() == 0.0


def test_a_block_that_is_let_go_of_between_two_steps_holds_what_came_last() -> None:
    """Whether it was waiting or had not been put in its place yet."""
    _, drafter = pair("dspark")
    features_TF, at_T = torch.randn(40, drafter.config.taps_width), torch.arange(20)
    with torch.inference_mode():
        expected, *rooms = (drafter.new_room(4, 32) for _ in range(3))
        expected.extend(features_TF[30:], at_T[:10], at_T[:10])
        expected.settle([BlockTable([0], 20)])
        for room, put in zip(rooms, (False, True), strict=True):
            room.extend(features_TF[:20], at_T, at_T)
            if put:
                room.settle([])
            room.extend(features_TF[20:30], at_T[:10], at_T[:10] + 64)
            room.drop(0)
            room.extend(features_TF[30:], at_T[:10], at_T[:10])
            room.settle([BlockTable([0], 20)])
            assert torch.equal(room.cache.both(0)[:, :64], expected.cache.both(0)[:, :64])
            assert expected.cache.both(0)[:, :10].abs().sum() > 0


def test_late_rows_are_no_part_of_what_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a planner would think that drafting is dearer than it will be."""
    told: list[float] = []
    planner = Seldom(5)
    monkeypatch.setattr(planner, "over", lambda rounds, load, seconds: told.append(seconds))
    run("dspark", ROOMY, planner, monkeypatch)
    assert min(told) > 0
    monkeypatch.setattr(OwedRows, "late", lambda room: 1000.0)
    told.clear()
    run("dspark", ROOMY, planner, monkeypatch)
    assert -1000 < min(told) <= max(told) < -900


def test_a_row_that_is_owed_twice_holds_what_came_last() -> None:
    _, drafter = pair("dspark")
    rooms = [drafter.new_room(1, 32) for _ in range(2)]
    first, last = torch.randn(2, 4, drafter.config.taps_width)
    at_T = torch.arange(4)
    with torch.inference_mode():
        rooms[0].extend(first, at_T, at_T)
        for room in rooms:
            room.extend(last, at_T, at_T)
        found, expected = (torch.tensor(room.draft([5], [BlockTable([0], 4)]).peaks) for room in rooms)
    assert torch.equal(found, expected)
