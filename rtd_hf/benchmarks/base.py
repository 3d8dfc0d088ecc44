"""What a benchmark is: queries, galleries and the metrics to report. How to score one is the evaluator's business."""

from collections.abc import Callable, Mapping
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
        texts (`tuple[str, ...]`): Conditioning texts; the embeddings of several are averaged (FashionIQ's two orders).
        targets (`tuple[str, ...]`): The right answers, one or many (CIRCO).
        candidates (`tuple[str, ...]`, *optional*): The few images of the subset ranking (CIRR's group).
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
        ValueError: If a query names an image that its gallery does not hold, or has no text or no target.
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
            raise ValueError(f"Benchmark `{self.name}` has no queries.")
        known = set(self.gallery)
        if len(known) != len(self.gallery):
            raise ValueError(f"The gallery of `{self.name}` names {len(self.gallery) - len(known)} images twice.")
        searched = {group: set(ids) for group, ids in self.galleries.items()}
        problems = []
        for query in self.queries:
            pool = searched.get(query.group, known) if searched else known
            if not query.texts or not query.targets:
                problems.append(f"{query.id}: no text or no target")
            problems += [f"{query.id}: {i} is not in its gallery" for i in query.targets + query.candidates if i not in pool]
            if query.reference not in known:
                problems.append(f"{query.id}: reference {query.reference} is not in the gallery")
        if problems:
            shown = "; ".join(problems[:5])
            raise ValueError(f"{len(problems)} problems in the queries of `{self.name}`: {shown}. Check its files.")

    def gallery_of(self, group: str) -> tuple[str, ...]:
        """The image ids that queries of `group` search."""
        return self.galleries[group] if self.galleries else self.gallery
