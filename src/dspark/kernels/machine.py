"""Loops that PyTorch has no kernel for: LLVM IR compiled for this very CPU and run by PyTorch's own threads.

A kernel is one function of a table of 64-bit numbers (sizes and addresses); every thread of a team runs it and asks
for its own number. The team is that of the OpenMP library PyTorch has loaded, so that no two pools of threads compete.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import torch
from llvmlite import ir

from dspark.foundation.artifacts import write_atomic
from dspark.foundation.cache import cache_dir

F64, F32, F16 = ir.DoubleType(), ir.FloatType(), ir.HalfType()
I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
Value = Any  # llvmlite's values are not typed
_TEAM = ("omp_get_thread_num", "omp_get_num_threads")
_NUMBER = 8  # bytes of a table's
# Of what threads share: a part in 4 of each share is left to whoever has time, in pieces of a part in 32, or of two.
_LEFT, _WIDEST, _NARROWEST = 4, 32, 2
_FEW = 3  # rows that are not worth it
_LINE = 64  # bytes that come from memory together
_BARRIER = "GOMP_barrier"
_PAUSE_SOFT = 1  # OpenMP 5.0: what is let go may come back
# Fused products and half precision as instructions; without them LLVM would call functions that need not be there.
_NEEDED = {"x86_64": ("avx2", "fma", "f16c"), "AMD64": ("avx2", "fma", "f16c"), "aarch64": (), "arm64": ()}


class Code:
    """Instructions appended to one function. Integers are 64-bit, numbers are vectors of fp32."""

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[Any]) -> None:
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
        self.module = module
        self.build = ir.IRBuilder(self.function.append_basic_block())

    def number(self, value: int) -> Value:
        """A constant."""
        return ir.Constant(I64, value)

    def pointer(self, address: Value) -> Value:
        """A number as an address."""
        return self.build.inttoptr(address, POINTER)

    def room(self, count: int) -> Value:
        """Address of ``count`` fp32 numbers of this thread's own, gone when the function returns."""
        place = self.build.alloca(ir.ArrayType(F32, count))
        place.align = 64
        return self.pointer(self.build.ptrtoint(place, I64))  # llvmlite gives it a type that no store accepts

    def at(self, pointer: Value, index: Value, kind: Any) -> Value:
        """Address of element ``index`` of type ``kind``."""
        return self.build.gep(pointer, [index], source_etype=kind)

    def load(self, pointer: Value, index: Value, kind: Any, count: int = 1) -> Value:
        """``count`` elements from ``index`` on, as a vector; one of them as it is."""
        element = self.at(pointer, index, kind)
        loaded = self.build.load(element, typ=kind if count == 1 else ir.VectorType(kind, count))
        loaded.align = 1
        return loaded

    def store(self, value: Value, pointer: Value, index: Value, kind: Any) -> None:
        """Write ``value`` from element ``index`` on."""
        self.build.store(value, self.at(pointer, index, kind)).align = 1

    def prefetch(self, pointer: Value, size: int) -> None:
        """Ask for ``size`` bytes that will be read later, to the second cache."""
        name = "llvm.prefetch.p0"
        kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
        known = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        hints = [ir.Constant(I32, each) for each in (0, 2, 1)]  # a reading, of data, wanted there
        for line in range(0, size, _LINE):
            self.build.call(known, [self.at(pointer, self.number(line), I8), *hints])

    def splat(self, value: Value, count: int) -> Value:
        """A vector of ``count`` times ``value``."""
        nothing = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
        first = self.build.insert_element(nothing, value, ir.Constant(I32, 0))
        return self.build.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, count), [0] * count))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c``, rounded once."""
        kind = a.type
        name = f"llvm.fma.v{kind.count}f32"
        known = self.module.globals.get(name)
        return self.build.call(known or ir.Function(self.module, ir.FunctionType(kind, [kind] * 3), name), [a, b, c])

    def call(self, code: Code, arguments: Sequence[Value]) -> None:
        """Run another function of the module."""
        self.build.call(code.function, arguments)

    def least(self, a: Value, b: Value) -> Value:
        """The smaller of two integers."""
        return self.build.select(self.build.icmp_signed("<", a, b), a, b)

    def most(self, a: Value, b: Value) -> Value:
        """The larger of two integers."""
        return self.build.select(self.build.icmp_signed(">", a, b), a, b)

    def loop(
        self,
        start: Value,
        stop: Value,
        step: Value | int,
        carried: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
    ) -> list[Value]:
        """``for i in range(start, stop, step): carried = body(i, carried)``; returns what was carried last."""
        build, entry = self.build, self.build.block
        inside, after = self.function.append_basic_block(), self.function.append_basic_block()
        build.cbranch(build.icmp_signed("<", start, stop), inside, after)
        build.position_at_end(inside)
        index = build.phi(I64)
        values = [build.phi(value.type) for value in carried]
        results = list(body(index, values))
        following = build.add(index, self.number(step) if isinstance(step, int) else step)
        last = build.block
        build.cbranch(build.icmp_signed("<", following, stop), inside, after)
        build.position_at_end(after)
        for phi, first, then in zip([index, *values], [start, *carried], [following, *results], strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(then, last)
        left = []
        for first, then in zip(carried, results, strict=True):
            phi = build.phi(first.type)
            phi.add_incoming(first, entry)
            phi.add_incoming(then, last)
            left.append(phi)
        return left

    def choose(self, value: Value, cases: Sequence[Callable[[], object]]) -> None:
        """Run case number ``value``."""
        build, blocks = self.build, [self.function.append_basic_block() for _ in cases]
        after = self.function.append_basic_block()
        switch = build.switch(value, blocks[-1])
        for index, (block, case) in enumerate(zip(blocks, cases, strict=True)):
            switch.add_case(self.number(index), block)
            build.position_at_end(block)
            case()
            build.branch(after)
        build.position_at_end(after)

    def team(self) -> tuple[Value, Value]:
        """The number of the thread that asks, and of all threads."""
        names = (self.module.globals.get(name) for name in _TEAM)
        functions = [
            known or ir.Function(self.module, ir.FunctionType(I32, []), name)
            for known, name in zip(names, _TEAM, strict=True)
        ]
        number, count = (self.build.sext(self.build.call(each, []), I64) for each in functions)
        return number, count

    def barrier(self) -> None:
        """No thread of the team goes on before all have come here."""
        known = self.module.globals.get(_BARRIER)
        self.build.call(known or ir.Function(self.module, ir.FunctionType(ir.VoidType(), []), _BARRIER), [])

    def share(self, total: Value) -> tuple[Value, Value]:
        """The first of this thread's share of ``total`` things, and the one behind its last."""
        number, count = self.team()
        build = self.build
        ends = (build.sdiv(build.mul(total, each), count) for each in (number, build.add(number, self.number(1))))
        first, end = ends
        return first, end

    def shared(self, total: Value, rows: Value, body: Callable[[Value, Value], object]) -> None:
        """``body(first, end)`` until ``total`` things are done: most of its share a thread does at once, what is left
        of all shares goes by pieces to whoever has time. A thread may be held up, by whatever else runs here, and all
        wait for the last. Once in a kernel: pieces that are taken are counted before its table.
        """
        build, (number, threads) = self.build, self.team()
        share = build.sdiv(total, threads)
        piece = self.most(build.sdiv(share, self.number(_WIDEST)), self.number(_NARROWEST))
        pieces = build.sdiv(share, build.mul(piece, self.number(_LEFT)))  # of each share
        pieces = build.select(build.icmp_signed("<", rows, self.number(_FEW)), self.number(0), pieces)
        left = build.mul(pieces, piece)

        def end_of(thread: Value) -> Value:
            return build.sdiv(build.mul(total, build.add(thread, self.number(1))), threads)

        before, own = build.block, self.function.append_basic_block()
        begin, stop = build.sdiv(build.mul(total, number), threads), build.sub(end_of(number), left)
        build.branch(own)
        build.position_at_end(own)
        first, end = build.phi(I64), build.phi(I64)
        body(first, end)
        anything, after = self.function.append_basic_block(), self.function.append_basic_block()
        build.cbranch(build.icmp_signed(">", pieces, self.number(0)), anything, after)
        build.position_at_end(anything)
        counter = self.at(self.function.args[0], self.number(-1), I64)
        taken = build.atomic_rmw("add", counter, self.number(1), "monotonic")
        more = self.function.append_basic_block()
        build.cbranch(build.icmp_signed("<", taken, build.mul(pieces, threads)), more, after)
        build.position_at_end(more)
        opens = build.sub(end_of(build.sdiv(taken, pieces)), left)
        following = build.add(opens, build.mul(build.srem(taken, pieces), piece))
        for phi, at_first, then in ((first, begin, following), (end, stop, build.add(following, piece))):
            phi.add_incoming(at_first, before)
            phi.add_incoming(then, more)
        build.branch(own)
        build.position_at_end(after)


