"""Prometheus metrics: vLLM's by their exact names, which its tools and dashboards read, and our own as ``dspark:*``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dspark.decoding.chosen import Chosen
from dspark.decoding.engine import Engine
from dspark.decoding.ledger import Ledger
from dspark.decoding.planners import Together
from dspark.serving.histogram import Histogram
from dspark.serving.lately import Lately, Moment
from dspark.serving.worker import Ended, Progress, Stepped, Ticket

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("model_name", "engine")
# Metric, what it says, key of the sum.
_SUMS = (
    ("vllm:spec_decode_num_drafts", "Rounds whose drafts were verified.", "drafts"),
    ("vllm:spec_decode_num_draft_tokens", "Drafted tokens that were verified.", "verified"),
    ("vllm:spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.", "accepted"),
    ("vllm:prompt_tokens", "Tokens of prompts that were read.", "read"),
    ("vllm:generation_tokens", "Tokens that were written.", "written"),
    ("dspark:drafted_tokens", "Tokens that were drafted, verified or not.", "drafted"),
)
_PER_POSITION = "Drafted tokens that were accepted, by their place in the draft."
_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_WHOLE = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Everything that is counted of one engine, in a registry of its own. Counting is mere adding: the engine waits."""

    def __init__(self, model: str, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.lately = Lately()
        self._engine, self._labels = engine, {"model_name": model, "engine": "0"}
        self.resting = False
        """Whether the guard let nobody draft in the last step that was planned."""
        self._before = Ledger()
        self._sums = Counter[str]()
        self._accepted_at, self._ended = Counter[int](), Counter[str]()
        self._budget = 0
        self._first, self._between, self._whole = Histogram(_FIRST), Histogram(_BETWEEN), Histogram(_WHOLE)
        self.registry.register(_Live(self))

    def heard(self, stepped: Stepped) -> None:
        """Count a step."""
        rounds = [each for each in stepped.rounds if each.index]
        verified, accepted = sum(each.verified for each in rounds), sum(each.accepted for each in rounds)
        tokens, gained = (sum(len(each.tokens) for each in them) for them in (stepped.rounds, rounds))
        own = self._planned_since()
        self.lately.add(Moment(stepped.at, tokens, len(rounds), gained, verified, accepted, *own, stepped.seconds))
        self._sums["drafts"] += sum(each.verified > 0 for each in rounds)
        self._sums["verified"] += verified
        self._sums["accepted"] += accepted
        self._sums["written"] += tokens
        self._sums["drafted"] += sum(each.drafted for each in rounds)
        self._budget = verified
        for each in rounds:
            self._accepted_at.update(range(each.accepted))
        for ticket, event in stepped.news:
            if isinstance(event, Progress):
                self._progress(ticket, event, stepped.at)

    def _planned_since(self) -> tuple[int, int, float]:
        """Drafts of this step that a planner had verified, how many stood, and how many it expected to."""
        ledger, before = self.ledger, self._before
        if ledger is None:
            return 0, 0, 0.0
        if ledger.steps > before.steps:
            self.resting = ledger.resting - before.resting == ledger.steps - before.steps
        self._before = replace(ledger)
        stood = ledger.accepted - before.accepted
        return ledger.verified - before.verified, stood, ledger.expected - before.expected

    def ended(self, ended: Ended) -> None:
        """Count a request that was not answered to its end."""
        self._ended["abort" if ended.reason == "cancelled" else "error"] += 1

    def text(self) -> bytes:
        """As it is scraped."""
        return generate_latest(self.registry)

    @property
    def ledger(self) -> Ledger | None:
        """What the planner of all requests decided; None where there is none."""
        planner = self._engine.planner
        own = planner.own if isinstance(planner, Chosen) else planner
        return own.ledger if isinstance(own, Together) else None

    @property
    def kv_usage(self) -> float:
        """Share of the cache's blocks that somebody holds."""
        pool = self._engine.pool
        return 1 - pool.available / pool.count

    def state(self) -> dict[str, Any]:
        """What people look at."""
        now, running = time.monotonic(), self._engine.admission
        figures = self.lately.figures(now)
        return {
            "running": len(running.running),
            "waiting": len(running.queue),
            "kv_cache_usage": self.kv_usage,
            "tok_s": self.lately.tokens_per_second(now),
            "tau": figures["tau"],
            "verify_length": figures["verify_length"],
            "acceptance": figures["acceptance"],
            "resting": self.resting,
            "step_ms": figures["step_ms"],
        }

    def _progress(self, ticket: Ticket, event: Progress, now: float) -> None:
        tokens = len(event.round.tokens)
        if ticket.last is None:
            self._first.add(now - ticket.asked)
            self._sums["read"] += len(ticket.request.prompt_ids)
        elif tokens:
            self._between.add((now - ticket.last) / tokens, tokens)
        if event.round.finish is not None:
            self._whole.add(now - ticket.asked)
            self._ended[event.round.finish] += 1

    def live(self) -> Iterator[Metric]:
        """What is read when somebody scrapes."""
        engine, figures = self._engine, self.lately.figures(time.monotonic())
        yield self._gauge("vllm:num_requests_running", "Requests under way.", len(engine.admission.running))
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait.", len(engine.admission.queue))
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the cache's blocks that is held.", self.kv_usage)
        yield self._sum("dspark:preemptions", "Requests that had to give way.", engine.admission.preemptions)
        yield self._sum("dspark:broken_drafts", "Drafts cut where they came to NaN or infinity.", engine.broken_drafts)
        for name, said, key in _SUMS:
            yield self._sum(name, said, self._sums[key])
        yield self._gauge("dspark:budget_tokens", "Drafts of the last step.", self._budget)
        for name, said, label, sums in (
            ("dspark:step_seconds", "Where the time of steps went.", "work", engine.laps.seconds),
            ("vllm:request_success", "Requests that are over, by why.", "finished_reason", self._ended),
            ("vllm:spec_decode_num_accepted_tokens_per_pos", _PER_POSITION, "position", self._accepted_at),
        ):
            yield self._labelled(name, said, label, dict(sums))
        for name, said, histogram in (
            ("vllm:time_to_first_token_seconds", "From asking to the first token.", self._first),
            ("vllm:inter_token_latency_seconds", "Between two tokens.", self._between),
            ("vllm:e2e_request_latency_seconds", "From asking to the last token.", self._whole),
        ):
            yield self._histogram(name, said, histogram)
        planning = engine.laps.seconds.get("plan", 0.0)
        yield self._sum("dspark:planner_seconds", "What planning took.", planning)
        for name, said, key in (
            ("dspark:tau", "Tokens a round, lately.", "tau"),
            ("dspark:verify_length", "Drafts verified a round, lately.", "verify_length"),
            ("dspark:acceptance_actual", "Share of verified drafts that stood, lately.", "acceptance"),
        ):
            yield self._gauge(name, said, figures[key])
        if self.ledger is not None:
            yield from self._planned(self.ledger, figures)

    def _planned(self, ledger: Ledger, figures: dict[str, float | None]) -> Iterator[Metric]:
        expected, actual = figures["expected_acceptance"], figures["planned_acceptance"]
        error = None if expected is None or actual is None else abs(expected - actual)
        yield self._gauge("dspark:acceptance_predicted", "Share that was expected to stand, lately.", expected)
        yield self._gauge("dspark:calibration_error", "Between the two, lately.", error)
        yield self._gauge("dspark:bypass", "1 while the guard lets nobody draft.", float(self.resting))
        yield self._sum("dspark:planned_steps", "Steps with rounds.", ledger.steps)
        yield self._sum("dspark:resting_steps", "Of these, where nobody was asked to draft.", ledger.resting)
        yield self._sum("dspark:probing_steps", "Of these, where a few were, to see whether it pays.", ledger.probing)
        yield self._sum("dspark:expected_tokens", "Drafts that were expected to stand.", ledger.expected)
        yield self._sum("dspark:planned_accepted_tokens", "Drafts that stood, of the same rounds.", ledger.accepted)
        yield self._sum("dspark:step_seconds_predicted", "What rounds were foretold to take.", ledger.foretold)
        yield self._sum("dspark:step_seconds_actual", "What they took.", ledger.seconds)

    def _gauge(self, name: str, said: str, value: float | None) -> Metric:
        family = GaugeMetricFamily(name, said, labels=_LABELS)
        family.add_metric(tuple(self._labels.values()), float("nan") if value is None else value)
        return family

    def _labelled(self, name: str, said: str, label: str, sums: Mapping[Any, float]) -> Metric:
        family = CounterMetricFamily(name, said, labels=(*_LABELS, label))
        for value, total in sums.items():
            family.add_metric((*self._labels.values(), str(value)), total)
        return family

    def _histogram(self, name: str, said: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, said, labels=_LABELS)
        family.add_metric(tuple(self._labels.values()), histogram.buckets(), histogram.total)
        return family

    def _sum(self, name: str, said: str, value: float) -> Metric:
        family = CounterMetricFamily(name, said, labels=_LABELS)
        family.add_metric(tuple(self._labels.values()), value)
        return family


class _Live(Collector):
    """What is read at the moment of a scrape, and nowhere counted twice."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.live()
