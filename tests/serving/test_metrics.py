"""Metrics: vLLM's by their exact names, ours beside them, true figures, and a dashboard that asks for no others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2 as httpx
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

import dspark.serving
from dspark.serving.histogram import Histogram
from dspark.serving.journal import line
from tiny_server import Serve, Served

VLLM = {
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
}
OURS = {
    *("dspark:budget_tokens", "dspark:verify_length", "dspark:tau", "dspark:acceptance_predicted"),
    *("dspark:acceptance_actual", "dspark:calibration_error", "dspark:planner_seconds_total", "dspark:bypass"),
    *("dspark:step_seconds_predicted_total", "dspark:step_seconds_actual_total", "dspark:step_seconds_total"),
    *("dspark:drafted_tokens_total", "dspark:preemptions_total", "dspark:resting_steps_total"),
    *("dspark:probing_steps_total", "dspark:planned_steps_total", "dspark:expected_tokens_total"),
    *("dspark:planned_accepted_tokens_total", "dspark:broken_drafts_total"),
}


def scraped(served: Served) -> dict[str, float]:
    """Sums over all labels by name; every sample must say whose it is."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text):
        for sample in family.samples:
            assert (sample.labels["model_name"], sample.labels["engine"]) == ("tiny", "0"), sample.name
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_the_names_are_exact_and_the_figures_true(serve: Serve) -> None:
    with serve() as served:
        summaries = []
        for mode in ("fixed4", "adaptive", "off"):
            body = {"prompt": f"count {mode}", "max_tokens": 40, "temperature": 0}
            answer = served.post("/v1/completions", body | {"speculative": {"mode": mode, "summary": True}}).json()
            summaries.append(answer["dspark"]["summary"] | answer["usage"])
        found = scraped(served)
        assert set(found) >= VLLM | OURS
        assert summaries[0]["accepted"] > 0
        assert summaries[1]["drafted"] > 0
        for name, key in (
            ("vllm:spec_decode_num_draft_tokens_total", "verified"),
            ("vllm:spec_decode_num_accepted_tokens_total", "accepted"),
            ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "accepted"),
            ("dspark:drafted_tokens_total", "drafted"),
            ("vllm:generation_tokens_total", "completion_tokens"),
            ("vllm:prompt_tokens_total", "prompt_tokens"),
        ):
            assert found[name] == sum(each[key] for each in summaries), name
        rounds = sum(sum(length > 0 for length in each["verify_lengths"]) for each in summaries)
        assert found["vllm:spec_decode_num_drafts_total"] == rounds
        assert found["vllm:request_success_total"] == 3
        assert found["vllm:e2e_request_latency_seconds_count"] == 3
        assert found["vllm:time_to_first_token_seconds_count"] == 3
        tokens = sum(each["completion_tokens"] for each in summaries)
        assert found["vllm:inter_token_latency_seconds_count"] == tokens - 3
        assert found["dspark:planned_steps_total"] == summaries[1]["rounds"]
        assert 0 <= found["dspark:calibration_error"] <= 1
        state = served.state()
        assert state["modes"] == ["off", "fixed1", "fixed2", "fixed3", "fixed4", "adaptive"]
        assert state["tau"] > 1
        assert state["tok_s"] > 0
        assert "tau" in line(served.service.metrics)


def test_a_load_generator_finds_what_was_accepted(serve: Serve) -> None:
    """It sends these fields, adds up all lines whose name holds one of these words, and divides."""
    body = {"model": "tiny", "prompt": "count", "repetition_penalty": 1.0, "max_tokens": 40, "logprobs": None}
    body |= {"temperature": 0.0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    words = ("num_drafts", "num_draft_tokens", "num_accepted_tokens_per_pos", "num_accepted_tokens")
    found = dict.fromkeys(words, 0.0)
    with serve("fixed4") as served:
        assert '"completion_tokens":40' in served.post("/v1/completions", body).text
        for line in httpx.get(f"{served.url}/metrics").text.splitlines():
            name, _, value = line.partition("{")[0], *line.rpartition(" ")[1:]
            if name.startswith("vllm:spec_decode"):
                found[next(word for word in words if word in name)] += float(value)
    drafts, drafted, accepted_at, accepted = (found[word] for word in words)
    assert 0 < accepted == accepted_at < drafted <= 4 * drafts
    assert 1 + accepted + drafts <= 40  # rounds without a draft are none of these


def test_a_histogram_counts_as_prometheus_own_does() -> None:
    bounds, values = (0.1, 0.5, 2.0), (0.05, 0.1, 0.100001, 0.5, 1.0, 2.0, 3.0)
    mine, other = Histogram(bounds), prometheus_client.Histogram("x", "x", registry=None, buckets=bounds)
    for times, value in enumerate(values):
        mine.add(value, times)
        for _ in range(times):
            other.observe(value)
    samples = [each for family in other.collect() for each in family.samples]
    assert mine.buckets() == [(each.labels["le"], each.value) for each in samples if each.name == "x_bucket"]
    assert mine.total == pytest.approx(next(each.value for each in samples if each.name == "x_sum"))


def test_the_dashboard_asks_for_what_there_is(server: Served) -> None:
    server.post("/v1/completions", {"prompt": "x", "max_tokens": 30, "temperature": 0, "speculative": "fixed4"})
    names = set(scraped(server))
    text = (Path(dspark.serving.__file__).parent / "grafana.json").read_text(encoding="utf-8")
    board = json.loads(text)
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"(?:vllm|dspark):\w+", target["expr"])
    }
    assert asked
    assert asked <= names
    assert asked >= {name for name in VLLM if name != "vllm:spec_decode_num_drafts_total"}
