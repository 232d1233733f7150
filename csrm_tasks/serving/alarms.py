"""Alarms: what keeps the service on its last good release until a person looks at it."""

from __future__ import annotations

import logging
from typing import Literal

from csrm_tasks.serving.metrics import Metrics

log = logging.getLogger("csrm")

Kind = Literal["routing", "release", "predecessor", "embeddings", "ubi", "figures"]


class Alarms:
    """At most one text per kind; raising and clearing is logged once and shown as a metric."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._texts: dict[str, str] = {}

    def raise_(self, kind: Kind, error: Exception) -> None:
        """Raise the alarm, or change its text."""
        text = " ".join(str(error).split()) or type(error).__name__
        if self._texts.get(kind) != text:
            log.error("serving: alarm %s: %s", kind, text)
        self._texts = {**self._texts, kind: text}
        self._metrics.alarm.labels(kind).set(1)

    def clear(self, kind: Kind) -> None:
        """End the alarm, where there is one."""
        if kind in self._texts:
            log.warning("serving: alarm %s is over", kind)
            self._texts = {k: v for k, v in self._texts.items() if k != kind}
            self._metrics.alarm.labels(kind).set(0)

    def texts(self) -> dict[str, str]:
        """Return kind → text."""
        return self._texts
