"""What becomes of the results when the texts of the queries are changed: composition or keywords, and robustness."""

import random
import zlib
from collections.abc import Sequence

import torch

from ..benchmarks.scoring import check_targets_are_known
from ..evaluator import CIREvaluator
from ..metrics import paired_bootstrap
from .base import Diagnosis, Measure
from .texts import TEXT_CHANGES


class QueryPerturbations(Measure):
    r"""
    Scores a benchmark again with changed texts. A callable `(text_encoder) -> {metric: value}`.

    For each change of [`TEXT_CHANGES`], with \\(r\\) the rank of a query's first target, which alone counts for
    recalls, and \\(r'\\) that with the changed text:

    - `NAME_CHANGE_recall@K`, in percent, and `NAME_CHANGE_loss`, by how many points it falls, which where queries are
      of several groups is about all queries alike, not the mean of the groups;
    - `NAME_CHANGE_moved`: the median of \\(|\log_2 (r' / r)|\\): how often the rank doubles or halves;
    - `NAME_CHANGE_cosine`: the mean cosine of the query before and after.

    An encoder that reads keywords does not notice that words are `shuffled` or `negated`; one that overlooks the text
    does not notice that it is `dropped` or `swapped`.

    Args:
        evaluator ([`CIREvaluator`]): Over the benchmark.
        changes (`Sequence[str]`, *optional*): Of [`TEXT_CHANGES`]; all by default.
        k (`int`, *optional*): K of the recall; by default 10, or 1 where each query searches candidates of its own.
        seed (`int`, *optional*, defaults to 0): Draws words and typos.

    Raises:
        KeyError: There is no such change.
        ValueError: The targets are hidden, or a change needs texts of other queries and all are the same.
    """

    def __init__(self, evaluator: CIREvaluator, *, changes: Sequence[str] = (), k: int | None = None, seed: int = 0):
        if k is not None and k < 1:
            raise ValueError(f"`k` must be at least 1, got {k}.")
        check_targets_are_known(evaluator.benchmark)
        self.k = k or (1 if evaluator.benchmark.search_candidates else 10)
        self.evaluator = evaluator
        self.changes = tuple(changes) or tuple(TEXT_CHANGES)
        benchmark = evaluator.read_gallery()
        self.name = benchmark.name
        texts = [query.texts for query in benchmark.queries]
        self._changed = {name: evaluator.with_texts(changed_texts(texts, name, seed=seed)) for name in self.changes}

    def measure(self, text_encoder=None) -> Diagnosis:
        """
        Measures an encoder.

        Args:
            text_encoder (*optional*): The encoder; the retriever's own by default.

        Returns:
            [`Diagnosis`]: `series["rows"]`: for each change also the 95 % interval of the loss (paired bootstrap), and
            the first three texts before and after.
        """
        queries, ranks = self._ranked(self.evaluator, text_encoder)
        hits, recall = 100.0 * (ranks <= self.k).double(), f"recall@{self.k}"
        values = {f"{self.name}_unchanged_{recall}": hits}
        metrics, rows = {f"{self.name}_unchanged_{recall}": hits.mean().item()}, []
        for name, evaluator in self._changed.items():
            changed, new_ranks = self._ranked(evaluator, text_encoder)
            new_hits = 100.0 * (new_ranks <= self.k).double()
            of_query = {recall: new_hits, "loss": hits - new_hits, "cosine": (queries * changed).sum(1)}
            interval = paired_bootstrap(new_hits, hits)
            figures = {key: each.double().mean().item() for key, each in of_query.items()}
            figures["moved"] = (new_ranks / ranks).log2().abs().median().item()
            metrics |= {f"{self.name}_{name}_{key}": value for key, value in figures.items()}
            values |= {f"{self.name}_{name}_{key}": each for key, each in of_query.items()}
            about = {"change": name, "group": TEXT_CHANGES[name].group, "what": TEXT_CHANGES[name].what}
            about["examples"] = self._examples(evaluator)
            rows.append({**about, **figures, "low": interval.low, "high": interval.high})
        series = {"k": self.k, "queries": len(ranks), "unchanged": hits.mean().item(), "rows": rows}
        return Diagnosis("perturbations", metrics, series, values)

    def _examples(self, changed: CIREvaluator) -> list[list[str]]:
        """The first three texts before and after."""
        sides = (self.evaluator.benchmark.queries[:3], changed.benchmark.queries[:3])
        return [[" / ".join(query.texts) for query in pair] for pair in zip(*sides, strict=True)]

    @staticmethod
    def _ranked(evaluator: CIREvaluator, text_encoder) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries `(Q, D)`, and the ranks `(Q,)` of their first targets."""
        embeds = evaluator.encode(text_encoder)
        return embeds, evaluator.ranks(embeds).double()


def changed_texts(texts: Sequence[Sequence[str]], change: str, *, seed: int = 0) -> list[tuple[str, ...]]:
    """
    Texts with one change.

    Args:
        texts (`Sequence[Sequence[str]]`): For each query its texts.
        change (`str`): Of [`TEXT_CHANGES`].
        seed (`int`, *optional*, defaults to 0): Draws, for each query on its own.

    Returns:
        `list[tuple[str, ...]]`

    Raises:
        KeyError: There is no such change.
        ValueError: The change takes texts of other queries, and there are none with another text.
    """
    make, known = TEXT_CHANGES[change].make, list(dict.fromkeys(text for entry in texts for text in entry))
    changed = []
    for number, entry in enumerate(texts):
        rng = random.Random(zlib.crc32(f"{change} {seed} {number}".encode()))

        def other(rng=rng, entry=entry) -> str:
            if len(known) <= len(set(entry)):
                raise ValueError(f"`texts` must differ for the change `{change}`: no other query has another text.")
            while (drawn := rng.choice(known)) in entry:
                pass
            return drawn

        changed.append(tuple(make(text, other, rng) for text in entry))
    return changed
