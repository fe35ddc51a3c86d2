"""Attention of single tokens over cached blocks, compiled: a token's result is the same to the bit in any company.

A thread takes one token and one key/value head at a time, with all query heads that share it; tokens of one request
one after the other, so that what they read is still in its cache. Positions come in stretches of 64, counted from the
text's beginning whatever the blocks' size: scores, their exponentials against the largest score so far, the values'
sum. What is kept is rescaled when a larger score comes (online softmax).

Legend: T tokens, H key/value heads, G query heads of each, Q = H * G, D head size, S rows of a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.kept import KINDS, Rows
from dspark.kernels.machine import F32, I64, POINTER, Call, Code, Kernel, Value, can_compile, lanes
from dspark.kernels.numbers import bits, constant, exponential, from_bits, hyperbolic_tangent, largest, total, totals
from dspark.kernels.seen import Seen

_STRETCH = 64
_SLICE = 64  # numbers of a value row that are summed side by side
_SUMS = {8: 8, 16: 16}  # registers of sums at a time, by the numbers that one holds
_TABLE = (
    "blocks",
    "tokens",
    "shares",
    "query",
    "query_token",
    "query_head",
    "keys",
    "values",
    "cache_head",
    "cache_row",
    "size",
    "heads",
    "window",
    "scale",
    "softcap",
    "sinks",
    "out",
)


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
    kernel(*seen.addresses, *table)
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
    """Attention written to ``out_TQD``; before the table belong the ``addresses`` of a step's ``Seen``."""
    _, queries, width = query_TQD.shape
    heads = len(keys_HSD)
    assert query_TQD.stride(2) == keys_HSD.stride(2) == 1 and keys_HSD.stride() == values_HSD.stride()
    return _kernel(queries // heads, width, keys_HSD.dtype), (
        query_TQD.data_ptr(),
        query_TQD.stride(0),
        query_TQD.stride(1),
        keys_HSD.data_ptr(),
        values_HSD.data_ptr(),
        keys_HSD.stride(0),
        keys_HSD.stride(1),
        size,
        heads,
        0 if window is None else window,
        bits(scale),
        bits(softcap or 0.0),
        0 if sinks_Q is None else sinks_Q.data_ptr(),
        out_TQD.data_ptr(),
    )


def can_attend(query_TQD: Tensor, keys_HSD: Tensor, scale: float) -> bool:
    """Whether the kernel does this: fp32 on a CPU over a cache of fp32 or bf16, heads of whole vectors, a scale that
    keeps the order of scores.
    """
    plain = query_TQD.device.type == "cpu" and query_TQD.dtype == torch.float32 and query_TQD.stride(2) == 1
    plain = plain and keys_HSD.dtype in KINDS
    return plain and query_TQD.shape[2] % min(_SUMS) == 0 and scale > 0 and can_compile()


@cache
def _kernel(queries: int, width: int, dtype: torch.dtype) -> Kernel:
    module = ir.Module()
    _Attention(module, queries, width, KINDS[dtype])
    return Kernel(module, "attention")


