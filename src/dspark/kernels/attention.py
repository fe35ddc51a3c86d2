"""Attention of single tokens over cached blocks, compiled: a token's result is the same to the bit in any company.

A thread takes one token and one key/value head at a time, with all query heads that share it. Positions come in
stretches of 64, counted from the text's beginning whatever the blocks' size: scores, their exponentials against the
largest score so far, the values' sum. What is kept is rescaled when a larger score comes (online softmax).

Legend: T tokens, H key/value heads, G query heads of each, Q = H * G, D head size, S rows of a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.machine import F32, I64, POINTER, Call, Code, Kernel, Value, can_compile
from dspark.kernels.numbers import bits, constant, exponential, from_bits, hyperbolic_tangent, largest, total

_LANES = 8
_STRETCH = 64
_SLICE = 64  # numbers of a value row that are summed side by side: eight registers
_TABLE = (
    "blocks",
    "tokens",
    "query",
    "query_token",
    "query_head",
    "keys",
    "values",
    "cache_head",
    "cache_row",
    "size",
    "count",
    "heads",
    "window",
    "scale",
    "softcap",
    "sinks",
    "out",
)
_VECTOR = ir.VectorType(F32, _LANES)


class Seen:
    """Which positions each token of a step sees, as the kernel reads it."""

    def __init__(
        self, blocks: Sequence[Sequence[int]], firsts: Sequence[int], counts: Sequence[int], causal: bool
    ) -> None:
        """``counts[i]`` tokens at positions from ``firsts[i]`` on, in the blocks ``blocks[i]``."""
        flat: list[int] = []
        tokens: list[tuple[int, int, int]] = []
        for own, first, count in zip(blocks, firsts, counts, strict=True):
            end = first + count
            tokens += [(len(flat), at, at + 1 if causal else end) for at in range(first, end)]
            flat += own
        self.blocks, self.tokens_T3 = torch.tensor(flat), torch.tensor(tokens)

    def slot_by_slot(self, slots: int) -> Seen:
        """The same where every request has ``slots`` tokens, the first of all requests before the second of any."""
        turned = copy(self)
        turned.tokens_T3 = self.tokens_T3.view(-1, slots, 3).transpose(0, 1).flatten(0, 1).contiguous()
        return turned


def attend_compiled(
    query_TQD: Tensor,
    keys_HSD: Tensor,
    values_HSD: Tensor,
    seen: Seen,
    size: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_Q: Tensor | None,
) -> Tensor:
    """Attention ``[T, Q, D]`` in fp32 over blocks of ``size`` rows; the rest as ``nn.block_attention.attend`` has it.

    D is a multiple of 8.
    """
    out_TQD = query_TQD.new_empty(query_TQD.shape)
    sinks = None if sinks_Q is None else sinks_Q.float().contiguous()
    kernel, table = attention_call(query_TQD, keys_HSD, values_HSD, size, scale, window, softcap, sinks, out_TQD)
    kernel(seen.blocks.data_ptr(), seen.tokens_T3.data_ptr(), *table)
    return out_TQD


def attention_call(
    query_TQD: Tensor,
    keys_HSD: Tensor,
    values_HSD: Tensor,
    size: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_Q: Tensor | None,
    out_TQD: Tensor,
) -> Call:
    """Attention written to ``out_TQD``; before the table belong the addresses of a step's ``Seen``."""
    tokens, queries, width = query_TQD.shape
    heads = len(keys_HSD)
    assert query_TQD.stride(2) == keys_HSD.stride(2) == 1 and keys_HSD.stride() == values_HSD.stride()
    return _kernel(queries // heads, width), (
        query_TQD.data_ptr(),
        query_TQD.stride(0),
        query_TQD.stride(1),
        keys_HSD.data_ptr(),
        values_HSD.data_ptr(),
        keys_HSD.stride(0),
        keys_HSD.stride(1),
        size,
        tokens,
        heads,
        0 if window is None else window,
        bits(scale),
        bits(softcap or 0.0),
        0 if sinks_Q is None else sinks_Q.data_ptr(),
        out_TQD.data_ptr(),
    )


def can_attend(query_TQD: Tensor, scale: float) -> bool:
    """Whether the kernel does this: fp32 on a CPU, heads of whole vectors, a scale that keeps the order of scores."""
    plain = query_TQD.device.type == "cpu" and query_TQD.dtype == torch.float32 and query_TQD.stride(2) == 1
    return plain and query_TQD.shape[2] % _LANES == 0 and scale > 0 and can_compile()


@cache
def _kernel(queries: int, width: int) -> Kernel:
    module = ir.Module()
    _Attention(module, queries, width)
    return Kernel(module, "attention")


