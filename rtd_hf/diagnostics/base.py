"""What a diagnosis says: figures for tables and trackers, and series for plots, as plain numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Diagnosis:
    """
    The result of a diagnosis.

    Args:
        name (`str`): Of the diagnosis.
        metrics (`dict[str, float]`): Single figures.
        series (`dict`, *optional*): Lists and numbers that a plot shows; can be written as JSON.
    """

    name: str
    metrics: Mapping[str, float]
    series: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it, to be written as JSON."""
        return {"name": self.name, "metrics": dict(self.metrics), "series": dict(self.series)}