class Kernel:
    """A compiled function ``void f(int64 *table)`` that a whole team of threads runs at once.

    Machine code is kept in the user's cache folder under a hash of all that it depends on.
    """

    def __init__(self, module: ir.Module, name: str) -> None:
        self._run = _openmp().GOMP_parallel
        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        text = str(module)
        versions = (llvmlite.__version__, *map(str, llvm.llvm_version_info), cpu, features)
        kept = cache_dir() / "kernels" / hashlib.sha256("\n".join((*versions, text)).encode()).hexdigest()
        machine = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3)
        parsed = llvm.parse_assembly(text)
        known = _kept(kept)
        if known is None:
            parsed.verify()
            passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
            passes.getModulePassManager().run(parsed, passes)
        self._engine = llvm.create_mcjit_compiler(parsed, machine)  # owns the code
        self._engine.set_object_cache(lambda _, code: _keep(kept, code), lambda _: known)
        self._engine.finalize_object()
        self.address = self._engine.get_function_address(name)
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)

    def __call__(self, *table: int) -> None:
        """Run it with as many threads as PyTorch uses; returns when all are done."""
        numbers = (ctypes.c_int64 * (1 + len(table)))(0, *table)
        self._run(self.address, ctypes.addressof(numbers) + _NUMBER, torch.get_num_threads(), 0)

    def alone(self, *table: int) -> None:
        """Run it with the calling thread only."""
        numbers = (ctypes.c_int64 * (1 + len(table)))(0, *table)
        self._alone(ctypes.addressof(numbers) + _NUMBER)


