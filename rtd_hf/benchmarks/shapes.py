"""The offline world as a benchmark, three ways: one target, many targets, categories with two captions.

Every picture shows a combination that no training pair, caption or triplet contains. Galleries are made of the
queries' references and targets and of hard distractors: near-duplicates that differ from a target, or from the
reference, by one edit. All is drawn from a seed, so the same arguments give the same benchmark everywhere.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from ..shapes.captions import ASPECTS, describe_fully
from ..shapes.edits import ATTRIBUTES, Edit, conditioning_text, sample_edit, sample_edits
from ..shapes.pictures import picture
from ..shapes.scenes import Scene, sample_scene
from .base import BENCHMARKS, CIRBenchmark, CIRQuery


_RANKS = ("recall@1", "recall@5", "recall@10", "recall@50", "map@10")


class _Gallery:
    """Pictures under construction: scenes in order, each with the seed it is drawn with."""

    def __init__(self, rng: random.Random):
        self.rng, self.rows, self.first = rng, [], {}

    def add(self, scene: Scene, *, again: bool = False) -> str:
        """The id of the picture of a scene; drawn anew if there is none yet, or if `again` asks for a second one."""
        if scene not in self.first or again:
            self.first.setdefault(scene, len(self.rows))
            self.rows.append((scene, self.rng.getrandbits(63)))
            return f"{len(self.rows) - 1:05d}"
        return f"{self.first[scene]:05d}"

    def load_image(self, image_id: str):
        scene, seed = self.rows[int(image_id)]
        return picture(scene, seed)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{index:05d}" for index in range(len(self.rows)))


def _draw_query(rng: random.Random, number: int) -> list[Edit]:
    """One change of a held-out scene, or two of which the second does not wipe out the first."""
    while True:
        edits = sample_edits(sample_scene(rng, "held_out"), rng, number)
        if number == 1 or _first_lasts(*edits):
            return edits


def _first_lasts(first: Edit, second: Edit) -> bool:
    if second.kind == "remove" and first.kind in ATTRIBUTES:
        return second.after.objects[0] not in first.before.objects  # else the object that was changed has gone
    return not (first.kind == "move" and second.kind in ("add", "count", "remove"))


def _leaves_place_open(edits: list[Edit]) -> bool:
    """Whether the texts do not say where the object that is left over stands (after a removal, or of a group)."""
    is_open = False
    for edit in edits:
        is_open = edit.kind != "move" and (is_open or edit.before.kind != "single")
    return is_open and edits[-1].after.kind == "single"


def _blur(scene: Scene, *, size: bool, place: bool) -> Scene:
    """Blots out the sizes of a scene's objects, or the place of a lone one, so that scenes compare without them."""
    if size:
        scene = replace(scene, objects=tuple(replace(item, size="small") for item in scene.objects))
    return replace(scene, position="centre") if place and scene.kind == "single" else scene


def _others(edits: list[Edit], number: int, draw: Callable[[int], Scene]) -> list[Scene]:
    """Different scenes, the i-th of them out of `draw(i)`, that are neither the reference nor a right answer."""
    reference, target, place = edits[0].before, edits[-1].after, _leaves_place_open(edits)
    right = _blur(target, size=False, place=place)
    found: dict[Scene, None] = {}
    while len(found) < number:
        scene = draw(len(found))
        if scene != reference and _blur(scene, size=False, place=place) != right:
            found[scene] = None
    return list(found)


def _distractors(edits: list[Edit], number: int, rng: random.Random) -> list[Scene]:
    """Other scenes one edit away: about three from the target for every two from the reference."""
    reference, target = edits[0].before, edits[-1].after
    return _others(edits, number, lambda place: sample_edit(target if place % 5 < 3 else reference, rng).after)


def _near_duplicates(edits: list[Edit], number: int, rng: random.Random) -> list[Scene]:
    """Scenes that look like the reference, one edit and two edits away in turn."""
    return _others(edits, number, lambda place: sample_edits(edits[0].before, rng, 1 + place % 2)[-1].after)


