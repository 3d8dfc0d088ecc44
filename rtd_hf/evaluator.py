"""Scores a text encoder on a benchmark. The image side never changes under RTD, so it is encoded once and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from transformers.utils import logging

from .benchmarks.base import CIRBenchmark, CIRQuery
from .metrics import TIES, Ranks, average_precision_at_k, paired_bootstrap, rank_targets, recall_at_k, top_k
from .retrieval import ComposedImageRetriever, ComposedPrompts


logger = logging.get_logger(__name__)

Composer = Literal["projection", "image", "text", "sum", "caption"]


@dataclass(frozen=True)
class CIRResult:
    """What one encoder reached on one benchmark.

    Args:
        per_query (`dict[str, torch.Tensor]`): Per metric one value a query, in percent and in the order of the
            benchmark's queries, whose mean is the metric. Where groups differ in size, the values of the overall
            metric are weighted such that every group counts the same.
        num_tied (`int`): Queries whose target shares its score with another image.
        num_queries (`int`): Queries scored; none is ever left out.
    """

    per_query: Mapping[str, torch.Tensor]
    num_tied: int
    num_queries: int

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


class CIREvaluator:
    """A callable `(text_encoder) -> {metric: percent}` over one benchmark; works in [`RTDTrainer`] and alone.

    Args:
        benchmark ([`CIRBenchmark`]): Queries, gallery and metrics.
        retriever ([`ComposedImageRetriever`]): Encodes images and queries; its text encoder is scored by default.
        ties (`str`, *optional*, defaults to `"pessimistic"`): How equal scores count: against the target, for it
            (`"optimistic"`), or the mean over their orders (`"mean"`). Ties are reported either way.

    Raises:
        ValueError: If `ties` is none of these.
    """

    def __init__(self, benchmark: CIRBenchmark, retriever: ComposedImageRetriever, *, ties: str = "pessimistic"):
        if ties not in TIES:
            raise ValueError(f"`ties` must be one of {', '.join(TIES)}, got {ties!r}.")
        self.benchmark, self.retriever, self.ties = benchmark, retriever, ties
        self._image_embeds: torch.Tensor | None = None
        self._kept: tuple[tuple, ComposedPrompts] | None = None
        self._index = {image_id: row for row, image_id in enumerate(benchmark.gallery)}

    @property
    def image_embeds(self) -> torch.Tensor:
        """The gallery's embeddings, `(N, D)`, not normalised; encoded at first use."""
        if self._image_embeds is None:
            gallery, load = self.benchmark.gallery, self.benchmark.load_image
            self._image_embeds = self.retriever.embed_images(lambda i: load(gallery[i]), number=len(gallery))
        return self._image_embeds

    def __call__(self, text_encoder=None) -> dict[str, float]:
        """Scores a text encoder (the retriever's own by default): `{"shapes_recall@10": 77.0, ...}` in percent."""
        return self.evaluate(text_encoder).metrics

    def evaluate(self, text_encoder=None, *, composer: Composer = "projection") -> CIRResult:
        """Scores one way of composing the query.

        Args:
            text_encoder (*optional*): The encoder to score; the retriever's own by default.
            composer (`str`, *optional*, defaults to `"projection"`): `"projection"` is composed retrieval. The
                baselines: `"image"` (reference alone), `"text"` (conditioning text alone), `"sum"` (normalised sum of
                both). `"caption"` is the upper bound: the full caption of the target as the query.

        Returns:
            [`CIRResult`]

        Raises:
            ValueError: If features are not finite, or the benchmark has no target captions for `"caption"`.
        """
        queries, images = self.benchmark.queries, F.normalize(self.image_embeds, dim=-1)
        embeds = self._compose(composer, queries, text_encoder)
        groups: dict[str, list[int]] = {}
        for row, query in enumerate(queries):
            groups.setdefault(query.group, []).append(row)
        values: dict[str, torch.Tensor] = {}
        num_tied = 0
        for group, rows in groups.items():
            part, tied = self._score([queries[row] for row in rows], embeds[rows], images, group)
            num_tied += tied
            # The mean over groups is not weighted by their size: scale each query so that the plain mean says so.
            weight = len(queries) / (len(groups) * len(rows))
            for metric, per_query in part.items():
                if group:
                    values[f"{self.benchmark.name}_{group}_{metric}"] = per_query
                overall = values.setdefault(f"{self.benchmark.name}_{metric}", torch.zeros(len(queries)))
                overall[rows] = per_query * weight
        if num_tied:
            logger.warning(
                f"{num_tied} of {len(queries)} queries of `{self.benchmark.name}` have images that score exactly like "
                f"their target; they are counted by `ties={self.ties!r}`."
            )
        return CIRResult(values, num_tied, len(queries))

    def search(self, k: int, *, text_encoder=None, rows: Sequence[int] | None = None) -> list[list[str]]:
        """The best `k` images of some queries, best first, under the benchmark's own rules.

        Args:
            k (`int`): How many.
            text_encoder (*optional*): The encoder to use; the retriever's own by default.
            rows (`Sequence[int]`, *optional*): Which queries, by their place in the benchmark; all by default.

        Returns:
            `list[list[str]]`: Image ids per query, in the order of `rows`.
        """
        rows = range(len(self.benchmark.queries)) if rows is None else rows
        queries, images = [self.benchmark.queries[row] for row in rows], F.normalize(self.image_embeds, dim=-1)
        embeds = self._compose("projection", queries, text_encoder)
        found: dict[int, list[str]] = {}
        for group in dict.fromkeys(query.group for query in queries):
            at = [i for i, query in enumerate(queries) if query.group == group]
            pool = self.benchmark.gallery_of(group)
            gallery = images[[self._index[image_id] for image_id in pool]]
            best = top_k(embeds[at], gallery, k, exclude=self._excluded([queries[i] for i in at], pool))
            found |= {i: [pool[j] for j in line] for i, line in zip(at, best.indices.tolist(), strict=True)}
        return [found[i] for i in range(len(queries))]

    def _compose(self, composer: Composer, queries: Sequence[CIRQuery], text_encoder) -> torch.Tensor:
        retriever = self.retriever
        if composer == "projection":
            return retriever.encode_prompts(self._composed(queries), text_encoder=text_encoder)
        references = self.image_embeds[[self._index[query.reference] for query in queries]]
        if composer == "image":
            return F.normalize(references, dim=-1)
        if composer in ("text", "sum"):
            texts = retriever.encode_texts([query.texts for query in queries], text_encoder=text_encoder)
            return texts if composer == "text" else F.normalize(F.normalize(references, dim=-1) + texts, dim=-1)
        if composer == "caption":
            if not all(query.target_caption for query in queries):
                raise ValueError(f"`{self.benchmark.name}` has no target captions, which `composer='caption'` needs.")
            return retriever.encode_texts([query.target_caption for query in queries], text_encoder=text_encoder)
        raise ValueError(f"`composer` must be projection, image, text, sum or caption, got {composer!r}.")

    def _composed(self, queries: Sequence[CIRQuery]) -> ComposedPrompts:
        """The queries up to the text encoder. Images and projection do not change in RTD, so they are kept."""
        # Training a projection changes the versions of its weights, and hence is noticed.
        key = (
            tuple(query.id for query in queries),
            tuple((id(weight), weight._version) for weight in self.retriever.projection.parameters()),
        )
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._read_references(queries)
        return self._kept[1]

    def _read_references(self, queries: Sequence[CIRQuery]) -> ComposedPrompts:
        retriever, load, options = self.retriever, self.benchmark.load_image, {"benchmark": self.benchmark.name}
        if not retriever.projection.needs_patches:
            references = self.image_embeds[[self._index[query.reference] for query in queries]]
            return retriever.compose(references, [query.texts for query in queries], **options)
        # The vision tokens of all references do not fit into memory at once: 6 GB for FashionIQ and ViT-L/14.
        order = sorted(range(len(queries)), key=lambda row: queries[row].reference)
        parts = []
        for start in range(0, len(order), retriever.batch_size):
            rows = order[start : start + retriever.batch_size]
            distinct = list(dict.fromkeys(queries[row].reference for row in rows))
            features = retriever.embed_references(lambda i, ids=distinct: load(ids[i]), number=len(distinct))
            at = torch.tensor([distinct.index(queries[row].reference) for row in rows])
            part = retriever.compose(features[at], [queries[row].texts for row in rows], **options)
            parts.append(replace(part, queries=torch.tensor(rows)[part.queries]))
        return ComposedPrompts.concatenate(parts)

    def _score(
        self, queries: list[CIRQuery], embeds: torch.Tensor, images: torch.Tensor, group: str
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Values per query in percent for every metric, and the number of queries with ties, within one gallery."""
        pool = self.benchmark.gallery_of(group)
        place = {image_id: row for row, image_id in enumerate(pool)}
        gallery = images[[self._index[image_id] for image_id in pool]]
        targets = _padded([[place[i] for i in query.targets] for query in queries])
        exclude = self._excluded(queries, pool)
        ranks = rank_targets(embeds, gallery, targets, exclude=exclude, ties=self.ties)
        subset = None
        if any("subset" in metric for metric in self.benchmark.metrics):
            candidates = _padded([[place[i] for i in query.candidates] for query in queries])
            subset = rank_targets(embeds, gallery, targets, exclude=exclude, candidates=candidates, ties=self.ties)
        values = {metric: 100 * _value(metric, ranks, subset) for metric in self.benchmark.metrics}
        return values, ranks.num_tied_queries

    def _excluded(self, queries: Sequence[CIRQuery], pool: Sequence[str]) -> torch.Tensor | None:
        """The place of each query's reference in its gallery, `(Q, 1)`, where the benchmark leaves it out."""
        if not self.benchmark.exclude_reference:
            return None
        place = {image_id: row for row, image_id in enumerate(pool)}
        return torch.tensor([[place[query.reference]] for query in queries])


def _value(metric: str, ranks: Ranks, subset: Ranks | None) -> torch.Tensor:
    name, k = metric.split("@")
    if name == "map":
        return average_precision_at_k(ranks, int(k))
    # The first target alone counts for the recall, as in CIRCO; most benchmarks have no other.
    return recall_at_k((subset if name == "recall_subset" else ranks).ranks[:, :1], int(k))


def _padded(rows: list[list[int]]) -> torch.Tensor:
    """Ragged rows of indices as an int64 tensor, filled up with -1."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])
