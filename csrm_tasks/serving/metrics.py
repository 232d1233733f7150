"""What Prometheus reads of the service, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one service; ``docs/SERVING.md`` says what each means."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "csrm_requests", "Answered requests.", ("route", "status"), registry=own
        )
        self.seconds = Histogram(
            "csrm_request_seconds", "Time to answer.", ("route",), buckets=SECONDS, registry=own
        )
        self.answers = Counter(
            "csrm_answers", "Scored lists by arm.", ("release", "arm", "outcome"), registry=own
        )
        self.cache = Counter(
            "csrm_query_cache", "Look-ups of query vectors.", ("result",), registry=own
        )
        self.batch = Histogram(
            "csrm_encode_batch_queries", "Queries encoded at once.", buckets=SIZES, registry=own
        )
        self.unknown = Counter(
            "csrm_unknown_products", "Ranked products without a vector.", registry=own
        )
        self.alarm = Gauge(
            "csrm_alarm", "1 while something needs a person.", ("kind",), registry=own
        )
        self.role = Gauge(
            "csrm_release_info", "Loaded releases, their roles and query towers.",
            ("release", "role", "backend"), registry=own,
        )  # fmt: skip
        self.products = Gauge(
            "csrm_embedded_products", "Products with vectors.", ("release",), registry=own
        )
        self.embedded = Gauge(
            "csrm_embeddings_timestamp_seconds", "When the catalogue was last embedded.",
            ("release",), registry=own,
        )  # fmt: skip
        self.dropped = Counter(
            "csrm_shadow_dropped", "Copies that a release in shadow was too slow for.", registry=own
        )
        self.second = Counter(
            "csrm_second_stage", "Searches by what was re-ranked.", ("release", "outcome"),
            registry=own,
        )  # fmt: skip
        self.reranked = Counter(
            "csrm_reranked_products", "Products that the second stage re-ranked.", ("release",),
            registry=own,
        )  # fmt: skip
        self.logged = Counter("csrm_logged", "UBI records written.", ("kind",), registry=own)

    def text(self) -> bytes:
        """Return the exposition text."""
        text: bytes = generate_latest(self._registry)
        return text
