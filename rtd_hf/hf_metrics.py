"""
`evaluate.Metric` classes for ranked lists, over the same functions as everything else.

Instantiate them: nothing is fetched. `evaluate.load` would ask the Hub, unless it is given a folder that
[`write_metric_space`] wrote.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .metrics import average_precision_at_k, ranks_of_lists, recall_at_k


try:
    import evaluate
except ImportError as error:
    raise ImportError("`rtd_hf.hf_metrics` needs `evaluate`. Install it: pip install evaluate") from error

_INPUTS = """
Args:
    predictions (`list` of `list`): For each query the ids of the retrieved items, best first, strings or integers.
    references (`list` of `list`): For each query the ids of its targets, of the same type.
    k (`int` or `list[int]`, *optional*): The cut-offs. An id beyond the end of a list counts as not found.
    excluded (`list`, *optional*): For each query an id that is taken out of its list first, such as the reference.
    groups (`list[str]`, *optional*): For each query its group, such as FashionIQ's category.
    aspects (`list` of `list[str]`, *optional*): For each query what it asks about, as in CIRCO.

Returns:
    `dict[str, float]`: `"{name}@k"` for each cut-off, between 0 and 1. With groups it is the unweighted mean over
    them, and each has a `"group_{name}@k"` of its own; with aspects each has an `"aspect_{name}@k"`, the mean over
    the queries that have it.
"""

_CIRR = """\
@inproceedings{liu2021cirr,
  title     = {Image Retrieval on Real-life Images with Pre-trained Vision-and-Language Models},
  author    = {Liu, Zheyuan and Rodriguez-Opazo, Cristian and Teney, Damien and Gould, Stephen},
  booktitle = {International Conference on Computer Vision},
  year      = {2021},
}
"""

_CIRCO = """\
@inproceedings{baldrati2023circo,
  title     = {Zero-Shot Composed Image Retrieval with Textual Inversion},
  author    = {Baldrati, Alberto and Agnolucci, Lorenzo and Bertini, Marco and Del Bimbo, Alberto},
  booktitle = {International Conference on Computer Vision},
  year      = {2023},
}
"""


class _RankedListMetric(evaluate.Metric):
    key: str
    description: str
    citation_text: str
    default_k: tuple[int, ...]
    per_query: Callable[[Tensor, int], Tensor]

    def _info(self) -> evaluate.MetricInfo:
        import datasets

        # Strings first: they refuse integers, while integers would swallow strings of digits.
        features = [
            datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value(kind)),
                    "references": datasets.Sequence(datasets.Value(kind)),
                }
            )
            for kind in ("string", "int64")
        ]
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation_text,
            inputs_description=_INPUTS.replace("{name}", self.key),
            features=features,
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[Any]],
        references: Sequence[Sequence[Any]],
        k: int | Sequence[int] | None = None,
        excluded: Sequence[Any] | None = None,
        groups: Sequence[str] | None = None,
        aspects: Sequence[Sequence[str]] | None = None,
        **more: Sequence[Any],
    ) -> dict[str, float]:
        sides = {"excluded": excluded, "groups": groups, "aspects": aspects, **more}
        for name, values in sides.items():
            if values is not None and len(values) != len(predictions):
                raise ValueError(f"`{name}` must hold one entry per query, got {len(values)} for {len(predictions)}.")
        if excluded is not None:
            pairs = zip(predictions, excluded, strict=True)
            predictions = [[item for item in ranked if item != taken] for ranked, taken in pairs]
        cut_offs = self.default_k if k is None else [k] if isinstance(k, int) else k
        ranks = ranks_of_lists(self._restricted(predictions, **more), references)
        figures = {}
        for cut_off in cut_offs:
            values = type(self).per_query(ranks, cut_off).double()
            figures |= _figures(f"{self.key}@{cut_off}", values, groups, aspects)
        return figures

    def _restricted(self, predictions: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        return predictions


def _figures(name: str, values: Tensor, groups, aspects) -> dict[str, float]:
    """A metric over all queries, and its parts."""
    parts: dict[str, list[int]] = {}
    for row, group in enumerate(groups or ()):
        parts.setdefault(group, []).append(row)
    means = {f"{group}_{name}": values[rows].mean().item() for group, rows in parts.items()}
    overall = sum(means.values()) / len(means) if means else values.mean().item()
    by_aspect: dict[str, list[int]] = {}
    for row, own in enumerate(aspects or ()):
        for aspect in dict.fromkeys(own):
            by_aspect.setdefault(aspect, []).append(row)
    means |= {f"{aspect}_{name}": values[rows].mean().item() for aspect, rows in by_aspect.items()}
    return {name: overall, **means}


class RecallAtK(_RankedListMetric):
    """
    Share of queries with a target among the first K of their list, see [`recall_at_k`].

    Example:

    ```py
    >>> from rtd_hf.hf_metrics import RecallAtK

    >>> RecallAtK().compute(predictions=[["b", "a"], ["c", "d"]], references=[["a"], ["c"]], k=[1, 2])
    {'recall@1': 0.5, 'recall@2': 1.0}
    ```
    """

    key = "recall"
    description = "Recall@K: the share of queries with at least one target among the first K retrieved items."
    citation_text = _CIRR
    default_k = (1, 5, 10, 50)
    per_query = staticmethod(recall_at_k)


class MeanAveragePrecisionAtK(_RankedListMetric):
    """
    Mean over queries of the average precision over the first K of their list, see [`average_precision_at_k`].

    Example:

    ```py
    >>> from rtd_hf.hf_metrics import MeanAveragePrecisionAtK

    >>> MeanAveragePrecisionAtK().compute(predictions=[[4, 7, 8, 5]], references=[[4, 5, 6]], k=5)
    {'map@5': 0.5}
    ```
    """

    key = "map"
    description = "mAP@K: precision at each target among the first K retrieved items, over min(number of targets, K)."
    citation_text = _CIRCO
    default_k = (5, 10, 25, 50)
    per_query = staticmethod(average_precision_at_k)


class RecallSubsetAtK(_RankedListMetric):
    """
    Share of queries whose target is among the first K of the few candidates in their list, as CIRR's Recall_subset.

    Give `candidates`, the ids of each query's group; what else its list holds is passed over.

    Example:

    ```py
    >>> from rtd_hf.hf_metrics import RecallSubsetAtK

    >>> ranked, group = [["a", "r", "x", "b", "c"]], [["r", "b", "c"]]
    >>> RecallSubsetAtK().compute(predictions=ranked, references=[["b"]], candidates=group, excluded=["r"], k=1)
    {'recall_subset@1': 1.0}
    ```
    """

    key = "recall_subset"
    description = "Recall_subset@K: Recall@K of the lists restricted to a few candidates of each query's own."
    citation_text = _CIRR
    default_k = (1, 2, 3)
    per_query = staticmethod(recall_at_k)

    def _restricted(
        self, predictions: Sequence[Sequence[Any]], candidates: Sequence[Sequence[Any]] | None = None
    ) -> Sequence[Sequence[Any]]:
        if candidates is None:
            raise ValueError("`candidates` must hold the ids of each query's group, got nothing.")
        pairs = zip(predictions, map(set, candidates), strict=True)
        return [[item for item in ranked if item in allowed] for ranked, allowed in pairs]
