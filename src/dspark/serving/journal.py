"""A line in the log every ten seconds, while there is work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from dspark.serving.metrics import Metrics

log = logging.getLogger("dspark.serving")

EVERY = 10.0


@asynccontextmanager
async def journal(metrics: Metrics, every: float = EVERY) -> AsyncIterator[None]:
    """Write it while the body runs."""
    task = asyncio.ensure_future(_write(metrics, every))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _write(metrics: Metrics, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        if metrics.state()["tok_s"] or metrics.state()["running"]:
            log.info(line(metrics))


def line(metrics: Metrics) -> str:
    """What the engine does: figures only, nothing of what is asked."""
    state = metrics.state()
    said = f"{state['running']} running, {state['waiting']} waiting, {state['tok_s']:.0f} tokens/s"
    said += f", cache {100 * state['kv_cache_usage']:.0f} %"
    if state["tau"] is not None:
        said += f", tau {state['tau']:.2f}, {state['verify_length']:.2f} drafts verified a round"
    if state["acceptance"] is not None:
        said += f", {100 * state['acceptance']:.0f} % of them accepted"
    return said + (", resting" if state["resting"] else "")
