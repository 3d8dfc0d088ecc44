"""What a benchmark is: queries, galleries and the metrics to report. How to score one is the evaluator's business."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ..registry import Registry


BENCHMARKS = Registry("benchmark", "BENCHMARKS")
"""Benchmark loaders by name; each returns a [`CIRBenchmark`]."""


@dataclass(frozen=True, slots=True)
class CIRQuery:
    """One composed query. All images are named by their id in the gallery.

    Args:
        id (`str`): The query's own name.
        reference (`str`): The reference image.
        texts (`tuple[str, ...]`): The conditioning text, or the captions that say it together (FashionIQ's two). How
            those are joined is the projection's business ([`join_captions`]).
        targets (`tuple[str, ...]`): The right answers, one or many (CIRCO).
        candidates (`tuple[str, ...]`, *optional*): The few images of the subset ranking (CIRR's group), the targets
            among them.
        group (`str`, *optional*): Names the gallery and the average the query belongs to (FashionIQ's categories).
        target_caption (`str`, *optional*): A full caption of the target, for the upper bound.
    """

    id: str
    reference: str
    texts: tuple[str, ...]
    targets: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    group: str = ""
    target_caption: str = ""


@dataclass(frozen=True)
class CIRBenchmark:
    """A composed-image-retrieval benchmark, ready to be scored.

    Args:
        name (`str`): Prefix of its metrics, as in `shapes_recall@10`.
        queries (`list[CIRQuery]`): The queries.
        gallery (`tuple[str, ...]`): Ids of all images, references included.
        load_image (`Callable[[str], PIL.Image.Image]`): Opens an image by id.
        metrics (`tuple[str, ...]`): Of `recall@K`, `recall_subset@K`, `map@K`.
        exclude_reference (`bool`, *optional*, defaults to `False`): Leave the reference out of the ranking, as CIRR.
        galleries (`Mapping[str, tuple[str, ...]]`, *optional*): Per group the ids searched; without it all search
            the whole gallery.

    Raises:
        ValueError: If there is no query, a name occurs twice, a metric is unknown, a query has no text or no target,
            or names an image that its gallery does not hold. All problems are counted, the first five are shown.
    """

    name: str
    queries: list[CIRQuery]
    gallery: tuple[str, ...]
    load_image: Callable[[str], object]
    metrics: tuple[str, ...]
    exclude_reference: bool = False
    galleries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        if not self.queries:
            raise ValueError(f"Benchmark `{self.name}` has no queries. Check its files and its `num_queries`.")
        problems = [*self._problems_of_names(), *self._problems_of_queries()]
        if problems:
            shown = "; ".join(problems[:5])
            raise ValueError(f"{len(problems)} problems in the benchmark `{self.name}`: {shown}. Check its files.")

    def _problems_of_names(self) -> Iterator[str]:
        for metric in self.metrics:
            if not re.fullmatch(r"(recall|recall_subset|map)@[1-9]\d*", metric):
                yield f"`metrics` names {metric!r}, but must be of `recall@K`, `recall_subset@K`, `map@K`"
        known = set(self.gallery)
        names = {"`gallery`": self.gallery, "`queries`": [query.id for query in self.queries]}
        names |= {f"`galleries[{group!r}]`": ids for group, ids in self.galleries.items()}
        for where, ids in names.items():
            yield from (f"{where} holds {name!r} {count} times" for name, count in Counter(ids).items() if count > 1)
        for group, ids in self.galleries.items():
            yield from (
                f"`galleries[{group!r}]` holds {name!r}, `gallery` does not" for name in ids if name not in known
            )

    def _problems_of_queries(self) -> Iterator[str]:
        known = set(self.gallery)
        searched = {group: set(ids) for group, ids in self.galleries.items()}
        subset = any(metric.startswith("recall_subset") for metric in self.metrics)
        for query in self.queries:
            if searched and query.group not in searched:
                yield f"query {query.id} is of the group {query.group!r}, which has no gallery"
                continue
            pool = searched[query.group] if searched else known
            if not query.texts or not query.targets:
                yield f"query {query.id} has no text or no target"
            if len(set(query.targets)) < len(query.targets):
                yield f"query {query.id} has a target twice"
            for name in query.targets + query.candidates:
                if name not in pool:
                    yield f"query {query.id}: {name!r} is not in its gallery"
            if query.reference not in (pool if self.exclude_reference else known):
                yield f"query {query.id}: the reference {query.reference!r} is not in its gallery"
            if self.exclude_reference and query.reference in query.targets:
                yield f"query {query.id} has its reference as target, which `exclude_reference` takes out"
            if subset and not set(query.targets) <= set(query.candidates):
                yield f"query {query.id} has a target that is not among its `candidates`"

    def gallery_of(self, group: str) -> tuple[str, ...]:
        """The image ids that queries of `group` search."""
        return self.galleries[group] if self.galleries else self.gallery
