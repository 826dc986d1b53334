"""Metrics summed on the device, to be fetched once for many updates."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from treadle.types import Alarm, Mean, Metrics


class Totals(NamedTuple):
    """How the metrics of an algorithm are summed: for `K` metrics, totals and weights `[2, K]`."""

    names: list[str]
    sentences: dict[str, str]
    """Of the metrics that are alarms."""

    @classmethod
    def of(cls, example: Metrics) -> Totals:
        """For metrics like these, or shapes of them."""
        sentences = {name: metric.sentence for name, metric in example.items() if isinstance(metric, Alarm)}
        return cls(sorted(example), sentences)

    def start(self) -> Float[Array, "2 K"]:
        """Of no update."""
        return jnp.zeros((2, len(self.names)))

    def add(self, metrics: Metrics) -> Float[Array, "2 K"]:
        """What the metrics of one update add."""
        means = [_as_mean(metrics[name]) for name in self.names]
        totals = [jnp.where(m.weight > 0, m.total, 0.0) for m in means]
        return jnp.stack([jnp.stack(totals), jnp.stack([m.weight for m in means])])

    def metrics(self, totals: Float[np.ndarray, "2 K"]) -> Metrics:
        """The metrics over all updates that were added, `[1]` each."""

        def metric(name: str, total: np.ndarray, weight: np.ndarray) -> Alarm | Mean:
            return Alarm(total > 0, self.sentences[name]) if name in self.sentences else Mean(total, weight)

        return {name: metric(name, *totals[:, i, None]) for i, name in enumerate(self.names)}


def _as_mean(metric: Any) -> Mean:
    if isinstance(metric, Mean):
        return metric
    value = metric.raised if isinstance(metric, Alarm) else metric
    return Mean(jnp.asarray(value, jnp.float32), jnp.ones(()))
