"""How programs choose the tokens of a draft, the likeliest ones or drawn, and what they leave of it.

Legend: R requests, K slots of a block, V_d draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.drafters.heads import Singles, peaks_of_mass
from dspark.kernels.law import invert_call, law_call, law_scratch, law_shape, mass_call
from dspark.kernels.machine import Call
from dspark.kernels.program import Rooms
from dspark.kernels.rows import follow_call, search_call
from dspark.nn.packed import PanelLinear
from dspark.speculation.draws import check_mass
from dspark.speculation.sampling import Sampling


@dataclass(frozen=True)
class Chance:
    """How the tokens of R sampled requests are drawn: their settings, and a uniform number ``[K, R]`` (float64) for
    each of their slots. None of them is greedy, and a program draws all or none (``draws``).
    """

    samplings: Sequence[Sampling]
    u_KR: Tensor


@dataclass(frozen=True)
class Drafted:
    """Ids of the target's vocabulary, what they were drawn from ``[K, R, V_d]`` (None: certain) and their own
    probability there, confidence logits, and how sure the drafter is of its own likeliest tokens (``heads.peaks``), all
    ``[R][K]``.
    """

    ids: list[list[int]]
    p_KRV: Tensor | None
    drawn: list[list[float]] | None
    confidence: list[list[float]]
    peaks: list[list[float]]


@dataclass(frozen=True)
class Chosen:
    """What a run leaves until the next one: ids ``[K + 1, R]``, the anchors first, and the rest of a draft. In numpy,
    where reading a few numbers takes a fraction of what it takes in torch.
    """

    ids_KR: NDArray[np.int64]
    p_KRV: Tensor | None
    drawn_KR: Tensor | None
    peaks_KR: Singles

    def drafted(self, confidence_KR: Singles) -> Drafted:
        """With what is believed of them, to stay."""
        drawn = None if self.drawn_KR is None else self.drawn_KR.T.tolist()
        confidence, peaks = confidence_KR.T.tolist(), self.peaks_KR.T.tolist()
        return Drafted(self.ids_KR[1:].T.tolist(), self.p_KRV, drawn, confidence, peaks)


def draws(sampling: Sampling) -> bool:
    """Whether a program draws with such settings."""
    return sampling.top_k == 0 and sampling.min_p == 0


def can_choose(head: PanelLinear) -> bool:
    """Whether a program chooses by logits of this head: rows of whole vectors."""
    return head.panels.padded == head.out_features and head.out_features % 32 == 0


class Choice:
    """The tokens of R requests and K slots in one program: each follows from its slot's logits and is looked up by the
    next one.
    """

    def __init__(self, sizes: tuple[int, int, int], head: PanelLinear, support: Tensor | None, rooms: Rooms) -> None:
        """``sizes``: requests, slots, and whether tokens are drawn."""
        requests, slots, self._sampled = sizes
        rows, width, self._support = requests * slots, head.out_features, support

        def room(name: str, width: int, dtype: torch.dtype, count: int = rows) -> Tensor:
            return rooms.room(name, width, count, dtype)

        self.anchors_R = room("anchors", 1, torch.int64, requests)
        """The tokens before the first slots."""
        self.logits_RV = room("logits", width, torch.float32, requests).view(requests, width)
        """Of the slot that is next."""
        self._found_KR = room("found", 1, torch.int64).view(slots, requests)  # in the support, -1 for none
        self._ids_KR = room("ids", 2, torch.int64)[: rows + requests].view(slots + 1, requests)
        self._sums_KR = room("sums", 1, torch.float32).view(slots, requests)  # of exp(logits - max)
        self._anchors, self._ids, self._sums = (each.numpy() for each in (self.anchors_R, self._ids_KR, self._sums_KR))
        if self._sampled:
            self._shape_R3 = room("shapes", 3, torch.float64, requests).view(requests, 3)
            self._u_KR, self._mass_KR = (
                room(name, 1, torch.float64).view(slots, requests) for name in ("uniforms", "masses")
            )
            self._p_KRV = room("p", width, torch.float32).view(slots, requests, width)
            self._chunks = room("chunks", law_scratch(1, width).numel(), torch.int64, requests)

    def look_up(self, slot: int, table_Vr: Tensor, out_Rr: Tensor, scale: float = 1.0) -> Call:
        """Write the rows of a table, times ``scale``, for the tokens before a slot (K: for the last ones)."""
        found_R, support = (self._found_KR[slot - 1], self._support) if slot else (self.anchors_R, None)
        return follow_call(found_R, support, self._ids_KR[slot], table_Vr, out_Rr, scale)

    def choose(self, slot: int, logits_RV: Tensor | None = None) -> list[Call]:
        """Find a slot's tokens by its logits, those of ``logits_RV`` unless others are given."""
        logits_RV = self.logits_RV if logits_RV is None else logits_RV
        summed = mass_call(logits_RV, self._sums_KR[slot])
        if not self._sampled:
            return [summed, search_call(logits_RV, self._found_KR[slot])]
        p_RV = self._p_KRV[slot]
        return [
            summed,
            law_call(logits_RV, p_RV, self._shape_R3, self._chunks),
            invert_call(p_RV, self._u_KR[slot], self._found_KR[slot], self._mass_KR[slot]),
        ]

    def load(self, anchors: Sequence[int], chance: Chance | None) -> None:
        """What the next run begins and draws with."""
        self._anchors[:] = anchors
        if chance is None:
            return
        width = self._p_KRV.shape[-1]
        shapes = [law_shape(each.temperature, each.top_p, width) for each in chance.samplings]
        self._shape_R3.copy_(torch.tensor(shapes, dtype=torch.float64))
        self._u_KR.copy_(chance.u_KR)

    def chosen(self) -> Chosen:
        """What a run leaves. In a slot whose logits are no numbers it finds some token or other, and the peak is
        NaN.
        """
        p_KRV = drawn_KR = None
        if self._sampled:
            check_mass(self._mass_KR.where(self._sums_KR.isfinite(), 1.0))
            p_KRV, found_KR1 = self._p_KRV.clone(), self._found_KR.clamp(min=0)[..., None]
            drawn_KR = p_KRV.gather(-1, found_KR1)[..., 0]
        return Chosen(self._ids, p_KRV, drawn_KR, peaks_of_mass(self._sums))