class _Attention:
    """The function a team of threads runs."""

    def __init__(self, module: ir.Module, queries: int, width: int) -> None:
        self._queries, self._width = queries, width
        self._code = code = Code(module, "attention", (POINTER,))
        build = code.build
        self._scores = code.room(queries * _STRETCH)
        self._sums = code.room(queries * width)
        values = [code.load(code.function.args[0], code.number(i), I64) for i in range(len(_TABLE))]
        self._at = at = dict(zip(_TABLE, values, strict=True))
        self._scale, self._softcap = (from_bits(code, at[name]) for name in ("scale", "softcap"))
        number, threads = code.team()
        items = build.mul(at["count"], at["heads"])
        code.loop(number, items, threads, [], lambda item, _: self._item(item))
        build.ret_void()

    def _item(self, item: Value) -> list[Value]:
        """One token and one key/value head."""
        code, build, at = self._code, self._code.build, self._at
        head, token = build.sdiv(item, at["count"]), build.srem(item, at["count"])
        place = build.mul(token, code.number(3))
        tokens = code.pointer(at["tokens"])
        first, position, end = (code.load(tokens, build.add(place, code.number(i)), I64) for i in range(3))
        self._blocks = code.at(code.pointer(at["blocks"]), first, I64)
        queries = build.mul(head, code.number(self._queries))
        offset = build.add(build.mul(token, at["query_token"]), build.mul(queries, at["query_head"]))
        self._query = code.at(code.pointer(at["query"]), offset, F32)
        cached = build.mul(head, at["cache_head"])
        self._keys, self._values = (code.at(code.pointer(at[name]), cached, F32) for name in ("keys", "values"))
        begin = build.sub(build.add(position, code.number(1)), at["window"])
        unlimited = build.icmp_signed("==", at["window"], code.number(0))
        start = build.select(build.or_(unlimited, build.icmp_signed("<", begin, code.number(0))), code.number(0), begin)
        for place in range(0, self._queries * self._width, _LANES):
            code.store(ir.Constant(_VECTOR, [0.0] * _LANES), self._sums, code.number(place), F32)
        stretches = build.sdiv(build.add(end, code.number(_STRETCH - 1)), code.number(_STRETCH))
        kept = code.loop(
            build.sdiv(start, code.number(_STRETCH)),
            stretches,
            1,
            self._before_all(queries),
            lambda number, kept: self._stretch(number, start, end, kept),
        )
        row = build.add(build.mul(token, build.mul(at["heads"], code.number(self._queries))), queries)
        out = code.at(code.pointer(at["out"]), build.mul(row, code.number(self._width)), F32)
        for query in range(self._queries):
            share = code.splat(build.fdiv(ir.Constant(F32, 1.0), kept[2 * query + 1]), _LANES)
            for place in range(query * self._width, (query + 1) * self._width, _LANES):
                summed = code.load(self._sums, code.number(place), F32, _LANES)
                code.store(build.fmul(summed, share), out, code.number(place), F32)
        return []

    def _before_all(self, queries: Value) -> list[Value]:
        """The largest score and the mass of each query head before the first position: those of its sink, if any."""
        code, build = self._code, self._code.build
        given = build.icmp_signed("!=", self._at["sinks"], code.number(0))
        kept = []
        for query in range(self._queries):
            safe = build.select(given, code.at(code.pointer(self._at["sinks"]), queries, F32), self._sums)
            sink = code.load(safe, code.number(query), F32)
            kept += [build.select(given, sink, ir.Constant(F32, -1e30))]
            kept += [build.select(given, ir.Constant(F32, 1.0), ir.Constant(F32, 0.0))]
        return kept

    def _stretch(self, number: Value, start: Value, end: Value, kept: list[Value]) -> list[Value]:
        """The positions of one stretch between ``start`` and ``end``."""
        code, build = self._code, self._code.build
        opens = build.mul(number, code.number(_STRETCH))
        first = build.select(build.icmp_signed("<", opens, start), start, opens)
        last = code.least(build.add(opens, code.number(_STRETCH)), end)
        for place in range(0, self._queries * _STRETCH, _LANES):
            code.store(ir.Constant(_VECTOR, [-1e30] * _LANES), self._scores, code.number(place), F32)
        self._rows(first, last, [], self._score)
        kept = [each for query in range(self._queries) for each in self._softmax(query, *kept[2 * query :][:2])]
        for query in range(self._queries):
            for place in range(0, self._width, _SLICE):
                self._add_values(query, place, first, last)
        return kept

    def _rows(
        self, first: Value, last: Value, kept: list[Value], body: Callable[[Value, Value, list[Value]], list[Value]]
    ) -> list[Value]:
        """``kept = body(position, offset of its row, kept)`` from ``first`` to ``last``, block by block."""
        code, build, at = self._code, self._code.build, self._at

        def block(index: Value, kept: list[Value]) -> list[Value]:
            opens = build.mul(index, at["size"])
            begin = build.select(build.icmp_signed("<", opens, first), first, opens)
            finish = code.least(build.add(opens, at["size"]), last)
            base = build.sub(build.mul(code.load(self._blocks, index, I64), at["size"]), opens)

            def row(position: Value, kept: list[Value]) -> list[Value]:
                return body(position, build.mul(build.add(base, position), at["cache_row"]), kept)

            return code.loop(begin, finish, 1, kept, row)

        behind = build.sdiv(build.add(last, build.sub(at["size"], code.number(1))), at["size"])
        return code.loop(build.sdiv(first, at["size"]), behind, 1, kept, block)

    def _score(self, position: Value, offset: Value, _: list[Value]) -> list[Value]:
        """Products of one key with all queries."""
        code, build = self._code, self._code.build
        sums = [ir.Constant(_VECTOR, [0.0] * _LANES)] * self._queries
        for place in range(0, self._width, _LANES):
            key = code.load(self._keys, build.add(offset, code.number(place)), F32, _LANES)
            for query in range(self._queries):
                at = build.add(build.mul(self._at["query_head"], code.number(query)), code.number(place))
                sums[query] = code.fma(code.load(self._query, at, F32, _LANES), key, sums[query])
        slot = build.and_(position, code.number(_STRETCH - 1))
        for query in range(self._queries):
            code.store(total(code, sums[query]), self._scores, build.add(slot, code.number(query * _STRETCH)), F32)
        return []

    def _softmax(self, query: int, before: Value, mass: Value) -> tuple[Value, Value]:
        """Scores of a stretch become exponentials, and what is kept is rescaled; the new largest score and mass."""
        code, build = self._code, self._code.build
        places = [code.number(query * _STRETCH + place) for place in range(0, _STRETCH, _LANES)]
        scale = code.splat(self._scale, _LANES)
        scores = [build.fmul(code.load(self._scores, place, F32, _LANES), scale) for place in places]
        scores = self._capped(scores)
        peak = scores[0]
        for score in scores[1:]:
            peak = largest(code, peak, score)
        found = largest(code, peak)
        most = build.select(build.fcmp_ordered(">", found, before), found, before)
        shrunk = exponential(code, code.splat(build.fsub(before, most), _LANES))
        added = ir.Constant(_VECTOR, [0.0] * _LANES)
        for place, score in zip(places, scores, strict=True):
            weight = exponential(code, build.fsub(score, code.splat(most, _LANES)))
            code.store(weight, self._scores, place, F32)
            added = build.fadd(added, weight)
        for place in range(query * self._width, (query + 1) * self._width, _LANES):
            summed = code.load(self._sums, code.number(place), F32, _LANES)
            code.store(build.fmul(summed, shrunk), self._sums, code.number(place), F32)
        factor = build.extract_element(shrunk, ir.Constant(ir.IntType(32), 0))
        return most, build.fadd(build.fmul(mass, factor), total(code, added))

    def _capped(self, scores: list[Value]) -> list[Value]:
        """``softcap * tanh(score / softcap)`` where there is a cap; what is nobody's stays far below."""
        code, build = self._code, self._code.build
        given = build.fcmp_ordered("!=", self._softcap, ir.Constant(F32, 0.0))
        cap = code.splat(self._softcap, _LANES)
        with build.if_else(given) as (then, otherwise):
            with then:
                capped = []
                for score in scores:
                    bent = build.fmul(hyperbolic_tangent(code, build.fdiv(score, cap)), cap)
                    nobody = build.fcmp_ordered("<", score, constant(-1e25, score))
                    capped.append(build.select(nobody, score, bent))
                bent_end = build.block
            with otherwise:
                plain_end = build.block
        merged = []
        for plain, bent in zip(scores, capped, strict=True):
            phi = build.phi(_VECTOR)
            phi.add_incoming(bent, bent_end)
            phi.add_incoming(plain, plain_end)
            merged.append(phi)
        return merged

    def _add_values(self, query: int, place: int, first: Value, last: Value) -> None:
        """Add the stretch's values, weighted, to a slice of the query's sum."""
        code, build = self._code, self._code.build
        places = range(place, min(place + _SLICE, self._width), _LANES)

        def add(position: Value, offset: Value, sums: list[Value]) -> list[Value]:
            slot = build.and_(position, code.number(_STRETCH - 1))
            weight = code.load(self._scores, build.add(slot, code.number(query * _STRETCH)), F32)
            spread = code.splat(weight, _LANES)
            rows = [code.load(self._values, build.add(offset, code.number(at)), F32, _LANES) for at in places]
            return [code.fma(spread, row, summed) for row, summed in zip(rows, sums, strict=True)]

        slots = [code.number(query * self._width + at) for at in places]
        sums = self._rows(first, last, [code.load(self._sums, slot, F32, _LANES) for slot in slots], add)
        for slot, summed in zip(slots, sums, strict=True):
            code.store(summed, self._sums, slot, F32)