Call = tuple[Kernel, tuple[int, ...]]


class Program:
    """Calls of kernels one after the other by one team: no thread begins a call before all have done the last.

    What the calls read and write must outlive the program.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        lengths = [1 + len(table) for _, table in calls]
        self.table = torch.tensor([number for _, table in calls for number in (0, *table)])
        """All numbers of all calls, in a row; what is changed here is what the next run sees."""
        self.starts = [*accumulate(lengths, initial=1)]
        """Where each call's numbers begin, behind the count of its pieces that are taken (``Code.shared``)."""
        base = self.table.data_ptr()
        pairs = [
            (kernel.address, base + _NUMBER * start) for (kernel, _), start in zip(calls, self.starts, strict=False)
        ]
        self._pairs = torch.tensor(pairs)
        self._kernels = [kernel for kernel, _ in calls]

    def run(self, first: int = 0, end: int | None = None) -> None:
        """Run calls ``first`` to ``end`` (to the last by default)."""
        end = len(self._kernels) if end is None else end
        assert 0 <= first <= end <= len(self._kernels), (first, end, len(self._kernels))
        _runner()(self._pairs.data_ptr() + first * self._pairs.stride(0) * _NUMBER, end - first)


_UNITS = 64  # scratch is begun for so many: growing voids every program
_WHOLE = 16  # and is for whole tiles of rows


