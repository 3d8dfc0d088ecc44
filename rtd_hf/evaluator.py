"""Scores a text encoder on a benchmark. The image side never changes under RTD, so it is encoded once and kept."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from transformers.utils import logging

from .benchmarks.base import CIRBenchmark, CIRQuery
from .benchmarks.scoring import CIRResult, check_targets_are_known, summarise, values_of_ranks
from .composition import ComposedPrompts
from .distributed import gather_objects, rank, world_size
from .metrics import TIES, rank_targets, top_k
from .retrieval import CIREncoder
from .similarity import slerp


logger = logging.get_logger(__name__)

COMPOSERS = ("projection", "image", "text", "sum", "slerp", "caption")
Composer = Literal["projection", "image", "text", "sum", "slerp", "caption"]


class CIREvaluator:
    """A callable `(text_encoder) -> {metric: percent}` over one benchmark; works in [`RTDTrainer`] and alone.

    Args:
        benchmark ([`CIRBenchmark`]): Queries, gallery and metrics.
        retriever ([`CIREncoder`]): Encodes images and queries; its text encoder is scored by default.
        ties (`str`, *optional*, defaults to `"pessimistic"`): How equal scores count: against the target, for it
            (`"optimistic"`), or the mean over their orders (`"mean"`). Ties are reported either way.
        features (`str` or `os.PathLike`, *optional*): Folder in which image embeddings are kept and found again;
            nowhere by default. See [`~CIREncoder.embed_gallery`].
        strict (`bool`, *optional*, defaults to `True`): Refuse to score if a picture cannot be read. Otherwise such
            pictures are left out with the queries that need them, and the result's protocol says how many.

    Raises:
        ValueError: If `ties` is none of these.
    """

    def __init__(
        self,
        benchmark: CIRBenchmark,
        retriever: CIREncoder,
        *,
        ties: str = "pessimistic",
        features: str | os.PathLike | None = None,
        strict: bool = True,
    ):
        if ties not in TIES:
            raise ValueError(f"`ties` must be one of {', '.join(TIES)}, got {ties!r}.")
        self.benchmark, self.retriever, self.ties = benchmark, retriever, ties
        self.features, self.strict = features, strict
        self._image_embeds: torch.Tensor | None = None
        self._kept: tuple[tuple, ComposedPrompts] | None = None
        self._index = {image_id: row for row, image_id in enumerate(benchmark.gallery)}

    @property
    def image_embeds(self) -> torch.Tensor:
        """The gallery's embeddings, `(N, D)`, not normalised; encoded at first use."""
        self.read_gallery()
        return self._image_embeds

    def read_gallery(self) -> CIRBenchmark:
        """Encodes the gallery, if that is not done yet.

        Returns:
            [`CIRBenchmark`]: What is scored: the benchmark, less what cannot be read where not `strict`.

        Raises:
            UnreadableImagesError: If pictures cannot be read, and `strict`. It names all of them.
        """
        if self._image_embeds is not None:
            return self.benchmark
        benchmark = self.benchmark
        options = {"name": benchmark.name, "folder": self.features, "strict": self.strict}
        found = self.retriever.embed_gallery(benchmark.gallery, benchmark.load_image, **options)
        if found.unreadable:
            self.benchmark = benchmark.without_images(found.unreadable)
            self._index = {image_id: row for row, image_id in enumerate(self.benchmark.gallery)}
            logger.warning(
                f"Not comparable with other results: {len(found.unreadable)} pictures of `{benchmark.name}` cannot be "
                f"read and are left out with the queries that need them. Scored is {self.benchmark.describe()}."
            )
        self._image_embeds = found.image_embeds
        return self.benchmark

    def __call__(self, text_encoder=None) -> dict[str, float]:
        """Scores a text encoder (the retriever's own by default): `{"shapes_recall@10": 77.0, ...}` in percent."""
        return self.evaluate(text_encoder).metrics

    def evaluate(self, text_encoder=None, *, composer: Composer = "projection", text_weight: float = 0.5) -> CIRResult:
        """Scores one way of composing the query.

        Args:
            text_encoder (*optional*): The encoder to score; the retriever's own by default.
            composer (`str`, *optional*, defaults to `"projection"`): `"projection"` is composed retrieval. The
                baselines: `"image"` (reference alone), `"text"` (conditioning text alone), `"sum"` (normalised
                weighted sum of both), `"slerp"` (the point between both on the sphere). `"caption"` is the upper
                bound: the full caption of the target as the query.
            text_weight (`float`, *optional*, defaults to 0.5): The text's share in `"sum"` and `"slerp"`.

        Returns:
            [`CIRResult`]

        Raises:
            UnreadableImagesError: If pictures cannot be read, and `strict`. It names all of them.
            ValueError: If features are not finite, `text_weight` is not between 0 and 1, there are no target captions
                for `"caption"`, or the targets are kept by a test server.
        """
        check_targets_are_known(self.benchmark)
        benchmark = self.read_gallery()
        if benchmark.empty_metrics:
            logger.warning(
                f"{', '.join(benchmark.empty_metrics)} of `{benchmark.name}` is 100 whatever the ranking, because a "
                f"gallery holds no more images: {benchmark.describe()}"
            )
        embeds = self._compose(composer, benchmark.queries, text_encoder, text_weight)
        values = {metric: torch.zeros(len(benchmark.queries)) for metric in benchmark.metrics}
        num_tied = 0
        for group, rows in benchmark.groups.items():
            part, tied = self._score([benchmark.queries[row] for row in rows], embeds[rows], group)
            num_tied += tied
            for metric, per_query in part.items():
                values[metric][rows] = per_query
        if num_tied:
            logger.warning(
                f"{num_tied} of {len(embeds)} queries of `{benchmark.name}` have images that score exactly like their "
                f"target; they are counted by `ties={self.ties!r}`."
            )
        protocol = {**benchmark.protocol, "ties": self.ties}
        return CIRResult(summarise(benchmark, values), num_tied, len(embeds), protocol)

    def encode(self, text_encoder=None) -> torch.Tensor:
        """The composed queries under an encoder, the retriever's own by default: `(Q, D)`, normalised."""
        return self._compose("projection", self.read_gallery().queries, text_encoder)

    def ranks(self, embeds: torch.Tensor) -> torch.Tensor:
        """The place of each query's first target under the benchmark's rules, from 1.

        Args:
            embeds (`torch.Tensor` of shape `(Q, D)`): The queries, in the benchmark's order.

        Returns:
            `torch.Tensor` of shape `(Q,)`

        Raises:
            ValueError: If the targets are hidden.
        """
        benchmark = self.read_gallery()
        check_targets_are_known(benchmark)
        found = torch.zeros(len(embeds))
        for group, rows in benchmark.groups.items():
            _, gallery, place = self._pool(group)
            queries = [benchmark.queries[row] for row in rows]
            pool = [query.candidates for query in queries] if benchmark.search_candidates else None
            candidates = None if pool is None else _padded([[place[i] for i in some] for some in pool])
            targets = torch.tensor([[place[query.targets[0]]] for query in queries])
            options = {"exclude": self._excluded(queries, place), "ties": self.ties, "candidates": candidates}
            found[rows] = 1.0 + rank_targets(embeds[rows], gallery, targets, **options).ranks[:, 0]
        return found

    def with_texts(self, texts: Sequence[Sequence[str]]) -> "CIREvaluator":
        """An evaluator of the same queries with other texts, over the same gallery, which is encoded once for both.

        Args:
            texts (`Sequence[Sequence[str]]`): For each query its conditioning texts.

        Returns:
            [`CIREvaluator`]

        Raises:
            ValueError: If there are not as many as queries.
        """
        benchmark = self.read_gallery()
        if len(texts) != len(benchmark.queries):
            raise ValueError(f"`texts` must hold one entry per query, got {len(texts)} for {len(benchmark.queries)}.")
        other = copy.copy(self)
        pairs = zip(benchmark.queries, texts, strict=True)
        other.benchmark = replace(benchmark, queries=[replace(query, texts=tuple(entry)) for query, entry in pairs])
        other._kept = None
        return other

    def search(
        self, k: int, *, text_encoder=None, rows: Sequence[int] | None = None, subset: bool = False
    ) -> list[list[str]]:
        """The best `k` images of some queries, best first, under the benchmark's own rules.

        Args:
            k (`int`): How many.
            text_encoder (*optional*): The encoder to use; the retriever's own by default.
            rows (`Sequence[int]`, *optional*): Which queries, by their place in the benchmark; all by default.
            subset (`bool`, *optional*, defaults to `False`): Among each query's candidates only (CIRR's second
                submission), which GeneCIS does in any case. Targets are not needed: this makes submissions.

        Returns:
            `list[list[str]]`: Image ids per query, in the order of `rows`.

        Raises:
            ValueError: If `k` exceeds what a query has to choose from, or a query has no candidates for `subset`.
        """
        benchmark = self.read_gallery()
        rows = range(len(benchmark.queries)) if rows is None else rows
        queries = [benchmark.queries[row] for row in rows]
        subset = subset or self.benchmark.search_candidates
        if subset and not all(query.candidates for query in queries):
            raise ValueError(f"`{self.benchmark.name}` has no candidates of each query's own, which `subset` needs.")
        embeds = self._compose("projection", queries, text_encoder)
        found: dict[int, list[str]] = {}
        for group in dict.fromkeys(query.group for query in queries):
            at = [i for i, query in enumerate(queries) if query.group == group]
            pool, gallery, place = self._pool(group)
            asked = [queries[i] for i in at]
            candidates = _padded([[place[i] for i in query.candidates] for query in asked]) if subset else None
            best = top_k(embeds[at], gallery, k, exclude=self._excluded(asked, place), candidates=candidates)
            found |= {i: [pool[j] for j in line] for i, line in zip(at, best.indices.tolist(), strict=True)}
        return [found[i] for i in range(len(queries))]

    def _compose(
        self, composer: Composer, queries: Sequence[CIRQuery], text_encoder, text_weight: float = 0.5
    ) -> torch.Tensor:
        if composer not in COMPOSERS or not 0 <= text_weight <= 1:
            raise ValueError(
                f"`composer` must be {', '.join(COMPOSERS[:-1])} or {COMPOSERS[-1]}, and `text_weight` lie between 0 "
                f"and 1, got {composer!r} and {text_weight}."
            )
        retriever = self.retriever
        if composer == "projection":
            return retriever.encode_prompts(self._composed(queries), text_encoder=text_encoder)
        references = self.image_embeds[[self._index[query.reference] for query in queries]]
        if composer == "image":
            return F.normalize(references, dim=-1)
        if composer == "caption":
            if not all(query.target_caption for query in queries):
                raise ValueError(f"`{self.benchmark.name}` has no target captions, which `composer='caption'` needs.")
            return retriever.encode_texts([query.target_caption for query in queries], text_encoder=text_encoder)
        texts = retriever.encode_texts([query.texts for query in queries], text_encoder=text_encoder)
        if composer == "text":
            return texts
        blend = slerp if composer == "slerp" else torch.lerp
        return F.normalize(blend(F.normalize(references, dim=-1), texts, text_weight), dim=-1)

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
        starts = range(0, len(order), retriever.batch_size)
        number, own = (world_size(), rank()) if retriever.shared else (1, 0)
        parts = []
        for start in starts[own::number]:
            rows = order[start : start + retriever.batch_size]
            distinct = list(dict.fromkeys(queries[row].reference for row in rows))
            features = retriever.embed_references(lambda i, ids=distinct: load(ids[i]), number=len(distinct))
            at = torch.tensor([distinct.index(queries[row].reference) for row in rows])
            part = retriever.compose(features[at], [queries[row].texts for row in rows], **options)
            parts.append(replace(part, queries=torch.tensor(rows)[part.queries]))
        lists = gather_objects(parts) if retriever.shared else [parts]
        return ComposedPrompts.concatenate([lists[i % number][i // number] for i in range(len(starts))])

    def _pool(self, group: str) -> tuple[Sequence[str], torch.Tensor, dict[str, int]]:
        """What a group searches: ids, embeddings `(N, D)`, and the place of each id."""
        pool = self.benchmark.gallery_of(group)
        if pool is self.benchmark.gallery:
            return pool, self.image_embeds, self._index
        place = {image_id: row for row, image_id in enumerate(pool)}
        return pool, self.image_embeds[[self._index[image_id] for image_id in pool]], place

    def _score(self, queries: list[CIRQuery], embeds: torch.Tensor, group: str) -> tuple[dict[str, torch.Tensor], int]:
        """Values per query in percent for every metric, and the number of queries with ties, within one gallery."""
        benchmark = self.benchmark
        _, gallery, place = self._pool(group)
        kinds = {metric.partition("@")[0] for metric in benchmark.metrics}
        targets = _padded([[place[i] for i in query.targets] for query in queries])
        options = {"exclude": self._excluded(queries, place), "ties": self.ties}
        candidates = subset = reverse = None
        if benchmark.search_candidates or "recall_subset" in kinds:
            candidates = _padded([[place[i] for i in query.candidates] for query in queries])
            subset = rank_targets(embeds, gallery, targets, candidates=candidates, **options)
        ranks = subset if benchmark.search_candidates else rank_targets(embeds, gallery, targets, **options)
        if "recall_reverse" in kinds:
            wanted = torch.arange(len(queries))[:, None]
            reverse = rank_targets(gallery[targets[:, 0]], embeds, wanted, ties=self.ties)
        of_kind = {"recall": ranks, "map": ranks, "recall_subset": subset, "recall_reverse": reverse}
        return values_of_ranks(benchmark.metrics, of_kind), ranks.num_tied_queries

    def _excluded(self, queries: Sequence[CIRQuery], place: Mapping[str, int]) -> torch.Tensor | None:
        """The place of each query's reference in its gallery, `(Q, 1)`, where the benchmark leaves it out."""
        if not self.benchmark.exclude_reference:
            return None
        return torch.tensor([[place[query.reference]] for query in queries])


def _padded(rows: list[list[int]]) -> torch.Tensor:
    """Ragged rows of indices as an int64 tensor, filled up with -1."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])
