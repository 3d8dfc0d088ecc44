"""What a diagnosis says: figures for tables and trackers, what they are means of, and series for plots."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..metrics import paired_bootstrap


@dataclass(frozen=True)
class Diagnosis:
    """
    The result of a diagnosis.

    Args:
        name (`str`): Of the diagnosis.
        metrics (`dict[str, float]`): Single figures.
        series (`dict`, *optional*): Lists and numbers that a plot shows; can be written as JSON.
        values (`dict[str, torch.Tensor]`, *optional*): Of metrics that are means over queries, the values of each
            query, `(Q,)`.
    """

    name: str
    metrics: Mapping[str, float]
    series: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Figures and series, to be written as JSON."""
        return {"name": self.name, "metrics": dict(self.metrics), "series": dict(self.series)}

    def change_from(self, before: "Diagnosis", *, seed: int = 0) -> dict[str, dict[str, float]]:
        """
        How far the figures went from those of another encoder on the same queries.

        Args:
            before ([`Diagnosis`]): The same diagnosis of the other encoder.
            seed (`int`, *optional*, defaults to 0): Of the paired bootstrap.

        Returns:
            `dict`: For each metric with `values`: `{"change": ..., "low": ..., "high": ...}`, with the 95 % interval.

        Raises:
            ValueError: They are of other queries, or other diagnoses.
        """
        shapes = [{key: len(rows) for key, rows in one.values.items()} for one in (before, self)]
        if self.name != before.name or shapes[0] != shapes[1]:
            raise ValueError(
                f"`before` must be the same diagnosis of the same queries: `{self.name}` has {shapes[1]} values, "
                f"`{before.name}` {shapes[0]}."
            )
        changes = {}
        for key, rows in self.values.items():
            interval = paired_bootstrap(before.values[key], rows, seed=seed)
            changes[key] = {"change": interval.gain, "low": interval.low, "high": interval.high}
        return changes