def _one_target(name: str, num_queries: int, seed: int, near_duplicates: int) -> CIRBenchmark:
    rng, extra = random.Random(f"shapes {seed}"), random.Random(f"shapes near-duplicates {seed}")
    gallery, queries, drafts = _Gallery(rng), [], []
    for number in range(num_queries):
        edits = _draw_query(rng, 2 if number % 5 == 4 else 1)
        target = edits[-1].after
        target_id = gallery.add(target)
        candidates = [gallery.add(scene) for scene in _distractors(edits, 5, rng)]
        drafts.append(edits)
        queries.append(
            CIRQuery(
                id=f"{number:05d}",
                reference=gallery.add(edits[0].before),
                texts=(conditioning_text(edits),),
                targets=(target_id,),
                candidates=(target_id, *candidates),
                target_caption=describe_fully(target, rng),
            )
        )
    for edits in drafts:
        for scene in _near_duplicates(edits, near_duplicates, extra):
            gallery.add(scene)
    return CIRBenchmark(
        name=name,
        queries=queries,
        gallery=gallery.ids,
        load_image=gallery.load_image,
        metrics=(*_RANKS, "recall_subset@1", "recall_subset@2", "recall_subset@3"),
        exclude_reference=True,
    )


@BENCHMARKS.register("shapes")
def load_shapes(root: str | None = None, *, num_queries: int = 400, seed: int = 0) -> CIRBenchmark:
    """One target per query, as CIRR: the reference is not ranked, and a subset holds five hard distractors.

    The gallery also holds eight near-duplicates of each reference, the usual wrong answer of an encoder that sees the
    picture and overlooks the text; [`load_shapes_sparse`] has the same queries without them. An object that is left
    over after a removal stands in the centre, though the text does not say so; no distractor drawn for a query differs
    from its target by that alone.

    Args:
        root (`str`, *optional*): Not used: the pictures are drawn.
        num_queries (`int`, *optional*, defaults to 400): Queries; a fifth of them asks for two changes.
        seed (`int`, *optional*, defaults to 0): Another seed gives another benchmark of the same kind.

    Returns:
        [`CIRBenchmark`] named `shapes`, with about twelve pictures a query.
    """
    return _one_target("shapes", num_queries, seed, near_duplicates=8)


@BENCHMARKS.register("shapes_sparse")
def load_shapes_sparse(root: str | None = None, *, num_queries: int = 400, seed: int = 0) -> CIRBenchmark:
    """The queries and subsets of [`load_shapes`] in a gallery without the near-duplicates of the references.

    Args:
        root (`str`, *optional*): Not used: the pictures are drawn.
        num_queries (`int`, *optional*, defaults to 400): Queries; a fifth of them asks for two changes.
        seed (`int`, *optional*, defaults to 0): Another seed gives another benchmark of the same kind.

    Returns:
        [`CIRBenchmark`] named `shapes_sparse`, with about six pictures a query.
    """
    return _one_target("shapes_sparse", num_queries, seed, near_duplicates=0)


def _resize(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, objects=tuple(replace(item, size=rng.choice(("small", "large"))) for item in scene.objects))


