import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_shapes import only_change
from world_reader import follow, held_out_mentions, read_caption

from rtd_hf.benchmarks import (
    BENCHMARKS,
    SOURCES,
    CIRBenchmark,
    CIRQuery,
    load_shapes,
    load_shapes_categories,
    load_shapes_many,
)
from rtd_hf.benchmarks.shapes import _first_lasts
from rtd_hf.registry import RegistryError
from rtd_hf.shapes.edits import Edit
from rtd_hf.shapes.scenes import Object, Scene


ROOT = Path(__file__).resolve().parents[1]
# Every benchmark that needs no files. The others are in test_benchmark_files.py.
OFFLINE = sorted(set(BENCHMARKS) - set(SOURCES))


def facts(benchmark: CIRBenchmark, pictures: int = 40) -> str:
    """A digest of all a benchmark is, with some of its pictures."""
    ids = [*benchmark.gallery[:pictures], *benchmark.gallery[-pictures:]]
    pixels = [np.asarray(benchmark.load_image(image_id)).tobytes() for image_id in ids]
    told = (benchmark.name, benchmark.queries, benchmark.gallery, benchmark.metrics, benchmark.exclude_reference)
    return hashlib.sha256(repr((told, dict(benchmark.galleries), pixels)).encode()).hexdigest()


def scenes_of(benchmark: CIRBenchmark) -> dict[str, Scene]:
    """What the pictures of an offline benchmark show, by their ids."""
    rows = benchmark.load_image.__self__.rows
    return {image_id: scene for image_id, (scene, _) in zip(benchmark.gallery, rows, strict=True)}


def follow_all(text: str, scene: Scene) -> Scene:
    for clause in text.split(" and "):
        scene = follow(clause, scene)
    return scene


# ---------------------------------------- the contract
def test_the_offline_benchmarks_are_registered():
    assert {"shapes", "shapes_many", "shapes_categories"} <= set(BENCHMARKS)
    with pytest.raises(RegistryError, match="Unknown benchmark `shape`. Did you mean `shapes`?"):
        BENCHMARKS["shape"]


@pytest.mark.parametrize("name", OFFLINE)
def test_contract(name):
    benchmark = BENCHMARKS[name](num_queries=60)
    assert benchmark.name == name and len(benchmark.queries) == 60
    assert len({query.id for query in benchmark.queries}) == 60
    assert len(set(benchmark.gallery)) == len(benchmark.gallery) > 100
    for query in benchmark.queries:
        pool = benchmark.gallery_of(query.group)
        assert set(query.targets) <= set(pool) and set(query.candidates) <= set(pool)
        assert query.reference in pool and query.reference not in query.targets
        assert query.texts and all(text and text == text.strip() and "$" not in text for text in query.texts)
        assert query.target_caption
    for image_id in benchmark.gallery[:5]:
        image = benchmark.load_image(image_id)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(benchmark.load_image(image_id)))
    used = {image_id for ids in benchmark.galleries.values() for image_id in ids} or set(benchmark.gallery)
    assert used <= set(benchmark.gallery)


@pytest.mark.parametrize("name", OFFLINE)
def test_the_seed_alone_decides(name):
    load = BENCHMARKS[name]
    assert facts(load(num_queries=30)) == facts(load(num_queries=30))
    first, other = load(num_queries=30, seed=0), load(num_queries=30, seed=1)
    assert facts(first) != facts(other)
    same = sum(a.texts == b.texts for a, b in zip(first.queries, other.queries, strict=True))
    assert same < 6