class Rooms:
    """Scratch that the programs of one owner share, one program at a time: each uses the beginning of every room."""

    def __init__(self) -> None:
        self._units = 0
        self._kept: dict[tuple[str, int, torch.dtype], torch.Tensor] = {}

    def too_small(self, units: int) -> bool:
        """Whether ``units`` do not fit; then new rooms are begun, for twice as many as before, the old are void."""
        if units <= self._units:
            return False
        self._units = -(-max(units, 2 * self._units, _UNITS) // _WHOLE) * _WHOLE
        self._kept.clear()
        return True

    def room(self, name: str, width: int, units: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``units * width`` numbers, flat."""
        key = (name, width, dtype)
        if key not in self._kept:
            self._kept[key] = torch.zeros(self._units * width, dtype=dtype)
        return self._kept[key][: units * width]

    def fixed(self, scratch: torch.Tensor | None) -> torch.Tensor | None:
        """One room of this size and kind, whatever the units."""
        return None if scratch is None else self._kept.setdefault(("fixed", scratch.numel(), scratch.dtype), scratch)


@cache
def _runner() -> Kernel:
    module = ir.Module()
    code = Code(module, "program", (POINTER,))
    build = code.build
    kernel = ir.FunctionType(ir.VoidType(), [POINTER]).as_pointer()
    pairs, count = (code.load(code.function.args[0], code.number(i), I64) for i in range(2))

    def call(index: Value, _: list[Value]) -> list[Value]:
        place = build.mul(index, code.number(2))
        function, table = (code.load(code.pointer(pairs), build.add(place, code.number(i)), I64) for i in range(2))
        build.call(build.inttoptr(function, kernel), [code.pointer(table)])
        code.barrier()
        with build.if_then(build.icmp_signed("==", code.team()[0], code.number(0))):
            code.store(code.number(0), code.pointer(table), code.number(-1), I64)  # nothing is taken for the next run
        return []

    code.loop(code.number(0), count, 1, [], call)
    build.ret_void()
    return Kernel(module, "program")


def _kept(path: Path) -> bytes | None:
    """The machine code in a file of ``_keep``; None where it is not there or not whole."""
    try:
        found = path.read_bytes()
    except OSError:
        return None
    return found[32:] if hashlib.sha256(found[32:]).digest() == found[:32] else None


def _keep(path: Path, code: bytes) -> None:
    """Keep machine code behind its own hash; where the folder can't be written to, it is compiled every time."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(hashlib.sha256(code).digest() + code)

    with suppress(OSError):
        write_atomic(path, write)


@cache
def _openmp() -> Any:
    """GNU's OpenMP library as PyTorch ships it, else the system's; OSError where there is none."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    home = Path(torch.__file__).parent
    shipped = sorted(str(path) for path in (*home.glob("lib/libgomp*"), *home.parent.glob("torch.libs/libgomp*")))
    library = ctypes.CDLL([*shipped, "libgomp.so.1"][0])
    for name in (*_TEAM, _BARRIER):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


def dismiss_team() -> None:
    """End the threads that have run kernels for the calling one; they come again when it next asks for some.

    Once the teams of a process are more threads than there are CPUs, GNU's OpenMP lets whoever waits for the others
    sleep at once in place of looking again, in every team and for good; a step waits hundreds of times. So a thread
    that has loaded a model and now leaves the work to another one dismisses its team.
    """
    with suppress(OSError, AttributeError):
        _openmp().omp_pause_resource_all(_PAUSE_SOFT)


@cache
def can_compile() -> bool:
    """Whether kernels run here: a CPU with the instructions they need, and an OpenMP library to run them with."""
    needed = _NEEDED.get(platform.machine())
    if needed is None or not all(llvm.get_host_cpu_features().get(each, False) for each in needed):
        return False
    try:
        return hasattr(_openmp(), "GOMP_parallel")
    except (OSError, AttributeError):
        return False


@cache
def lanes() -> int:
    """Numbers a vector of these kernels holds: two registers' worth, so that two sums run side by side."""
    return 32 if llvm.get_host_cpu_features().get("avx512f", False) else 16
