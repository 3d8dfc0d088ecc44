"""What a benchmark is: queries, galleries and the metrics to report. How to score one is the evaluator's business."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..registry import Registry


BENCHMARKS = Registry("benchmark", "BENCHMARKS")
"""Benchmark loaders by name; each returns a [`CIRBenchmark`]."""

METRIC_KINDS = ("recall", "recall_subset", "recall_reverse", "map")


@dataclass(frozen=True, slots=True)
class CIRQuery:
    """One composed query. All images are named by their id in the gallery.

    Args:
        id (`str`): The query's own name.
        reference (`str`): The reference image.
        texts (`tuple[str, ...]`): The conditioning text, or the captions that say it together (FashionIQ's two). How
            those are joined is the projection's business ([`join_captions`]).
        targets (`tuple[str, ...]`): The right answers, one or many (CIRCO); none where a test server keeps them.
        candidates (`tuple[str, ...]`, *optional*): The few images of the subset ranking (CIRR's group) or of the
            query's own gallery (GeneCIS), the targets among them.
        group (`str`, *optional*): Names the gallery and the average the query belongs to (FashionIQ's categories).
        target_caption (`str`, *optional*): A full caption of the target, for the upper bound.
        aspects (`tuple[str, ...]`, *optional*): What the query asks about; each gets figures of its own (CIRCO).
    """

    id: str
    reference: str
    texts: tuple[str, ...]
    targets: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    group: str = ""
    target_caption: str = ""
    aspects: tuple[str, ...] = ()


@dataclass(frozen=True)
class CIRBenchmark:
    """A composed-image-retrieval benchmark, ready to be scored.

    Args:
        name (`str`): Prefix of its metrics, as in `shapes_recall@10`.
        queries (`list[CIRQuery]`): The queries.
        gallery (`tuple[str, ...]`): Ids of all images, references included.
        load_image (`Callable[[str], PIL.Image.Image]`): Opens an image by id.
        metrics (`tuple[str, ...]`): Of `recall@K`, `recall_subset@K` (among the candidates), `map@K`, and
            `recall_reverse@K` (the query among all queries, for its target).
        exclude_reference (`bool`, *optional*, defaults to `False`): Leave the reference out of the ranking, as CIRR.
        galleries (`Mapping[str, tuple[str, ...]]`, *optional*): Per group the ids searched; without it all search
            the whole gallery.
        search_candidates (`bool`, *optional*, defaults to `False`): Every query searches its own `candidates` and
            nothing else, as in GeneCIS. An id listed twice there is two images, of which the target is the first.
        hidden_targets (`bool`, *optional*, defaults to `False`): No query has targets: a server scores the answers.
        averages (`Mapping[str, tuple[str, ...]]`, *optional*): Means of several metrics by name, as CIRR's
            `{"average": ("recall@5", "recall_subset@1")}`.
        aspect_metrics (`tuple[str, ...]`, *optional*): Which of the `metrics` are also given per aspect.
        protocol (`Mapping`, *optional*): The choices that change figures, by name: what to print with every result.
            The sizes and whether the reference is ranked are added here.

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
    search_candidates: bool = False
    hidden_targets: bool = False
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aspect_metrics: tuple[str, ...] = ()
    protocol: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        if not self.queries:
            raise ValueError(f"Benchmark `{self.name}` has no queries. Check its files and its `num_queries`.")
        problems = [*self._problems_of_metrics(), *self._problems_of_names(), *self._problems_of_queries()]
        if problems:
            shown = "; ".join(problems[:5])
            raise ValueError(f"{len(problems)} problems in the benchmark `{self.name}`: {shown}. Check its files.")
        facts = {
            "exclude_reference": self.exclude_reference,
            "num_queries": self._per_group({name: len(rows) for name, rows in self.groups.items()}),
            "gallery_size": self._per_group({name: self._pool_size(rows) for name, rows in self.groups.items()}),
        }
        object.__setattr__(self, "protocol", {**self.protocol, **facts})  # the class is frozen to everyone else

    def _problems_of_metrics(self) -> Iterator[str]:
        for metric in self.metrics:
            if not re.fullmatch(rf"({'|'.join(METRIC_KINDS)})@[1-9]\d*", metric):
                kinds = ", ".join(f"`{kind}@K`" for kind in METRIC_KINDS)
                yield f"`metrics` names {metric!r}, but must be of {kinds}"
        for name, parts in {**self.averages, "aspect_metrics": self.aspect_metrics}.items():
            missing = [part for part in parts if part not in self.metrics]
            yield from (f"`{name}` needs {part!r}, which is not in `metrics`" for part in missing)

    def _problems_of_names(self) -> Iterator[str]:
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
        kinds = {metric.partition("@")[0] for metric in self.metrics}
        among_candidates = "recall_subset" in kinds or self.search_candidates
        targeted: set[tuple[str, str]] = set()
        for query in self.queries:
            if searched and query.group not in searched:
                yield f"query {query.id} is of the group {query.group!r}, which has no gallery"
                continue
            pool = searched[query.group] if searched else known
            yield from self._problems_of_targets(query)
            for name in query.targets + query.candidates:
                if name not in pool:
                    yield f"query {query.id}: {name!r} is not in its gallery"
            if query.reference not in (pool if self.exclude_reference and not self.search_candidates else known):
                yield f"query {query.id}: the reference {query.reference!r} is not in its gallery"
            if among_candidates and not set(query.targets) <= set(query.candidates):
                yield f"query {query.id} has a target that is not among its `candidates`"
            if among_candidates and not query.candidates:
                yield f"query {query.id} has no `candidates`, in which it is to be ranked"
            if "recall_reverse" in kinds and not self.hidden_targets:
                targets = {(query.group, name) for name in query.targets}
                if len(query.targets) != 1 or targets & targeted:
                    yield f"query {query.id} needs a target for itself alone, for `recall_reverse@K`"
                targeted |= targets

    def _problems_of_targets(self, query: CIRQuery) -> Iterator[str]:
        if not query.texts or not (query.targets or self.hidden_targets):
            yield f"query {query.id} has no text or no target"
        if query.targets and self.hidden_targets:
            yield f"query {query.id} has targets, although the benchmark says that they are hidden"
        if len(set(query.targets)) < len(query.targets):
            yield f"query {query.id} has a target twice"
        if self.exclude_reference and query.reference in query.targets:
            yield f"query {query.id} has its reference as target, which `exclude_reference` takes out"

    @property
    def groups(self) -> dict[str, list[int]]:
        """The rows of the queries of each group, in the order in which the groups come first."""
        groups: dict[str, list[int]] = {}
        for row, query in enumerate(self.queries):
            groups.setdefault(query.group, []).append(row)
        return groups

    def gallery_of(self, group: str) -> tuple[str, ...]:
        """The image ids that queries of `group` search."""
        return self.galleries[group] if self.galleries else self.gallery

    def _pool_size(self, rows: list[int]) -> int:
        if self.search_candidates:
            return max(len(self.queries[row].candidates) for row in rows)
        return len(self.gallery_of(self.queries[rows[0]].group))

    @staticmethod
    def _per_group(numbers: dict[str, int]) -> int | dict[str, int]:
        return numbers[""] if list(numbers) == [""] else numbers

    @property
    def empty_metrics(self) -> list[str]:
        """The recalls that any ranking brings to 100 %, because the smallest gallery holds no more than K images."""
        sizes = self.protocol["gallery_size"]
        queries = self.protocol["num_queries"]
        gallery = min(sizes.values() if isinstance(sizes, dict) else [sizes]) - self.exclude_reference
        subset = min((len({*query.candidates} - self._excluded(query)) for query in self.queries), default=0)
        reverse = min(queries.values() if isinstance(queries, dict) else [queries])
        limits = {"recall": gallery, "recall_subset": subset, "recall_reverse": reverse}
        parts = [(metric, *metric.split("@")) for metric in self.metrics]
        return [metric for metric, kind, k in parts if kind in limits and int(k) >= limits[kind]]

    def _excluded(self, query: CIRQuery) -> set[str]:
        return {query.reference} if self.exclude_reference else set()

    def without_images(self, missing: Collection[str]) -> "CIRBenchmark":
        """The benchmark that is left without some pictures: other denominators, and hence other figures.

        Queries whose reference or any of whose targets is missing go; the others lose missing candidates. The numbers
        of pictures and queries left out stand in the new `protocol`.

        Args:
            missing (`Collection[str]`): Ids of the pictures to do without.

        Returns:
            [`CIRBenchmark`]

        Raises:
            ValueError: If no query is left.
        """
        missing = set(missing)
        queries = [
            replace(query, candidates=tuple(i for i in query.candidates if i not in missing))
            for query in self.queries
            if query.reference not in missing and missing.isdisjoint(query.targets)
        ]
        protocol = {**self.protocol}
        protocol["left_out"] = {
            "images": len(missing & set(self.gallery)),
            "queries": len(self.queries) - len(queries),
        }
        if "complete" in protocol:
            protocol["complete"] = False
        return replace(
            self,
            queries=queries,
            gallery=tuple(i for i in self.gallery if i not in missing),
            galleries={group: tuple(i for i in ids if i not in missing) for group, ids in self.galleries.items()},
            protocol=protocol,
        )

    def describe(self) -> str:
        """The protocol in one line, to stand beside every figure."""
        parts = []
        for name, value in self.protocol.items():
            if isinstance(value, Mapping):
                value = " ".join(f"{key}:{item}" for key, item in value.items())
            elif isinstance(value, (tuple, list)):
                value = "/".join(map(str, value))
            elif isinstance(value, str) and value != value.strip():
                value = repr(value)
            parts.append(f"{name}={value}")
        return f"{self.name}: " + ", ".join(parts)