class _Attention:
    """The function a team of threads runs."""

    def __init__(self, module: ir.Module, queries: int, width: int, kind: Any) -> None:
        self._queries, self._width, self._kind = queries, width, kind
        self._lanes = lanes() // 2 if width % (lanes() // 2) == 0 else min(_SUMS)
        self._vector = ir.VectorType(F32, self._lanes)
        self._code = code = Code(module, "attention", (POINTER,))
        build = code.build
        self._scores = code.room(queries * _STRETCH)
        self._sums = code.room(queries * width)
        self._query = code.room(queries * width)
        self._rows = Rows(kind, width, self._lanes)
        values = [code.load(code.function.args[0], code.number(i), I64) for i in range(len(_TABLE))]
        self._at = at = dict(zip(_TABLE, values, strict=True))
        self._scale, self._softcap = (from_bits(code, at[name]) for name in ("scale", "softcap"))
        self._parts = code.load(code.pointer(at["shares"]), code.number(0), I64)
        first, end = code.share(build.mul(self._parts, at["heads"]))
        code.loop(first, end, 1, [], lambda item, _: self._part(item))
        build.ret_void()

    def _part(self, item: Value) -> list[Value]:
        """A part of the tokens and one key/value head."""
        code, build = self._code, self._code.build
        head, part = build.sdiv(item, self._parts), build.srem(item, self._parts)
        shares = code.pointer(self._at["shares"])
        first, end = (code.load(shares, build.add(part, code.number(i)), I64) for i in (1, 2))
        code.loop(first, end, 1, [], lambda place, _: self._item(place, head))
        return []

    def _item(self, place: Value, head: Value) -> list[Value]:
        """One token and one key/value head."""
        code, build, at = self._code, self._code.build, self._at
        place = build.mul(place, code.number(4))
        tokens = code.pointer(at["tokens"])
        first, position, end, token = (code.load(tokens, build.add(place, code.number(i)), I64) for i in range(4))
        self._blocks = code.at(code.pointer(at["blocks"]), first, I64)
        queries = build.mul(head, code.number(self._queries))
        offset = build.add(build.mul(token, at["query_token"]), build.mul(queries, at["query_head"]))
        self._arrange(code.at(code.pointer(at["query"]), offset, F32))
        cached = build.mul(head, at["cache_head"])
        self._keys, self._values = (code.at(code.pointer(at[name]), cached, self._kind) for name in ("keys", "values"))
        begin = build.sub(build.add(position, code.number(1)), at["window"])
        unlimited = build.icmp_signed("==", at["window"], code.number(0))
        start = build.select(build.or_(unlimited, build.icmp_signed("<", begin, code.number(0))), code.number(0), begin)
        for place in range(0, self._queries * self._width, self._lanes):
            code.store(self._all(0.0), self._sums, code.number(place), F32)
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
            share = code.splat(build.fdiv(ir.Constant(F32, 1.0), kept[2 * query + 1]), self._lanes)
            places = [code.number(place) for place in self._places(query)]
            summed = [code.load(self._sums, place, F32, self._lanes) for place in places]
            for place, own in zip(places, self._rows.in_order(code, summed), strict=True):
                code.store(build.fmul(own, share), out, place, F32)
        return []

    def _arrange(self, source: Value) -> None:
        """A token's queries as rows of keys are read."""
        code = self._code
        for query in range(self._queries):
            own = code.at(source, code.build.mul(self._at["query_head"], code.number(query)), F32)
            parts = [code.load(own, code.number(at), F32, self._lanes) for at in self._places(0)]
            for place, part in zip(self._places(query), self._rows.arranged(code, parts), strict=True):
                code.store(part, self._query, code.number(place), F32)

    def _places(self, query: int) -> range:
        """Where the vectors of a query begin among those of all."""
        return range(query * self._width, (query + 1) * self._width, self._lanes)

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
        for place in range(0, self._queries * _STRETCH, self._lanes):
            code.store(self._all(-1e30), self._scores, code.number(place), F32)
        self._blockwise(first, last, [], self._scored)
        kept = [each for query in range(self._queries) for each in self._softmax(query, *kept[2 * query :][:2])]
        together = max(1, _SUMS[self._lanes] * self._lanes // min(_SLICE, self._width))
        for query in range(0, self._queries, together):
            for place in range(0, self._width, _SLICE):
                self._add_values(range(query, min(query + together, self._queries)), place, first, last)
        return kept

    def _all(self, value: float) -> Value:
        return ir.Constant(self._vector, [value] * self._lanes)

    def _blockwise(
        self,
        first: Value,
        last: Value,
        kept: list[Value],
        body: Callable[[Value, Value, Value, list[Value]], list[Value]],
    ) -> list[Value]:
        """``kept = body(begin, finish, base, kept)`` for the positions from ``first`` to ``last`` in each block, whose
        rows have the numbers ``base`` plus position.
        """
        code, build, at = self._code, self._code.build, self._at

        def block(index: Value, kept: list[Value]) -> list[Value]:
            opens = build.mul(index, at["size"])
            begin = build.select(build.icmp_signed("<", opens, first), first, opens)
            finish = code.least(build.add(opens, at["size"]), last)
            base = build.sub(build.mul(code.load(self._blocks, index, I64), at["size"]), opens)
            return body(begin, finish, base, kept)

        behind = build.sdiv(build.add(last, build.sub(at["size"], code.number(1))), at["size"])
        return code.loop(build.sdiv(first, at["size"]), behind, 1, kept, block)

    def _scored(self, begin: Value, finish: Value, base: Value, _: list[Value]) -> list[Value]:
        """Products of a block's keys with all queries, as many keys at once as a vector has places: their sums are put
        together as each would be by itself.
        """
        code, build, lanes = self._code, self._code.build, self._lanes
        places = range(0, self._queries * self._width, lanes)
        parts = [code.load(self._query, code.number(place), F32, lanes) for place in places]
        queries = list(zip(*[iter(parts)] * (self._width // lanes), strict=True))

        def some(position: Value, count: int) -> list[Value]:
            rows = [build.add(base, build.add(position, code.number(i))) for i in range(count)]
            sums = list(zip(*[self._products(queries, row) for row in rows], strict=True))
            slot = build.and_(position, code.number(_STRETCH - 1))
            for number, own in enumerate(sums):
                place = build.add(slot, code.number(number * _STRETCH))
                code.store(totals(code, own) if count > 1 else total(code, own[0]), self._scores, place, F32)
            return []

        whole = build.and_(build.sub(finish, begin), code.number(-lanes))
        behind = build.add(begin, whole)
        code.loop(begin, behind, lanes, [], lambda position, _: some(position, lanes))
        return code.loop(behind, finish, 1, [], lambda position, _: some(position, 1))

    def _products(self, queries: Sequence[Sequence[Value]], row: Value) -> list[Value]:
        """Each query's parts times a key's, yet to be summed up."""
        code = self._code
        key = self._rows.read(code, self._row(self._keys, row), range(0, self._width, self._lanes))
        sums = []
        for parts in queries:
            summed = self._all(0.0)
            for part, number in zip(parts, key, strict=True):
                summed = code.fma(part, number, summed)
            sums.append(summed)
        return sums

    def _row(self, cached: Value, row: Value) -> Value:
        """Where a row of keys or values begins."""
        return self._code.at(cached, self._code.build.mul(row, self._at["cache_row"]), self._kind)

    def _softmax(self, query: int, before: Value, mass: Value) -> tuple[Value, Value]:
        """Scores of a stretch become exponentials, and what is kept is rescaled; the new largest score and mass."""
        code, build = self._code, self._code.build
        lanes = self._lanes
        places = [code.number(query * _STRETCH + place) for place in range(0, _STRETCH, lanes)]
        scale = code.splat(self._scale, lanes)
        scores = [build.fmul(code.load(self._scores, place, F32, lanes), scale) for place in places]
        scores = self._capped(scores)
        peak = scores[0]
        for score in scores[1:]:
            peak = largest(code, peak, score)
        found = largest(code, peak)
        most = build.select(build.fcmp_ordered(">", found, before), found, before)
        shrunk = exponential(code, code.splat(build.fsub(before, most), lanes))
        added = self._all(0.0)
        for place, score in zip(places, scores, strict=True):
            weight = exponential(code, build.fsub(score, code.splat(most, lanes)))
            code.store(weight, self._scores, place, F32)
            added = build.fadd(added, weight)
        for place in self._places(query):
            summed = code.load(self._sums, code.number(place), F32, lanes)
            code.store(build.fmul(summed, shrunk), self._sums, code.number(place), F32)
        factor = build.extract_element(shrunk, ir.Constant(ir.IntType(32), 0))
        return most, build.fadd(build.fmul(mass, factor), total(code, added))

    def _capped(self, scores: list[Value]) -> list[Value]:
        """``softcap * tanh(score / softcap)`` where there is a cap; what is nobody's stays far below."""
        code, build = self._code, self._code.build
        given = build.fcmp_ordered("!=", self._softcap, ir.Constant(F32, 0.0))
        cap = code.splat(self._softcap, self._lanes)
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
            phi = build.phi(self._vector)
            phi.add_incoming(bent, bent_end)
            phi.add_incoming(plain, plain_end)
            merged.append(phi)
        return merged

    def _add_values(self, queries: range, place: int, first: Value, last: Value) -> None:
        """Add the stretch's values, weighted, to a slice of the sums of some queries."""
        code, build, lanes = self._code, self._code.build, self._lanes
        places = range(place, min(place + _SLICE, self._width), lanes)

        def add(base: Value, position: Value, sums: list[Value]) -> list[Value]:
            slot = build.and_(position, code.number(_STRETCH - 1))
            rows = self._rows.read(code, self._row(self._values, build.add(base, position)), places)
            weights = (code.load(self._scores, build.add(slot, code.number(q * _STRETCH)), F32) for q in queries)
            pairs = ((code.splat(weight, lanes), row) for weight in weights for row in rows)
            return [code.fma(*pair, summed) for pair, summed in zip(pairs, sums, strict=True)]

        def block(begin: Value, finish: Value, base: Value, sums: list[Value]) -> list[Value]:
            return code.loop(begin, finish, 1, sums, lambda position, sums: add(base, position, sums))

        slots = [code.number(query * self._width + at) for query in queries for at in places]
        sums = self._blockwise(first, last, [code.load(self._sums, slot, F32, lanes) for slot in slots], block)
        for slot, summed in zip(slots, sums, strict=True):
            code.store(summed, self._sums, slot, F32)