@BENCHMARKS.register("shapes_many")
def load_shapes_many(root: str | None = None, *, num_queries: int = 300, seed: int = 0) -> CIRBenchmark:
    """Many targets per query, as CIRCO: every picture that fits counts.

    What the text leaves open is open: the sizes of all objects, unless the text asks for one (then only the sizes of
    the target count), and the place of an object that is left over. The reference stays in the ranking.

    Args:
        root (`str`, *optional*): Not used: the pictures are drawn.
        num_queries (`int`, *optional*, defaults to 300): Queries.
        seed (`int`, *optional*, defaults to 0): Another seed gives another benchmark of the same kind.

    Returns:
        [`CIRBenchmark`] named `shapes_many`; `targets[0]` is drawn from the very scene the edit leads to.
    """
    rng = random.Random(f"shapes_many {seed}")
    gallery, drafts = _Gallery(rng), []
    for number in range(num_queries):
        reference = sample_scene(rng, "held_out")
        edit = sample_edit(reference, rng, aspects=frozenset(ASPECTS) - {"size"})
        target_id = gallery.add(edit.after)
        for _ in range(rng.randint(0, 5)):
            gallery.add(edit.after if edit.kind == "size" else _resize(edit.after, rng), again=True)
        for scene in _distractors([edit], 5, rng):
            gallery.add(scene)
        drafts.append((f"{number:05d}", gallery.add(reference), edit, target_id, describe_fully(edit.after, rng)))

    queries, images = [], list(zip(gallery.ids, gallery.rows, strict=True))
    alike: dict[tuple, dict[Scene, list[str]]] = {}
    for query_id, reference_id, edit, target_id, target_caption in drafts:
        blurred = {"size": edit.kind != "size", "place": _leaves_place_open([edit])}
        if tuple(blurred.values()) not in alike:
            groups = alike[tuple(blurred.values())] = {}
            for image_id, (scene, _) in images:
                groups.setdefault(_blur(scene, **blurred), []).append(image_id)
        fits = alike[tuple(blurred.values())][_blur(edit.after, **blurred)]
        targets = (target_id, *(image_id for image_id in fits if image_id != target_id))
        queries.append(CIRQuery(query_id, reference_id, (edit.text,), targets, target_caption=target_caption))
    return CIRBenchmark(
        name="shapes_many",
        queries=queries,
        gallery=gallery.ids,
        load_image=gallery.load_image,
        metrics=("map@5", "map@10", "map@25", "map@50", "recall@5", "recall@10"),
    )


_SAME_KIND = {
    "single": ("shape", "colour", "size", "texture", "background", "move"),
    "group": ("shape", "colour", "size", "texture", "background", "count"),
    "pair": ("shape", "colour", "size", "texture", "background", "move"),
}


def _two_edits_within(kind: str, rng: random.Random) -> list[Edit]:
    """A reference of a kind of scene with two different edits after which it is still of that kind."""
    while True:
        edits = sample_edits(sample_scene(rng, "held_out", kind), rng, 2)
        if all(edit.after.kind == kind and edit.kind in _SAME_KIND[kind] for edit in edits):
            return edits


@BENCHMARKS.register("shapes_categories")
def load_shapes_categories(root: str | None = None, *, num_queries: int = 600, seed: int = 0) -> CIRBenchmark:
    """Three categories with two captions per query, as FashionIQ: lone objects, groups, pairs.

    Each caption asks for one change; the projection says how the two are joined. Each category has a gallery of its
    own, and the reference stays in it.

    Args:
        root (`str`, *optional*): Not used: the pictures are drawn.
        num_queries (`int`, *optional*, defaults to 600): Queries, a third in each category.
        seed (`int`, *optional*, defaults to 0): Another seed gives another benchmark of the same kind.

    Returns:
        [`CIRBenchmark`] named `shapes_categories` with the groups `single`, `group` and `pair`.
    """
    rng = random.Random(f"shapes_categories {seed}")
    gallery, queries, galleries = _Gallery(rng), [], {}
    for category in _SAME_KIND:
        members: dict[str, None] = {}
        for number in range(num_queries // len(_SAME_KIND)):
            edits = _two_edits_within(category, rng)
            reference, target = edits[0].before, edits[-1].after
            reference_id, target_id = gallery.add(reference), gallery.add(target)
            near = [gallery.add(scene) for scene in _distractors(edits, 4, rng) if scene.kind == category]
            members.update(dict.fromkeys((reference_id, target_id, *near)))
            queries.append(
                CIRQuery(
                    id=f"{category}-{number:05d}",
                    reference=reference_id,
                    texts=(edits[0].text, edits[1].text),
                    targets=(target_id,),
                    group=category,
                    target_caption=describe_fully(target, rng),
                )
            )
        galleries[category] = tuple(members)
    return CIRBenchmark(
        name="shapes_categories",
        queries=queries,
        gallery=gallery.ids,
        load_image=gallery.load_image,
        metrics=("recall@10", "recall@50"),
        galleries=galleries,
    )
