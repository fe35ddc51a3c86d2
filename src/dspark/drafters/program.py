"""Whole drafts as one program: the token found in a slot is the next slot's previous token.

For the vanilla Markov head. A draft of few tokens takes little longer than its weights take to be read, so nothing of
it is left to Python.

Legend: R requests, K slots of a block, T = K * R rows (slot by slot), d hidden size, r Markov rank, V_d draft
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dspark.drafters.heads import MarkovHead, peaks_of_mass
from dspark.kernels.attention import Seen
from dspark.kernels.law import invert_call, law_call, law_scratch, law_shape, mass_call
from dspark.kernels.machine import Call, Rooms
from dspark.kernels.rows import can_row, follow_call, norm_call, search_call
from dspark.nn.cache import KVCache
from dspark.nn.packed import PanelLinear
from dspark.nn.shelf import Shelf
from dspark.nn.stack import StackProgram, product_call
from dspark.speculation.draws import check_mass
from dspark.speculation.sampling import Sampling

if TYPE_CHECKING:
    from dspark.drafters.compiled import CompiledBackbone
    from dspark.drafters.dspark import DSparkDrafter


@dataclass(frozen=True)
class Chance:
    """How the tokens of R sampled requests are drawn: their settings, and a uniform number ``[K, R]`` (float64) for
    each of their slots. None of them is greedy, and a program draws all or none (``draws``).
    """

    samplings: Sequence[Sampling]
    u_KR: Tensor


@dataclass(frozen=True)
class Drafted:
    """Ids ``int64 [K, R]`` of the target's vocabulary, what they were drawn from ``[K, R, V_d]`` (None: certain),
    confidence logits ``[K, R]``, and how sure the drafter is of its own likeliest tokens ``[K, R]`` (``heads.peaks``).
    """

    ids_KR: Tensor
    p_KRV: Tensor | None
    confidence_KR: Tensor
    peaks_KR: Tensor


def draws(sampling: Sampling) -> bool:
    """Whether a program draws with such settings."""
    return sampling.top_k == 0 and sampling.min_p == 0


class DraftProgram:
    """Embedding, layers, base logits and chain of a packed drafter (Eq. 4), and its confidence.

    Threads take turns.
    """

    def __init__(self, drafter: DSparkDrafter, backbone: CompiledBackbone) -> None:
        head, bias = drafter.packed_head, drafter.markov_head.markov_w2
        assert isinstance(head, PanelLinear) and isinstance(bias, PanelLinear)
        self.backbone, self.head, self.bias = backbone, head, bias
        self.embedding, self.embedding_scale, self.support = drafter.embedding, drafter.embedding_scale, drafter.support
        self.previous = drafter.markov_head.markov_w1.weight.detach()
        self.confidence = drafter.read_confidence
        self._shelf: Shelf[_Program] = Shelf()

    def run(
        self,
        anchors: Sequence[int],
        slots: int,
        places: tuple[Tensor, Tensor, Seen],
        cache: KVCache,
        chance: Chance | None = None,
    ) -> Drafted:
        """A block for each anchor, its tokens the likeliest (temperature 0) or drawn.

        ``places``: positions and rows ``[T]`` of the blocks' slots and what they see, slot by slot; the blocks' own
        rows of ``cache`` are written. ArithmeticError where logits hold NaN.
        """
        positions_T, rows_T, seen = places
        rotation = self.backbone.rotations.at(positions_T)
        with self._shelf.lock:
            prepared = self.prepare(len(anchors), slots, cache, chance is not None)
            masks = [self.backbone.config.mask_token_id] * (len(positions_T) - len(anchors))
            prepared.tokens_T.copy_(torch.tensor([*anchors, *masks]))
            if chance is not None:
                prepared.load(chance)
            prepared.stack.aim((rotation,), rows_T, seen)
            prepared.stack.program.run()
            p_KRV = prepared.found()
            ids_KR, peaks_KR = prepared.ids_KR.clone(), peaks_of_mass(prepared.sums_KR)
            confidence_KR = peaks_KR
            if self.confidence is not None:
                confidence_KR = self.confidence.whole(prepared.confidence_KR, ids_KR[:-1])
        return Drafted(ids_KR[1:], p_KRV, confidence_KR, peaks_KR)

    def prepare(self, requests: int, slots: int, cache: KVCache, sampled: bool = False) -> _Program:
        """The program for so many requests and slots."""
        sizes = (requests, slots, int(sampled))
        return self._shelf.get(cache, requests * slots, sizes, lambda rooms: _Program(self, sizes, cache, rooms))


class _Program:
    """The program for R requests and K slots, sampled or not, with what it reads and leaves."""

    def __init__(self, draft: DraftProgram, sizes: tuple[int, int, int], cache: KVCache, rooms: Rooms) -> None:
        requests, slots, self._sampled = sizes
        rows, width = requests * slots, draft.head.panels.padded

        def room(name: str, width: int, count: int = rows, dtype: torch.dtype = torch.float32) -> Tensor:
            return rooms.room(name, width, count, dtype).view(count, width)

        self.tokens_T = rooms.room("tokens", 1, rows, torch.int64)
        self._found_KR = rooms.room("found", 1, rows, torch.int64).view(slots, requests)
        """Indices into the support, -1 for none."""
        self.ids_KR = rooms.room("ids", 2, rows, torch.int64)[: rows + requests].view(slots + 1, requests)
        """The anchors, then ids of the target's vocabulary."""
        self.sums_KR = rooms.room("sums", 1, rows).view(slots, requests)
        """Of ``exp(logits - max)``."""
        if self._sampled:
            self._shape_R3 = room("shapes", 3, requests, torch.float64)
            self._u_KR, self._mass_KR = (
                rooms.room(name, 1, rows, torch.float64).view(slots, requests) for name in ("uniforms", "masses")
            )
            self._p_KRV = room("p", width).view(slots, requests, width)
            self._chunks = rooms.room("chunks", law_scratch(1, width).numel(), requests, torch.int64)
        self._logits_RV, base_TV = room("logits", width, requests), room("base", width)
        looked_T = rooms.room("looked up", 1, rows, torch.int64)
        norm, confidence = draft.backbone.norm, draft.confidence
        hidden_Td, embedded_Rr = (
            room("hidden", draft.head.in_features),
            room("embedded", draft.bias.in_features, requests),
        )
        calls: list[Call] = []
        if confidence is not None:
            assert isinstance(confidence.product, PanelLinear)
            confidence_TN = room("confidence", confidence.product.panels.padded)
            self.confidence_KR = confidence_TN[:, 0].view(slots, requests)
            calls.append(product_call(confidence.product, hidden_Td, confidence_TN, rooms))
        calls.append(product_call(draft.head, hidden_Td, base_TV, rooms))
        for slot in range(slots):
            base_RV = base_TV[slot * requests : (slot + 1) * requests]
            found_R, support = (self._found_KR[slot - 1], draft.support) if slot else (self.tokens_T[:requests], None)
            calls += [
                follow_call(found_R, support, self.ids_KR[slot], draft.previous, embedded_Rr),
                product_call(draft.bias, embedded_Rr, self._logits_RV, rooms, base_RV),
                mass_call(self._logits_RV, self.sums_KR[slot]),
                *self._find(slot),
            ]
        calls.append(follow_call(self._found_KR[-1], draft.support, self.ids_KR[-1], draft.previous, embedded_Rr))

        def ends(x_Td: Tensor) -> tuple[Sequence[Call], Sequence[Call]]:
            embed = follow_call(self.tokens_T, None, looked_T, draft.embedding, x_Td, draft.embedding_scale)
            return [embed], [norm_call(x_Td, hidden_Td, norm.weight, norm.eps), *calls]

        self.stack = StackProgram(draft.backbone.stack.layers, rows, cache, rooms, ends)

    def _find(self, slot: int) -> list[Call]:
        """A slot's tokens from its logits."""
        if not self._sampled:
            return [search_call(self._logits_RV, self._found_KR[slot])]
        p_RV = self._p_KRV[slot]
        return [
            law_call(self._logits_RV, p_RV, self._shape_R3, self._chunks),
            invert_call(p_RV, self._u_KR[slot], self._found_KR[slot], self._mass_KR[slot]),
        ]

    def load(self, chance: Chance) -> None:
        """What the next run draws with."""
        width = self._p_KRV.shape[-1]
        shapes = [law_shape(each.temperature, each.top_p, width) for each in chance.samplings]
        self._shape_R3.copy_(torch.tensor(shapes, dtype=torch.float64))
        self._u_KR.copy_(chance.u_KR)

    def found(self) -> Tensor | None:
        """What a run has drawn from; ArithmeticError where it has found nothing."""
        if self._sampled:
            check_mass(self._mass_KR)
            return self._p_KRV.clone()
        if bool((self._found_KR < 0).any()):
            raise ArithmeticError("a draft's logits hold NaN: the drafter's weights or its features are broken")
        return None


def draft_program(drafter: DSparkDrafter) -> DraftProgram | None:
    """Drafts of a packed drafter as a program, where its parts are of the forms that one knows."""
    if drafter.compiled is None or type(drafter.markov_head) is not MarkovHead or drafter.config.markov_top_k:
        return None
    head, bias, previous = drafter.packed_head, drafter.markov_head.markov_w2, drafter.markov_head.markov_w1.weight
    if not (isinstance(head, PanelLinear) and isinstance(bias, PanelLinear)):
        return None
    whole = head.panels.padded == head.out_features == bias.out_features and head.out_features % 32 == 0
    tables = all(can_row(table, table.shape[1]) for table in (previous, drafter.embedding))
    return DraftProgram(drafter, drafter.compiled) if whole and tables else None
