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
NUMBER = 8  # bytes of a table's
# Of what threads share: a part in 4 of each share is left to whoever has time, in pieces of a part in 32, or of two.
_LEFT, _WIDEST, _NARROWEST = 4, 32, 2
_FEW = 4  # rows that are not worth it
_NEIGHBOURS = 4  # whose pieces a thread looks at
LINE = 64  # bytes that come from memory together
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
        for line in range(0, size, LINE):
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
        """``body(first, end)`` until ``total`` things are done. Most of its share a thread does at once and the rest by
        pieces, then those of its neighbours' that these have not come to: a thread may be held up, by whatever else
        runs here, and all wait for the last. What a thread does is nearly always the same in every run, so that it
        finds it in its own caches; cores may have none in common. Once in a kernel (``Claims``).
        """
        build, (number, threads) = self.build, self.team()
        share = build.sdiv(total, threads)
        piece = self.most(build.sdiv(share, self.number(_WIDEST)), self.number(_NARROWEST))
        pieces = build.sdiv(share, build.mul(piece, self.number(_LEFT)))  # of each share
        pieces = build.select(build.icmp_signed("<", rows, self.number(_FEW)), self.number(0), pieces)
        left, before = build.mul(pieces, piece), build.block
        helped = self.least(build.sub(threads, self.number(1)), self.number(_NEIGHBOURS))
        work, claim, take, found, none, after = (self.function.append_basic_block() for _ in range(6))

        def end_of(thread: Value) -> Value:
            return build.sdiv(build.mul(total, build.add(thread, self.number(1))), threads)

        begin, stop = build.sdiv(build.mul(total, number), threads), build.sub(end_of(number), left)
        build.branch(work)
        build.position_at_end(work)
        first, end, away = (build.phi(I64) for _ in range(3))  # how many threads away its owner is
        body(first, end)
        worked = build.block
        build.cbranch(build.icmp_signed(">", pieces, self.number(0)), claim, after)
        build.position_at_end(claim)
        asked = build.phi(I64)
        owner = build.srem(build.add(number, asked), threads)
        claims = self.pointer(self.load(self.function.args[0], self.number(-1), I64))
        counter = self.at(claims, build.mul(owner, self.number(LINE // NUMBER)), I64)
        open_yet = build.icmp_signed("<", build.load_atomic(counter, "monotonic", NUMBER, typ=I64), pieces)
        build.cbranch(open_yet, take, none)
        build.position_at_end(take)
        taken = build.atomic_rmw("add", counter, self.number(1), "monotonic")
        build.cbranch(build.icmp_signed("<", taken, pieces), found, none)
        build.position_at_end(found)
        following = build.add(build.sub(end_of(owner), left), build.mul(taken, piece))
        behind = build.add(following, piece)
        build.branch(work)
        build.position_at_end(none)
        further = build.add(asked, self.number(1))
        build.cbranch(build.icmp_signed("<=", further, helped), claim, after)
        for phi, at_first, then in (first, begin, following), (end, stop, behind), (away, self.number(0), asked):
            phi.add_incoming(at_first, before)
            phi.add_incoming(then, found)
        asked.add_incoming(away, worked)
        asked.add_incoming(further, none)
        build.position_at_end(after)


class Claims:
    """How many pieces of each thread's share are taken (``Code.shared``): a line of memory for each of ``threads``, or
    they would wait for one another's; ``sets`` of them.
    """

    def __init__(self, threads: int, sets: int = 1) -> None:
        self.threads = threads
        self._counts = torch.zeros(sets, threads, LINE // NUMBER, dtype=torch.int64)

    def address(self, which: int = 0) -> int:
        """Of one set; what a kernel finds before its table."""
        return self._counts[which].data_ptr()


class Kernel:
    """A compiled function ``void f(int64 *table)`` that a whole team of threads runs at once.

    Machine code is kept in the user's cache folder under a hash of all that it depends on.
    """

    def __init__(self, module: ir.Module, name: str) -> None:
        self._run = _openmp().GOMP_parallel
        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        text = str(module)
        self._shares = "atomicrmw" in text
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
        threads = torch.get_num_threads()
        claims = Claims(threads) if self._shares else None
        numbers = _numbers(table, claims)
        self._run(self.address, ctypes.addressof(numbers) + NUMBER, threads, 0)

    def alone(self, *table: int) -> None:
        """Run it with the calling thread only."""
        claims = Claims(1) if self._shares else None
        numbers = _numbers(table, claims)
        self._alone(ctypes.addressof(numbers) + NUMBER)


Call = tuple[Kernel, tuple[int, ...]]


def _numbers(table: Sequence[int], claims: Claims | None) -> Any:
    """A kernel's table behind the address of its claims, which must both live until it has run."""
    return (ctypes.c_int64 * (1 + len(table)))(claims.address() if claims else 0, *table)


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