def test_another_process_draws_the_same_benchmarks():
    code = (
        "import json, test_benchmarks as t; print(json.dumps({n: t.facts(t.BENCHMARKS[n](num_queries=30)) "
        "for n in t.OFFLINE}))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {name: facts(BENCHMARKS[name](num_queries=30)) for name in OFFLINE}


@pytest.mark.parametrize("name", ["shapes", "shapes_many", "shapes_categories"])
def test_every_picture_is_held_out_and_captions_tell_the_target(name):
    benchmark = BENCHMARKS[name]()
    scenes = scenes_of(benchmark)
    assert {scene.split for scene in scenes.values()} == {"held_out"}
    for query in benchmark.queries:
        assert read_caption(query.target_caption).scene() == scenes[query.targets[0]]
        assert held_out_mentions(query.target_caption)


# ---------------------------------------- one target
@pytest.fixture(scope="module")
def one_target() -> CIRBenchmark:
    return load_shapes(num_queries=500)


def test_shapes_asks_for_its_target_and_no_other_picture_shows_it(one_target):
    scenes = scenes_of(one_target)
    shown = Counter(scenes.values())
    assert len(one_target.queries) == 500 and one_target.exclude_reference
    for query in one_target.queries:
        (target,), (text,) = query.targets, query.texts
        assert follow_all(text, scenes[query.reference]) == scenes[target]
        assert shown[scenes[target]] == 1
    assert sum(" and " in query.texts[0] for query in one_target.queries) == 100


def is_one_edit(before: Scene, after: Scene) -> bool:
    try:
        return before != after and only_change(before, after) is not None
    except AssertionError:
        return False


def leaves_place_open(text: str, scene: Scene) -> bool:
    """Whether an object is left over of which the text does not say where it stands."""
    is_open = False
    for clause in text.split(" and "):
        after = follow(clause, scene)
        is_open = only_change(scene, after) != "move" and (is_open or scene.kind != "single")
        scene = after
    return is_open and scene.kind == "single"


def test_shapes_has_five_hard_distractors_in_every_subset(one_target):
    scenes = scenes_of(one_target)
    near_target = num_open = 0
    for query in one_target.queries:
        reference, target = scenes[query.reference], scenes[query.targets[0]]
        assert len(query.candidates) == len(set(query.candidates)) == 6
        assert query.candidates[0] == query.targets[0] and query.reference not in query.candidates
        for image_id in query.candidates[1:]:
            distractor = scenes[image_id]
            near = is_one_edit(target, distractor)
            assert near or is_one_edit(reference, distractor), (reference, target, distractor)
            near_target += near
            if leaves_place_open(query.texts[0], reference):
                assert dataclasses.replace(distractor, position=target.position) != target
                num_open += 1
    assert near_target / (5 * len(one_target.queries)) > 0.55 and num_open > 100


def test_shapes_has_near_duplicates_of_every_reference():
    """Eight of them, of which every second is one edit away and none but the target is what was asked for."""
    benchmark = load_shapes(num_queries=40)
    scenes = scenes_of(benchmark)
    assert len(benchmark.gallery) > 13 * 40
    for query in benchmark.queries:
        reference = scenes[query.reference]
        others = [image_id for image_id in benchmark.gallery if image_id not in query.candidates]
        assert sum(is_one_edit(reference, scenes[image_id]) for image_id in others) >= 2
        assert sum(is_one_edit(reference, scene) for scene in scenes.values()) >= 4


def test_sparse_is_the_same_without_the_near_duplicates():
    dense, sparse = BENCHMARKS["shapes"](num_queries=30, seed=2), BENCHMARKS["shapes_sparse"](num_queries=30, seed=2)
    assert sparse.queries == dense.queries and len(sparse.gallery) <= 7 * 30 < 12 * 30 < len(dense.gallery)
    assert dense.gallery[: len(sparse.gallery)] == sparse.gallery
    assert all(scenes_of(dense)[image_id] == scene for image_id, scene in scenes_of(sparse).items())
    assert (dense.exclude_reference, dense.metrics) == (sparse.exclude_reference, sparse.metrics)


def test_one_edit_is_one_edit():
    star, ring = Object("star", "red", "small", "plain"), Object("ring", "blue", "large", "dotted")
    single, pair = Scene("grey", (star,), position="left"), Scene("grey", (star, ring), relation="above")
    assert is_one_edit(single, pair) and is_one_edit(pair, dataclasses.replace(pair, relation="beside"))
    assert not is_one_edit(single, single) and not is_one_edit(pair, single)  # what is left over is in the centre
    both = dataclasses.replace(single, background="navy", position="top")
    assert not is_one_edit(single, both)
    assert not is_one_edit(single, Scene("grey", (dataclasses.replace(star, size="large", colour="blue"),), "left"))


def test_no_change_of_a_query_is_wiped_out(one_target):
    """Each clause matters: without it the text would lead elsewhere, or could not be understood."""
    scenes = scenes_of(one_target)
    double = [query for query in one_target.queries if " and " in query.texts[0]]
    for query in double:
        first, second = query.texts[0].split(" and ")
        for clause in (first, second):
            try:
                assert follow(clause, scenes[query.reference]) != scenes[query.targets[0]], query
            except ValueError:
                assert clause == second


def test_wiped_out_changes_are_told():
    star, ring = Object("star", "red", "small", "plain"), Object("ring", "blue", "large", "dotted")
    single, pair = Scene("grey", (star,), position="left"), Scene("grey", (star, ring), relation="above")
    large = dataclasses.replace(pair, objects=(dataclasses.replace(star, size="large"), ring))
    resize = Edit("size", pair, large, "make the star large")
    no_star = Edit("remove", large, Scene("grey", (ring,), position="centre"), "remove the star")
    no_ring = Edit("remove", large, Scene("grey", (large.objects[0],), position="centre"), "remove the ring")
    assert not _first_lasts(resize, no_star) and _first_lasts(resize, no_ring)
    move = Edit("move", single, dataclasses.replace(single, position="top"), "is at the top")
    three = Edit("count", move.after, Scene("grey", (star,), count=3), "has three stars")
    assert not _first_lasts(move, three) and _first_lasts(three, dataclasses.replace(resize, kind="background"))


# ---------------------------------------- many targets
def blurred(scene: Scene, *, sizes: bool, place: bool) -> Scene:
    """A scene without its sizes, and without the place of a lone object."""
    if sizes:
        scene = dataclasses.replace(scene, objects=tuple(dataclasses.replace(o, size="") for o in scene.objects))
    return dataclasses.replace(scene, position=None) if place else scene


def test_shapes_many_counts_every_picture_that_fits():
    """Brute force over all pictures, from the reference and the text alone."""
    benchmark = load_shapes_many(num_queries=200)
    scenes = scenes_of(benchmark)
    kinds = Counter()
    for query in benchmark.queries:
        reference, target = scenes[query.reference], scenes[query.targets[0]]
        asked = follow_all(query.texts[0], reference)
        kinds[kind := only_change(reference, target)] += 1
        open_points = {
            "sizes": kind != "size",  # nor is the size of an added object said
            "place": kind == "remove" or (kind == "count" and target.count == 1),
        }
        if kind == "add":
            assert None in [item.size for item in asked.objects]
        else:
            assert asked == target
        fits = [i for i in benchmark.gallery if blurred(scenes[i], **open_points) == blurred(asked, **open_points)]
        assert sorted(query.targets) == fits
    assert len(kinds) == 9


def test_shapes_many_has_many_targets():
    benchmark = load_shapes_many(num_queries=300)
    numbers = [len(query.targets) for query in benchmark.queries]
    assert not benchmark.exclude_reference and len(benchmark.queries) == 300
    assert min(numbers) == 1 and 8 < max(numbers) < 30 and 3 < sum(numbers) / 300 < 5
    scenes = scenes_of(benchmark)
    assert max(Counter(scenes.values()).values()) > 1  # several pictures of one scene
    pictures = {np.asarray(benchmark.load_image(image_id)).tobytes() for image_id in benchmark.gallery[:300]}
    assert len(pictures) == 300  # but no picture twice


# ---------------------------------------- categories
def test_shapes_categories():
    benchmark = load_shapes_categories(num_queries=600)
    scenes = scenes_of(benchmark)
    assert Counter(query.group for query in benchmark.queries) == {"single": 200, "group": 200, "pair": 200}
    assert benchmark.galleries.keys() == {"single", "group", "pair"} and not benchmark.exclude_reference
    seen: set[str] = set()
    for category, ids in benchmark.galleries.items():
        assert len(ids) > 600 and len(set(ids)) == len(ids) and not seen & set(ids)
        assert {scenes[image_id].kind for image_id in ids} == {category}
        assert len({scenes[image_id] for image_id in ids}) == len(ids)  # one picture a scene: one target a query
        seen |= set(ids)
    understood = 0
    for query in benchmark.queries:
        first, second = query.texts
        assert len(query.targets) == 1
        reference, target = scenes[query.reference], scenes[query.targets[0]]
        assert follow_all(f"{first} and {second}", reference) == target
        # The other way round an object may be named as it looks after the other change (one in ten queries), but the
        # text never leads to another scene.
        with contextlib.suppress(ValueError):
            assert follow_all(f"{second} and {first}", reference) == target
            understood += 1
    assert understood > 0.85 * len(benchmark.queries)


# ---------------------------------------- validation
def make(**options) -> CIRBenchmark:
    """A sound benchmark of two queries and four images, with changes."""
    queries = [
        CIRQuery("one", "a", ("is red",), ("b",), ("b", "c")),
        CIRQuery("two", "b", ("is blue", "is small"), ("c", "d"), ("c", "d")),
    ]
    sound = {
        "name": "toy",
        "queries": queries,
        "gallery": ("a", "b", "c", "d"),
        "load_image": str,
        "metrics": ("recall@1", "map@5", "recall_subset@2"),
    }
    return CIRBenchmark(**{**sound, **options})


def query(**changes) -> list[CIRQuery]:
    return [dataclasses.replace(CIRQuery("one", "a", ("is red",), ("b",), ("b", "c")), **changes)]


def test_a_sound_benchmark():
    assert make().gallery_of("") == ("a", "b", "c", "d")
    grouped = make(queries=query(group="x"), galleries={"x": ("b", "c")})
    assert grouped.gallery_of("x") == ("b", "c")
    assert make(exclude_reference=True).exclude_reference
    hidden = make(queries=query(targets=()), hidden_targets=True)
    assert hidden.hidden_targets and hidden.groups == {"": [0]}


def test_the_protocol_holds_the_sizes():
    benchmark = make(protocol={"split": "val", "joiner": " and ", "tasks": ("x", "y"), "num_queries": 99})
    sizes = {"exclude_reference": False, "num_queries": 2, "gallery_size": 4}
    assert benchmark.protocol == {"split": "val", "joiner": " and ", "tasks": ("x", "y"), **sizes}
    assert benchmark.describe() == (
        "toy: split=val, joiner=' and ', tasks=x/y, num_queries=2, exclude_reference=False, gallery_size=4"
    )
    queries = query(group="x") + query(id="two", group="y") + query(id="three", group="y")
    grouped = make(queries=queries, galleries={"x": ("b", "c"), "y": ("a", "b", "c")})
    assert grouped.protocol["num_queries"] == {"x": 1, "y": 2}
    assert grouped.protocol["gallery_size"] == {"x": 2, "y": 3}
    assert grouped.describe().endswith("num_queries=x:1 y:2, gallery_size=x:2 y:3")
    own = make(queries=query(candidates=("b", "c", "b")), metrics=("recall@1",), search_candidates=True)
    assert own.protocol["gallery_size"] == 3


def test_metrics_that_say_nothing():
    def empty(**options):
        return make(**options).empty_metrics

    assert empty(metrics=("recall@3", "recall@4", "map@9")) == ["recall@4"]
    assert empty(metrics=("recall@2", "recall@3"), exclude_reference=True) == ["recall@3"]
    assert empty(metrics=("recall_subset@1", "recall_subset@2")) == ["recall_subset@2"]
    assert empty(metrics=("recall_reverse@1", "recall_reverse@2"), queries=query()) == [
        "recall_reverse@1",
        "recall_reverse@2",
    ]
    grouped = {"queries": query(group="x"), "galleries": {"x": ("b", "c")}}
    assert empty(metrics=("recall@1", "recall@2"), **grouped) == ["recall@2"]


def test_without_some_images():
    benchmark = make(queries=[*make().queries, CIRQuery("three", "d", ("is far",), ("a",), ("a", "b", "c"))])
    part = benchmark.without_images({"b", "not there"})
    assert [q.id for q in part.queries] == ["three"] and part.gallery == ("a", "c", "d")
    assert part.queries[0].candidates == ("a", "c")
    assert part.protocol["left_out"] == {"images": 1, "queries": 2}
    assert (part.protocol["num_queries"], part.protocol["gallery_size"]) == (1, 3)
    assert benchmark.without_images(()).queries == benchmark.queries
    assert make(protocol={"complete": True}).without_images({"d"}).protocol["complete"] is False
    with pytest.raises(ValueError, match="has no queries"):
        benchmark.without_images({"a", "b"})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queries": []}, "`toy` has no queries"),
        ({"gallery": ("a", "b", "c", "d", "b")}, "`gallery` holds 'b' 2 times"),
        ({"queries": query() + query()}, "`queries` holds 'one' 2 times"),
        ({"queries": query(targets=("z",), candidates=("z",))}, "query one: 'z' is not in its gallery"),
        ({"queries": query(candidates=("b", "z"))}, "query one: 'z' is not in its gallery"),
        ({"queries": query(reference="z")}, "query one: the reference 'z' is not in its gallery"),
        ({"queries": query(texts=())}, "query one has no text or no target"),
        ({"queries": query(targets=())}, "query one has no text or no target"),
        ({"queries": query(targets=("b", "b"))}, "query one has a target twice"),
        ({"queries": query(targets=("b", "d"))}, "query one has a target that is not among its `candidates`"),
        ({"queries": query(targets=("a",), candidates=("a",)), "exclude_reference": True}, "its reference as target"),
        ({"queries": query(group="x"), "galleries": {"y": ("b", "c")}}, "of the group 'x', which has no gallery"),
        ({"queries": query(group="x"), "galleries": {"x": ("b", "c", "c")}}, r"`galleries\['x'\]` holds 'c' 2 times"),
        ({"queries": query(group="x"), "galleries": {"x": ("b", "c", "z")}}, "holds 'z', `gallery` does not"),
        ({"queries": query(group="x"), "galleries": {"x": ("c",)}}, "query one: 'b' is not in its gallery"),
        (
            {"queries": query(group="x"), "galleries": {"x": ("b", "c")}, "exclude_reference": True},
            "the reference 'a' is not in its gallery",
        ),
        ({"metrics": ("recall@1", "accuracy")}, "`metrics` names 'accuracy', but must be of `recall@K`"),
        ({"metrics": ("recall@0",)}, "`metrics` names 'recall@0'"),
        (
            {"queries": query(), "hidden_targets": True},
            "has targets, although the benchmark says that",
        ),
        ({"queries": query(candidates=()), "metrics": ("recall@1",), "search_candidates": True}, "no `candidates`"),
        ({"queries": query(candidates=("c",)), "search_candidates": True}, "not among its `candidates`"),
        ({"queries": query() + query(id="two"), "metrics": ("recall_reverse@1",)}, "a target for itself alone"),
        ({"queries": query(targets=("b", "c")), "metrics": ("recall_reverse@1",)}, "a target for itself alone"),
        ({"averages": {"mean": ("recall@1", "recall@9")}}, "`mean` needs 'recall@9', which is not in `metrics`"),
        ({"aspect_metrics": ("map@10",)}, "`aspect_metrics` needs 'map@10', which is not in `metrics`"),
    ],
)
def test_what_is_unsound(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**options)
    assert "`toy`" in str(caught.value)


def test_all_problems_are_counted_and_five_are_shown():
    queries = [CIRQuery(str(i), "a", ("is red",), (f"z{i}",)) for i in range(8)]
    with pytest.raises(ValueError, match="8 problems in the benchmark `toy`") as caught:
        make(queries=queries, metrics=("recall@1",))
    assert str(caught.value).count("is not in its gallery") == 5
