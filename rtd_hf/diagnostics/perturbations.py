"""What becomes of the results when the texts of the queries are changed: composition or keywords, and robustness."""

import random
import zlib
from collections.abc import Sequence

import torch

from ..evaluator import CIREvaluator
from ..metrics import paired_bootstrap
from .base import Diagnosis
from .texts import TEXT_CHANGES


class QueryPerturbations:
    r"""
    Scores a benchmark again with changed texts. A callable `(text_encoder) -> {metric: value}`.

    For each change of [`TEXT_CHANGES`], with \\(r\\) the rank of a query's first target and \\(r'\\) that with the
    changed text:

    - `NAME_CHANGE_recall@10`, in percent, and `NAME_CHANGE_loss`, by how many points it falls;
    - `NAME_CHANGE_moved`: the median of \\(|\log_2 (r' / r)|\\): how often the rank doubles or halves;
    - `NAME_CHANGE_cosine`: the mean cosine of the query before and after.

    An encoder that reads keywords does not notice that words are `shuffled` or `negated`; one that overlooks the text
    does not notice that it is `dropped` or `swapped`.

    Args:
        evaluator ([`CIREvaluator`]): Over the benchmark.
        changes (`Sequence[str]`, *optional*): Of [`TEXT_CHANGES`]; all by default.
        seed (`int`, *optional*, defaults to 0): Draws words and typos.

    Raises:
        KeyError: There is no such change.
        ValueError: The targets are hidden.
    """

    def __init__(self, evaluator: CIREvaluator, *, changes: Sequence[str] = (), seed: int = 0):
        self.evaluator = evaluator
        self.changes = tuple(changes) or tuple(TEXT_CHANGES)
        benchmark = evaluator.read_gallery()
        self.name = benchmark.name
        texts = [query.texts for query in benchmark.queries]
        self._changed = {name: evaluator.with_texts(changed_texts(texts, name, seed=seed)) for name in self.changes}

    def __call__(self, text_encoder=None) -> dict[str, float]:
        """The metrics of an encoder, the retriever's own by default."""
        return dict(self.measure(text_encoder).metrics)

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
        hits = 100.0 * (ranks <= 10).float()
        metrics, rows = {f"{self.name}_unchanged_recall@10": hits.mean().item()}, []
        for name, evaluator in self._changed.items():
            changed, new_ranks = self._ranked(evaluator, text_encoder)
            new_hits = 100.0 * (new_ranks <= 10).float()
            interval = paired_bootstrap(new_hits, hits)
            figures = {
                "recall@10": new_hits.mean().item(),
                "loss": interval.gain,
                "moved": (new_ranks / ranks).log2().abs().median().item(),
                "cosine": (queries * changed).sum(1).mean().item(),
            }
            metrics |= {f"{self.name}_{name}_{key}": value for key, value in figures.items()}
            pairs = zip(self.evaluator.benchmark.queries, evaluator.benchmark.queries, strict=True)
            shown = [[" / ".join(query.texts) for query in pair] for pair, _ in zip(pairs, range(3), strict=False)]
            about = {"change": name, "group": TEXT_CHANGES[name].group, "what": TEXT_CHANGES[name].what}
            rows.append({**about, **figures, "low": interval.low, "high": interval.high, "examples": shown})
        return Diagnosis("perturbations", metrics, {"rows": rows})

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
        seed (`int`, *optional*, defaults to 0): Draws; the texts of a query do not depend on how many follow.

    Returns:
        `list[tuple[str, ...]]`

    Raises:
        KeyError: There is no such change.
    """
    make = TEXT_CHANGES[change].make
    changed = []
    for number, entry in enumerate(texts):
        rng = random.Random(zlib.crc32(f"{change} {seed} {number}".encode()))

        def other(rng=rng, number=number) -> str:
            if len(texts) < 2:
                return ""
            return rng.choice(texts[(number + rng.randrange(1, len(texts))) % len(texts)])

        changed.append(tuple(make(text, other, rng) for text in entry))
    return changed
