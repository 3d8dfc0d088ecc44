"""
`evaluate.Metric` classes for ranked lists, over the same functions as everything else.

Instantiate them: nothing is fetched. `evaluate.load` would ask the Hub.
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

Returns:
    `dict[str, float]`: `"{name}@k"` for each cut-off, between 0 and 1.
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
    ) -> dict[str, float]:
        cut_offs = self.default_k if k is None else [k] if isinstance(k, int) else k
        ranks = ranks_of_lists(predictions, references)
        per_query = type(self).per_query
        return {f"{self.key}@{cut_off}": per_query(ranks, cut_off).double().mean().item() for cut_off in cut_offs}


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
