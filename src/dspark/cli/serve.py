"""`dspark serve`: the OpenAI-compatible server."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.cli.options import BUNDLED
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.cli.pair import Pair
    from dspark.decoding.engine import Limits
    from dspark.decoding.named import Speculation
    from dspark.decoding.planners import Adaptive
    from dspark.serving.service import Service
    from dspark.targets.model import Target

_MODEL, _DECODING, _NETWORK, _BOUNDS = "Model", "Decoding", "Network", "Bounds"
_API_KEY = "DSPARK_API_KEY"
_CACHE_SHARE = 0.25  # of memory
_ANY_BLOCK = 64  # drafts, of a drafter that is not known yet
_CONTEXT = 8192  # positions of a slot's part of the cache, where the target has more


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


TargetOption = Annotated[str, _option(_MODEL, "--target", help="A folder, a hub id, a .gguf file or a bundled name.")]
DrafterOption = Annotated[str, _option(_MODEL, "--drafter", help="A folder, a hub id or a bundled name.")]
NameOption = Annotated[
    str | None, _option(_MODEL, "--name", help="What clients call the model.", show_default="the target's name")
]
DtypeOption = Annotated[
    str, _option(_MODEL, "--dtype", help="auto, bfloat16, float32; on a CPU also float16, int16, int8 (see generate).")
]
DeviceOption = Annotated[str, _option(_MODEL, "--device", help="auto, cpu, cuda or cuda:N.")]
ModeOption = Annotated[
    str,
    _option(
        _DECODING,
        "--mode",
        help="off, fixedK (K drafts), ngram, adaptive, delayed (planned two steps ahead). Requests may choose off or"
        " fixed themselves, unless it is off.",
    ),
]
CostsOption = Annotated[
    Path | None,
    _option(
        _DECODING,
        "--costs",
        metavar="FILE",
        help="What steps cost here, for adaptive (`dspark profile --out FILE`).",
        show_default="measured at the start",
    ),
]
SlotsOption = Annotated[int, _option(_DECODING, "--slots", min=1, help="Requests under way at once.")]
CacheOption = Annotated[
    int | None,
    _option(
        _DECODING,
        "--cache-tokens",
        min=1,
        help="Positions of the cache, prompts and answers of all.",
        show_default="as many as slots may need, in a quarter of the memory",
    ),
]
HostOption = Annotated[str, _option(_NETWORK, "--host", help="Address to listen at; 0.0.0.0 is every one.")]
PortOption = Annotated[int, _option(_NETWORK, "--port", min=0, max=65535, help="0 takes one that is free.")]
HostsOption = Annotated[
    list[str] | None,
    _option(
        _NETWORK,
        "--allowed-host",
        metavar="NAME",
        help="A name that clients may ask this server by (a proxy's), besides this machine's own. Repeatable.",
        show_default="any, if --host opens it",
    ),
]
KeyOption = Annotated[
    str | None,
    _option(_NETWORK, "--api-key", envvar=_API_KEY, help="What clients must send.", show_default="none needed"),
]
AccessOption = Annotated[bool, _option(_NETWORK, "--access-log", help="Log every request: path and status.")]
GraceOption = Annotated[
    float, _option(_NETWORK, "--grace", min=0, help="When stopped: seconds for answers that are under way.")
]
WaitingOption = Annotated[int, _option(_BOUNDS, "--max-waiting", min=0, help="Requests that wait; more get 429.")]
SecondsOption = Annotated[float, _option(_BOUNDS, "--timeout", min=0.001, help="Seconds of a request, waiting too.")]
BodyOption = Annotated[int, _option(_BOUNDS, "--max-body", min=1024, help="Bytes of a request's body.")]
PromptOption = Annotated[
    int | None, _option(_BOUNDS, "--max-prompt", min=1, help="Tokens of a prompt.", show_default="the context")
]
TokensOption = Annotated[
    int | None, _option(_BOUNDS, "--max-tokens", min=1, help="Tokens of an answer.", show_default="the context")
]
AnswersOption = Annotated[int, _option(_BOUNDS, "--max-n", min=1, help="Answers to one request.")]


def serve(
    target: TargetOption = BUNDLED,
    drafter: DrafterOption = BUNDLED,
    name: NameOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    mode: ModeOption = "adaptive",
    costs: CostsOption = None,
    slots: SlotsOption = 16,
    cache_tokens: CacheOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    allowed_host: HostsOption = None,
    api_key: KeyOption = None,
    access_log: AccessOption = False,
    grace: GraceOption = 10.0,
    max_waiting: WaitingOption = 128,
    timeout: SecondsOption = 600.0,
    max_body: BodyOption = 2**20,
    max_prompt: PromptOption = None,
    max_tokens: TokensOption = None,
    max_n: AnswersOption = 16,
) -> None:
    """Serve a model over OpenAI's API, with speculative decoding; a playground is at /.

    Listens on this machine alone unless --host says otherwise, and stops at Ctrl-C or SIGTERM. What steps cost is
    measured first (mode adaptive, a minute or less; --costs spares it).
    """
    from dspark.decoding.named import Speculation
    from dspark.foundation.garbage import what_is_loaded_stays
    from dspark.serving.guards import hosts_of
    from dspark.serving.listening import listen, run
    from dspark.serving.service import Bounds, Service

    _logging(access_log)
    bounds = Bounds(max_body, max_prompt, max_tokens, max_n, max_waiting, timeout)
    Speculation.named(mode, _ANY_BLOCK)  # refuses a mode that is none before anything is loaded
    with listen(host, port) as listener:
        started = time.perf_counter()
        pair, speculation, adaptive = _prepared(target, drafter, dtype, device, mode, slots, costs)
        limits = _limits(pair.target, slots, cache_tokens)
        drafting = pair.decoder.drafter
        service = Service.of(
            pair.target, drafting, speculation, adaptive, limits, bounds, model=name, key=api_key or None
        )
        service.hosts = hosts_of(host, allowed_host)
        _say(service, pair, limits, adaptive, time.perf_counter() - started, host)
        with what_is_loaded_stays():
            run(service, listener, grace, access_log)


def _prepared(
    target: str, drafter: str, dtype: str, device: str, mode: str, slots: int, costs: Path | None
) -> tuple[Pair, Speculation, Adaptive | None]:
    """The models that the mode needs, and how it plans; UserError where they do not go together."""
    from dspark.cli.bench import adaptive_of
    from dspark.cli.pair import Pair, load_drafting, load_pair
    from dspark.decoding.named import NGRAM, OFF, Speculation
    from dspark.decoding.single import Decoder

    scheduled = Speculation.named(mode, _ANY_BLOCK).scheduled
    if costs is not None and not scheduled:
        raise UserError(f"--costs is for modes adaptive and delayed, and --mode is {mode}; leave it out")
    print(f"loading   {target}; 'listening' says when it may be asked", flush=True)
    if mode in (OFF, NGRAM):
        return load_pair(target, None, dtype, device), Speculation.named(mode, None), None
    if not scheduled:
        pair = Pair(Decoder(*load_drafting(target, drafter, dtype, device)), drafter)
    else:
        pair = load_pair(target, drafter, dtype, device)
    assert pair.decoder.drafter is not None
    config = pair.decoder.drafter.config
    speculation = Speculation.named(mode, config.block_size, config.kind)
    if not scheduled:
        return pair, speculation, None
    return pair, speculation, adaptive_of(pair, slots, None if costs is None else _read(costs))


def _read(path: Path) -> Any:
    """A cost model from its file."""
    import json

    from dspark.speculation.cost import CostModel

    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--costs {path} can't be read ({error}); make it with `dspark profile --out`") from error
    if not isinstance(stored, dict):
        raise UserError(f"--costs {path} holds no cost model; make it with `dspark profile --out`")
    return CostModel.of(stored, str(path))


def _limits(target: Target, slots: int, cache_tokens: int | None) -> Limits:
    """As asked, or as many positions as all slots may need and memory has room for."""
    from dspark.decoding.engine import BLOCK, Limits

    each = min(target.max_positions, _CONTEXT) + BLOCK
    room = int(_memory(target) * _CACHE_SHARE / target.new_cache(1, 1).bytes)
    return Limits(slots, cache_tokens or max(each, min(slots * each, room)))


def _memory(target: Target) -> int:
    """Bytes that this process may have, or that are free on its accelerator."""
    import torch

    from dspark.foundation.memory import memory_bytes

    if target.device.type == "cuda":
        return int(torch.cuda.mem_get_info(target.device)[0])
    return memory_bytes()


def _say(service: Service, pair: Pair, limits: Limits, adaptive: Adaptive | None, seconds: float, host: str) -> None:
    """What is served, and what was measured for it."""
    target, bounds = pair.target, service.bounds
    gigabytes = limits.cache_tokens * target.new_cache(1, 1).bytes / 1e9
    lines = [
        ("model", f"{service.model} ({str(target.precision).removeprefix('torch.')}, {target.device})"),
        ("drafter", pair.drafter or "none"),
        ("mode", f"{service.mode.name}; requests may choose {', '.join(service.modes)}"),
        ("sampling", f"{_sampling(target)} where a request says nothing"),
        ("slots", f"{limits.slots} at once, {bounds.waiting} may wait"),
        ("cache", f"{limits.cache_tokens} positions ({gigabytes:.1f} GB when full)"),
        ("key", "needed" if service.key else "none needed"),
        ("ready in", f"{seconds:.0f} s"),
    ]
    if adaptive is not None:
        lines.insert(3, ("costs", _costs(adaptive)))
    for name, said in lines:
        print(f"{name:9} {said}", flush=True)
    if service.key is None and not host.startswith(("127.", "localhost", "::1")):
        print(f"warning   everybody who reaches {host} may ask: no --api-key was given", flush=True)


def _sampling(target: Target) -> str:
    """As its makers recommend."""
    own = target.recommended
    if own.greedy:
        return "greedy"
    said = {"top_k": own.top_k, "top_p": own.top_p if own.top_p < 1 else 0, "min_p": own.min_p}
    return f"temperature {own.temperature:g}" + "".join(f", {name} {value:g}" for name, value in said.items() if value)


def _costs(adaptive: Adaptive) -> str:
    """What a step takes for a few numbers of requests, by the model that adaptive decoding plans by."""
    from dspark.speculation.cost import Load

    counts = (1, 4, 16)
    took = [1000 * adaptive.costs.seconds(Load(count, count, 256 * count, 256 * count)) for count in counts]
    return "a step of " + ", ".join(f"{n}: {ms:.1f} ms" for n, ms in zip(counts, took, strict=True)) + " (requests)"


def _logging(access_log: bool) -> None:
    """Our own lines and the server's, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    for logger, level in (("dspark.serving", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logging.getLogger(logger).handlers = [handler]
        logging.getLogger(logger).setLevel(level)
    if access_log:
        logging.getLogger("uvicorn.access").handlers = [handler]
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
