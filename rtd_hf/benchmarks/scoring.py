"""From ranks to figures: values per query, means over groups and aspects, gains with their intervals."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..metrics import Ranks, average_precision_at_k, paired_bootstrap, ranks_of_lists, recall_at_k
from .base import CIRBenchmark


@dataclass(frozen=True)
class CIRResult:
    """What one encoder reached on one benchmark.

    Args:
        per_query (`dict[str, torch.Tensor]`): Per metric one value a query, in percent and in the order of the
            benchmark's queries, whose mean is the metric. Where groups differ in size, the values of the overall
            metric are weighted such that every group counts the same.
        num_tied (`int`): Queries whose target shares its score with another image.
        num_queries (`int`): Queries scored; none is ever left out.
        protocol (`Mapping`, *optional*): The choices the figures depend on, with the sizes and the treatment of ties.
    """

    per_query: Mapping[str, torch.Tensor]
    num_tied: int
    num_queries: int
    protocol: Mapping[str, object] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics in percent, such as `{"shapes_recall@10": 29.5}`."""
        return {name: values.mean().item() for name, values in self.per_query.items()}

    def gain_over(self, before: "CIRResult", *, seed: int = 0) -> dict[str, dict[str, float]]:
        """Gains over an earlier result on the same queries, with paired bootstrap 95 % intervals.

        Returns:
            `dict`: per metric `{"gain": ..., "low": ..., "high": ...}` in percentage points.
        """
        gains = {}
        for name, values in self.per_query.items():
            interval = paired_bootstrap(before.per_query[name], values, seed=seed)
            gains[name] = {"gain": interval.gain, "low": interval.low, "high": interval.high}
        return gains


def score_rankings(
    benchmark: CIRBenchmark,
    rankings: Sequence[Sequence[Hashable]],
    *,
    subset_rankings: Sequence[Sequence[Hashable]] | None = None,
) -> CIRResult:
    """Scores ranked lists, such as those of a submission, as [`CIREvaluator`] scores embeddings.

    Args:
        benchmark ([`CIRBenchmark`]): Queries and metrics.
        rankings (`Sequence[Sequence]`): Per query the ids of the images found, best first. A list should reach to the
            largest cut-off: what it does not hold counts as not found.
        subset_rankings (`Sequence[Sequence]`, *optional*): The same among each query's candidates, for
            `recall_subset@K`; without it the rankings are restricted to the candidates.

    Returns:
        [`CIRResult`] with the figures of the metrics other than `recall_reverse@K`, which lists do not tell.

    Raises:
        ValueError: If there are not as many lists as queries, an id stands twice in a list, or the targets are hidden.
    """
    check_targets_are_known(benchmark)
    wanted = [query.targets for query in benchmark.queries]
    ranks, subset = ranks_of_lists(rankings, wanted), None
    metrics = [metric for metric in benchmark.metrics if not metric.startswith("recall_reverse")]
    if any(metric.startswith("recall_subset") for metric in metrics):
        if subset_rankings is None:
            allowed = [set(query.candidates) for query in benchmark.queries]
            pairs = zip(rankings, allowed, strict=True)
            subset_rankings = [[item for item in ranking if item in among] for ranking, among in pairs]
        subset = ranks_of_lists(subset_rankings, wanted)
    values = values_of_ranks(metrics, {"recall": ranks, "map": ranks, "recall_subset": subset})
    protocol = {**benchmark.protocol, "ties": "as listed"}
    return CIRResult(summarise(benchmark, values), 0, len(wanted), protocol)


def summarise(benchmark: CIRBenchmark, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The figures of a benchmark: overall, per group, per aspect, and averages of several.

    Args:
        benchmark ([`CIRBenchmark`]): Says what belongs together.
        values (`Mapping[str, torch.Tensor]`): Per metric one value a query, `(Q,)`.

    Returns:
        `dict[str, torch.Tensor]`: Per figure the values whose mean it is, see [`CIRResult`].
    """
    groups, name = benchmark.groups, benchmark.name
    # The mean over groups is not weighted by their size: scale each query so that the plain mean says so.
    weights = torch.ones(len(benchmark.queries))
    for rows in groups.values():
        weights[rows] = len(benchmark.queries) / (len(groups) * len(rows))
    means = {
        average: torch.stack([values[metric] for metric in metrics]).mean(dim=0)
        for average, metrics in benchmark.averages.items()
        if all(metric in values for metric in metrics)
    }
    figures: dict[str, torch.Tensor] = {}
    for metric, per_query in {**values, **means}.items():
        figures |= {f"{name}_{group}_{metric}": per_query[rows] for group, rows in groups.items() if group}
        figures[f"{name}_{metric}"] = per_query * weights
    for aspect in dict.fromkeys(aspect for query in benchmark.queries for aspect in query.aspects):
        rows = [row for row, query in enumerate(benchmark.queries) if aspect in query.aspects]
        for metric in benchmark.aspect_metrics:
            figures[f"{name}_{aspect}_{metric}"] = values[metric][rows]
    return figures


def check_targets_are_known(benchmark: CIRBenchmark) -> None:
    """Refuses (`ValueError`) a benchmark whose targets a test server keeps."""
    if benchmark.hidden_targets:
        raise ValueError(
            f"The targets of `{benchmark.name}` ({benchmark.describe()}) are not public, so there is nothing to score "
            f"against. Rank with `CIREvaluator.search`, write the lists with `rtd_hf.submissions`, and let the "
            f"benchmark's server score them; or load the split `val`."
        )


def values_of_ranks(metrics: Sequence[str], ranks: Mapping[str, Ranks | torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    One value a query in percent for every metric.

    Args:
        metrics (`Sequence[str]`): Such as `recall@10`.
        ranks (`Mapping[str, Ranks or torch.Tensor]`): By kind of metric the ranks of the targets, `(Q, T)`.

    Returns:
        `dict[str, torch.Tensor]`: Per metric `(Q,)`.
    """
    values = {}
    for metric in metrics:
        kind, k = metric.split("@")
        if kind == "map":
            values[metric] = 100 * average_precision_at_k(ranks[kind], int(k))
        else:
            # The first target alone counts for the recall, as in CIRCO; most benchmarks have no other.
            table = ranks[kind].ranks if isinstance(ranks[kind], Ranks) else ranks[kind]
            values[metric] = 100 * recall_at_k(table[:, :1], int(k))
    return values
