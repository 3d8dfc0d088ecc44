"""What a diagnosis says: figures for tables and trackers, what they are means of, and series for plots."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..metrics import paired_bootstrap


_BINS = 40


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


class Measure:
    """A diagnosis of text encoders that trainers call as an evaluator: `(text_encoder) -> {metric: value}`."""

    def __call__(self, text_encoder=None) -> dict[str, float]:
        """The metrics of an encoder, the retriever's own by default."""
        return dict(self.measure(text_encoder).metrics)

    def measure(self, text_encoder=None) -> Diagnosis:
        """
        Measures an encoder.

        Args:
            text_encoder (*optional*): The encoder; the retriever's own by default.

        Returns:
            [`Diagnosis`]
        """
        raise NotImplementedError


def cosine_histograms(cosines: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """
    Histograms from -1 to 1, for plots.

    Args:
        cosines (`Mapping[str, torch.Tensor]`): By name, `(N,)`.

    Returns:
        `dict`: `edges`, and by name `counts`.
    """
    # A cosine of 1 may come out as a little more, and would be in no bin.
    counts = {
        name: torch.histc(values.clamp(-1, 1), _BINS, min=-1, max=1).int().tolist() for name, values in cosines.items()
    }
    return {"edges": torch.linspace(-1, 1, _BINS + 1).tolist(), "counts": counts}
