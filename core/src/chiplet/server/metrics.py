"""Metrics: what `/metrics` shows to Prometheus.

Latencies and counts of requests are observed here as they happen. Everything that the engine
counts is read from its latest statistics when somebody asks; totals go on counting over restarts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chiplet.scheduler.stats import SchedulerStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN_BUCKETS_S = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.4, 0.6),
    *(1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 40.0, 80.0),
)
TOKEN_BUCKETS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
ANSWER_BUCKETS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)

ENGINE_TOTALS = {
    "total_steps": ("chiplet_steps", "Steps that the engine has run."),
    "total_prompt_tokens": ("chiplet_prompt_tokens", "Prompt tokens of admitted requests."),
    "total_cached_tokens": (
        "chiplet_cached_prompt_tokens",
        "Prompt tokens that the prefix cache held.",
    ),
    "total_computed_prompt_tokens": (
        "chiplet_computed_prompt_tokens",
        "Prompt tokens that were computed.",
    ),
    "total_output_tokens": ("chiplet_output_tokens", "Tokens generated."),
    "total_retractions": (
        "chiplet_retractions",
        "Running requests put back to waiting because pages ran out.",
    ),
    "total_evicted_pages": ("chiplet_evicted_pages", "Cached pages given up for new ones."),
}
"""Fields of the engine's statistics shown as counters (with the suffix `_total`)."""

ENGINE_GAUGES = {
    "num_running": ("chiplet_requests_running", "Answers being computed now."),
    "num_waiting": ("chiplet_requests_waiting", "Answers waiting for a place."),
    "page_size": ("chiplet_page_size_tokens", "Tokens in one page of the KV cache."),
}
"""Fields of the engine's statistics shown as they are."""


@dataclass(slots=True, eq=False)
class EngineStatsCollector(Collector):
    """Shows the engine's latest statistics; totals add up over restarts."""

    _latest: SchedulerStats | None = None
    _past_totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENGINE_TOTALS, 0))

    def update(self, stats: SchedulerStats) -> None:
        """Take newer statistics of the same engine."""
        self._latest = stats

    def forget_engine(self) -> None:
        """The engine is gone: keep its totals, drop the rest."""
        for name in ENGINE_TOTALS:
            self._past_totals[name] = self._total(name)
        self._latest = None

    def collect(self) -> Iterable[Metric]:
        """Metrics at this moment."""
        for name, (metric, text) in ENGINE_TOTALS.items():
            yield CounterMetricFamily(metric, text, value=self._total(name))
        hit_ratio = self._total("total_cached_tokens") / max(self._total("total_prompt_tokens"), 1)
        yield GaugeMetricFamily(
            "chiplet_prefix_hit_ratio",
            "Share of all prompt tokens so far that the prefix cache held.",
            value=hit_ratio,
        )
        if self._latest is not None:
            yield from _gauges(self._latest)

    def _total(self, name: str) -> int:
        now = 0 if self._latest is None else getattr(self._latest, name)
        return self._past_totals[name] + now


def _gauges(stats: SchedulerStats) -> Iterable[Metric]:
    for name, (metric, text) in ENGINE_GAUGES.items():
        yield GaugeMetricFamily(metric, text, value=getattr(stats, name))
    num_used = stats.num_total_pages - stats.num_free_pages - stats.num_cached_pages
    pages = GaugeMetricFamily(
        "chiplet_kv_pages",
        "Pages of the KV cache: free, cached (unused, kept for others to share) and used.",
        labels=["state"],
    )
    pages.add_metric(["free"], stats.num_free_pages)
    pages.add_metric(["cached"], stats.num_cached_pages)
    pages.add_metric(["used"], num_used)
    yield pages
    yield GaugeMetricFamily(
        "chiplet_kv_page_usage_ratio",
        "Share of the KV cache's pages that running requests hold.",
        value=num_used / max(stats.num_total_pages, 1),
    )


class Metrics:
    """All metrics of one server.

    Attributes:
        http_requests: HTTP requests by path and status.
        answers: ended answers by finish reason.
        first_token_s: from a request's arrival to its first token.
        inter_token_s: between two tokens of an answer.
        answer_s: from a request's arrival to an answer's end.
        engine_restarts: how often the engine was started again.
        demotions: implementations that failed in a step and are done without.
        engine: what the engine counts.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.engine = EngineStatsCollector()
        self._registry.register(self.engine)
        self.http_requests = Counter(
            "chiplet_http_requests",
            "HTTP requests answered, by path and status.",
            ["path", "status"],
            registry=self._registry,
        )
        self.answers = Counter(
            "chiplet_answers",
            "Answers that ended, by finish reason: stop, length, abort or error.",
            ["finish_reason"],
            registry=self._registry,
        )
        self.first_token_s = self._histogram(
            "chiplet_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            FIRST_TOKEN_BUCKETS_S,
        )
        self.inter_token_s = self._histogram(
            "chiplet_inter_token_latency_seconds",
            "Between two tokens of one answer.",
            TOKEN_BUCKETS_S,
        )
        self.answer_s = self._histogram(
            "chiplet_answer_latency_seconds",
            "From a request's arrival to the end of an answer.",
            ANSWER_BUCKETS_S,
        )
        self.engine_restarts = Counter(
            "chiplet_engine_restarts",
            "How often the engine was started again after it died or hung.",
            registry=self._registry,
        )
        self.demotions = Counter(
            "chiplet_demotions",
            "Implementations that failed in a step and are done without.",
            registry=self._registry,
        )

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self._registry)
