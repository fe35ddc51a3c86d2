"""A demo's record as a run might leave it, made up from round numbers."""

from __future__ import annotations

import pytest
from made_up import TEXTS, pair, showing

from dspark.report.demo import DemoRecord


@pytest.fixture
def record() -> DemoRecord:
    return DemoRecord(
        showings=tuple(showing(name, text, n) for n in range(2) for name, text in TEXTS.items()),
        pairs=(pair("math", 19.8, 33.4, 2.41), pair("code", 20.1, 31.2, 2.17), pair("chat", 19.9, 24.6, 1.71)),
        overall=pair("all", 19.9, 29.3, 2.07, prompts=6),
        step_ms=50.1,
        round_ms=70.2,
        block=7,
        shown_tokens=96,
        repeat_tokens=40,
        repeats=5,
        repeats_asked=5,
        target="smollm2-135m",
        drafter="smollm2-135m",
        dtype="bfloat16",
        machine={"processor": "AMD EPYC 9B14", "cores": "2, 2 threads for PyTorch", "load before": "0.1"},
        date="2026-11-22 05:00+00:00",
        command="dspark demo --seconds 120",
        seconds=117.0,
    )
