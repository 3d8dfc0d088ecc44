import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
import types
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    Trainer,
)
from world_models import random_clip, world_tokenizer
from world_reader import (
    NUMBER_OF,
    SIZE_OF,
    Reading,
    Thing,
    find,
    follow,
    held_out_mentions,
    mentions,
    read_caption,
)

from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.projections import PROJECTIONS
from rtd_hf.prompts import PromptTokenizer
from rtd_hf.shapes import ASSETS, captions, clip, edits, scoring
from rtd_hf.shapes.captions import ASPECTS, describe_fully, describe_scene, sample_aspects, with_article
from rtd_hf.shapes.edits import EDIT_KINDS, sample_edit, sample_edits, sample_triplet
from rtd_hf.shapes.pairs import ScenePairs
from rtd_hf.shapes.phrases import world_phrases
from rtd_hf.shapes.pictures import IMAGE_SIZE, draw_scene, picture
from rtd_hf.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    TEXTURES,
    Object,
    Scene,
    is_held_out,
    sample_scene,
)


ROOT = Path(__file__).resolve().parents[1]
ALL = frozenset(ASPECTS)
KINDS = ("single", "group", "pair")


def load_example(name: str):
    """An example script as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses are pickled with the checkpoints
    spec.loader.exec_module(module)
    return module


def digest(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def world_digests() -> dict[str, str]:
    """What the world draws for a seed, part by part."""
    rng = random.Random("digest")
    scenes = [sample_scene(rng, split) for split in ("train", "held_out") for _ in range(100)]
    changes = [sample_edit(scene, rng) for scene in scenes]
    pairs = ScenePairs(20, seed=3)
    tokenizer = clip.build_tokenizer(clip.world_texts(4000, seed=0))
    return {
        "held_out": digest(sorted(HELD_OUT)),
        "scenes": digest(scenes),
        "captions": digest([describe_scene(scene, rng) for scene in scenes]),
        "edits": digest([(edit.kind, edit.after, edit.text) for edit in changes]),
        "triplets": digest([sample_triplet(rng) for _ in range(100)]),
        "pairs": digest([(pair["caption"], pair["scene"]) for pair in map(pairs.__getitem__, range(20))]),
        "pictures": digest([draw_scene(scene, seed).tobytes() for seed, scene in enumerate(scenes[:50])]),
        "tokenizer": digest(sorted(tokenizer.get_vocab().items())),
    }


def combination(item) -> tuple:
    return (item.shape, item.colour, item.texture)


# ---------------------------------------- the same world
def test_held_out_is_a_quarter_and_always_the_same():
    assert len(HELD_OUT) == len(SHAPES) * len(COLOURS) * len(TEXTURES) // 4 == 48
    for shape in SHAPES:
        for texture in TEXTURES:
            assert sum((shape, colour, texture) in HELD_OUT for colour in COLOURS) == 2
    assert digest(sorted(HELD_OUT)).startswith("4d6a9ee0a5ba99f1")


def test_the_shipped_models_were_made_of_this_very_world():
    """Whoever changes what a seed draws has to train the shipped models anew; then these digests change too."""
    drawn = world_digests()
    assert {name: drawn[name][:16] for name in ("scenes", "captions", "edits", "triplets", "pairs")} == PINNED


PINNED = {
    "scenes": "28cc64f9db8243d7",
    "captions": "ce5f140ca66fe727",
    "edits": "96cada028a137957",
    "triplets": "4e23069e56dbd03c",
    "pairs": "811d15a2e43c6ed0",
}


def test_another_process_draws_the_same_world():
    code = "import json, test_shapes; print(json.dumps(test_shapes.world_digests()))"
    env = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == world_digests()


def test_another_seed_is_another_world():
    assert sample_scene(random.Random(1)) != sample_scene(random.Random(2))
    pairs = ScenePairs(10, seed=1)
    for other in (ScenePairs(10, seed=2), ScenePairs(10, seed=1, split="held_out")):
        assert sum(pairs[i]["scene"] != other[i]["scene"] for i in range(10)) > 8


# ---------------------------------------- scenes
def test_scenes_keep_their_split_and_vary():
    rng = random.Random(0)
    for split in ("train", "held_out"):
        scenes = [sample_scene(rng, split) for _ in range(3000)]
        for scene in scenes:
            held_out = [is_held_out(item) for item in scene.objects]
            assert sum(held_out) == (split == "held_out") and scene.split == split
            assert (scene.position is not None) == (scene.kind == "single")
            assert (scene.relation is not None) == (scene.kind == "pair")
            assert (scene.count > 1) == (scene.kind == "group")
        shares = [sum(scene.kind == kind for scene in scenes) / len(scenes) for kind in KINDS]
        assert shares == pytest.approx([0.4, 0.2, 0.4], abs=0.04)
        assert {scene.background for scene in scenes} == set(BACKGROUNDS)
        drawn = {combination(item) for scene in scenes for item in scene.objects}
        assert drawn & HELD_OUT == (HELD_OUT if split == "held_out" else set())
        assert len(drawn - HELD_OUT) == 192 - 48


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_scene_can_be_asked_for(kind):
    rng = random.Random(0)
    assert {sample_scene(rng, "held_out", kind).kind for _ in range(50)} == {kind}


def test_objects_of_a_pair_can_be_told_apart_in_words():
    rng = random.Random(0)
    for _ in range(2000):
        first, second = sample_scene(rng, "held_out", "pair").objects
        assert (first.shape, first.colour) != (second.shape, second.colour)


# ---------------------------------------- captions
def test_full_captions_say_the_whole_scene():
    rng = random.Random(0)
    seen: dict[str, Scene] = {}
    for _ in range(4000):
        scene = sample_scene(rng, rng.choice(("train", "held_out")))
        caption = describe_fully(scene, rng)
        assert read_caption(caption).scene() == scene, caption
        assert seen.setdefault(caption, scene) == scene
    assert len(seen) > 3900


def expected_reading(scene: Scene, aspects: frozenset[str]) -> Reading:
    def told(item: Object) -> Thing:
        size, texture = (getattr(item, name) if name in aspects else None for name in ("size", "texture"))
        return Thing(item.shape, item.colour, size, texture)

    return Reading(
        tuple(told(item) for item in scene.objects),
        count=scene.count,
        position=scene.position if "position" in aspects else None,
        relation=scene.relation if "relation" in aspects else None,
        background=scene.background if "background" in aspects else None,
    )


def assert_says(caption: str, scene: Scene, aspects: frozenset[str]) -> None:
    reading, expected = read_caption(caption), expected_reading(scene, aspects)
    if scene.kind == "pair" and "relation" not in aspects:
        # Without a relation the two may be named in either order.
        assert sorted(map(repr, reading.things)) == sorted(map(repr, expected.things)), caption
        reading = dataclasses.replace(reading, things=expected.things)
    assert reading == expected, caption


@pytest.mark.parametrize("number", range(len(ASPECTS) + 1))
def test_captions_say_exactly_what_they_should(number):
    rng = random.Random(0)
    for aspects in map(frozenset, combinations(ASPECTS, number)):
        for _ in range(60):
            scene = sample_scene(rng)
            assert_says(describe_scene(scene, rng, aspects), scene, aspects)


def test_the_reader_notices_a_wrong_caption():
    scene = Scene("grey", (Object("star", "red", "small", "plain"),), position="left")
    assert_says("a small plain red star on the left on grey", scene, ALL)
    for wrong in ("a small plain red star at the right side on grey", "a large plain red star on the left on grey"):
        with pytest.raises(AssertionError):
            assert_says(wrong, scene, ALL)
    with pytest.raises(AssertionError):
        assert_says("a small plain red star on grey", scene, ALL)
    for nonsense in ("", "a photo of", "a red", "a small large red star", "a shiny red star", "red star"):
        with pytest.raises(ValueError):
            read_caption(nonsense)


def test_every_aspect_is_left_out_now_and_then():
    rng = random.Random(0)
    drawn = [sample_aspects(rng) for _ in range(4000)]
    for aspect in ASPECTS:
        assert 0.66 < sum(aspect in aspects for aspects in drawn) / len(drawn) < 0.94
    assert len(set(drawn)) == 2 ** len(ASPECTS)


@pytest.mark.parametrize("kind", KINDS)
def test_wording_varies(kind):
    rng = random.Random(0)
    scene = sample_scene(rng, kind=kind)
    assert len({describe_fully(scene, rng) for _ in range(100)}) > 30


def test_articles_and_plurals():
    assert with_article("orange star") == "an orange star" and with_article("ring") == "a ring"
    assert [captions.plural(shape) for shape in ("cross", "star")] == ["crosses", "stars"]
    rng = random.Random(0)
    for _ in range(3000):
        scene = sample_scene(rng)
        text = f"{describe_scene(scene, rng)} {sample_edit(scene, rng).text}"
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", text), text


# ---------------------------------------- edits
def only_change(before: Scene, after: Scene) -> str:
    """The kind of the edit that leads from one scene to another, told from the scenes alone."""
    if before.background != after.background:
        assert dataclasses.replace(before, background=after.background) == after
        return "background"
    if len(before.objects) < len(after.objects):
        assert before.kind == "single" and before.objects[0] in after.objects
        return "add"
    if len(before.objects) > len(after.objects):
        assert after.kind == "single" and after.objects[0] in before.objects and after.position == "centre"
        return "remove"
    if before.count != after.count:
        assert before.objects == after.objects and (after.count > 1 or after.position == "centre")
        return "count"
    if set(before.objects) == set(after.objects):
        assert (before.position, before.relation, before.objects) != (after.position, after.relation, after.objects)
        return "move"
    places = ("position", "relation", "count")
    assert [getattr(before, name) for name in places] == [getattr(after, name) for name in places]
    differing = [(old, new) for old, new in zip(before.objects, after.objects, strict=True) if old != new]
    assert len(differing) == 1
    names = [name for name in edits.ATTRIBUTES if getattr(differing[0][0], name) != getattr(differing[0][1], name)]
    assert len(names) == 1
    return names[0]


STARTS = {
    **{kind: KINDS for kind in ("shape", "colour", "size", "texture", "background")},
    "add": ("single",),
    "remove": ("pair",),
    "move": ("single", "pair"),
    "count": ("single", "group"),
}


def has_way_out(scene: Scene, kind: str) -> bool:
    """Whether any change of a kind leaves a scene in its split, with two objects that words can tell apart."""
    options = []
    for index, item in enumerate(scene.objects):
        for value in edits.ATTRIBUTES.get(kind, ()):
            objects = list(scene.objects)
            objects[index] = dataclasses.replace(item, **{kind: value})
            options.append(objects if value != getattr(item, kind) else [])
        options.append([item] if kind == "remove" else [])
    splits = [
        any(map(is_held_out, objects))
        for objects in options
        if len({(o.shape, o.colour) for o in objects}) == len(objects) > 0
    ]
    return (scene.split == "held_out") in splits


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_edits_do_what_their_text_says_and_nothing_else(kind, split):
    rng = random.Random(0)
    for start in STARTS[kind]:
        texts = set()
        for _ in range(150):
            scene = sample_scene(rng, split, start)
            try:
                edit = sample_edit(scene, rng, kind=kind)
            except ValueError as error:
                assert "keeps" in str(error) and not has_way_out(scene, kind)
                continue
            assert edit.kind == kind and edit.before is scene
            assert only_change(scene, edit.after) == kind, edit
            assert follow(edit.text, scene) == edit.after, edit
            assert edit.after.split == split
            texts.add(re.sub("|".join(map(re.escape, [*COLOURS, *SHAPES, *SIZE_OF, *NUMBER_OF])), "*", edit.text))
        assert len(texts) >= 4


def test_the_reader_notices_a_wrong_edit():
    star, ring = Object("star", "red", "small", "plain"), Object("ring", "blue", "large", "dotted")
    pair = Scene("grey", (star, ring), relation="beside")
    assert follow("make the star large", pair).objects == (dataclasses.replace(star, size="large"), ring)
    assert follow("the ring is above the star", pair) == Scene("grey", (ring, star), relation="above")
    assert follow("only has the blue ring", pair) == Scene("grey", (ring,), position="centre")
    for nonsense in ("make the circle large", "make the blue star large", "is red", "make the star red", "fly away"):
        with pytest.raises(ValueError):
            follow(nonsense, pair)
    with pytest.raises(ValueError):
        find("the ring", Scene("grey", (ring, dataclasses.replace(ring, colour="red")), relation="above"))


def test_edits_that_are_not_possible():
    rng = random.Random(0)
    for start, kind in (
        ("group", "add"),
        ("single", "remove"),
        ("pair", "count"),
        ("group", "move"),
        ("pair", "dance"),
    ):
        with pytest.raises(ValueError, match=f"`kind` must be one of .* for a {start} scene, got '{kind}'"):
            sample_edit(sample_scene(rng, kind=start), rng, kind=kind)
    held_out = Object(*sorted(HELD_OUT)[0][:2], "small", sorted(HELD_OUT)[0][2])
    with pytest.raises(ValueError, match="No edit of kind 'remove' keeps"):
        # Whichever of the two goes, a held-out one stays; so it is asked of a scene whose split lies.
        sample_edit(
            _LyingScene("grey", (held_out, dataclasses.replace(held_out, size="large")), relation="above"),
            rng,
            kind="remove",
        )


class _LyingScene(Scene):
    split = "train"


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_two_edits_follow_each_other(split):
    rng = random.Random(0)
    combinations_seen = set()
    for _ in range(800):
        scene = sample_scene(rng, split)
        first, second = sample_edits(scene, rng, 2)
        assert first.before is scene and second.before is first.after and second.after != scene
        assert first.kind != second.kind and {first.kind, second.kind} != {"add", "remove"}
        assert follow(second.text, follow(first.text, scene)) == second.after
        assert first.after.split == second.after.split == split
        combinations_seen.add((first.kind, second.kind))
    assert len(combinations_seen) > 50
    assert len(sample_edits(scene, rng, 1)) == 1


@pytest.mark.parametrize("aspects", [frozenset(), frozenset({"size"}), frozenset({"texture"}), ALL])
def test_an_added_object_is_described_as_asked(aspects):
    rng = random.Random(0)
    for _ in range(100):
        scene = sample_scene(rng, kind="single")
        edit = sample_edit(scene, rng, kind="add", aspects=aspects)
        said = follow(edit.text, scene)
        (index,) = [i for i, item in enumerate(edit.after.objects) if item != scene.objects[0] or i == 2]
        for name in ("size", "texture"):
            value = getattr(said.objects[index], name)
            assert value == (getattr(edit.after.objects[index], name) if name in aspects else None)


def test_triplets_tell_one_story(monkeypatch):
    """Both captions describe the scenes of the edit, with the same aspects, and the target's says what was changed."""
    told = []

    def record(scene, rng, aspects):
        told.append((scene, aspects))
        return describe_scene(scene, rng, aspects)

    monkeypatch.setattr(edits, "describe_scene", record)
    rng = random.Random(0)
    needed = {"size": "size", "texture": "texture", "background": "background", "add": "relation"}
    rules = []
    for _ in range(1500):
        triplet = sample_triplet(rng)
        (reference, before), (target, after) = told[-2:]
        assert_says(triplet["reference_caption"], reference, before)
        assert_says(triplet["target_caption"], target, after)
        scene = reference
        kinds = []
        for text in triplet["conditioning_caption"].split(" and "):
            result = follow(text, scene)
            kinds.append(only_change(scene, result))
            needs = needed.get(kinds[-1])
            if kinds[-1] == "move":
                needs = "position" if scene.kind == "single" else "relation"
            assert needs is None or needs in after
            # An added object is told with the aspects of the captions; what the text leaves out is the target's.
            scene = _completed(result, target) if kinds[-1] == "add" else result
        assert "+".join(kinds) == triplet["rule"]
        if "add" not in kinds:
            assert scene == target
        assert before <= after
        rules.append(triplet["rule"])
    assert 0.2 < sum("+" in rule for rule in rules) / len(rules) < 0.3
    assert {kind for rule in rules for kind in rule.split("+")} == set(EDIT_KINDS)


def _completed(scene: Scene, target: Scene) -> Scene:
    """Fills in what was not said of an added object."""
    objects = tuple(
        Object(item.shape, item.colour, item.size or "small", item.texture or "plain") for item in scene.objects
    )
    return dataclasses.replace(scene, objects=objects)


# ---------------------------------------- nothing trains on what is held out
class _StartsTraining(Exception):
    """Raised in place of training; carries the trainer."""


def trainer_of(example: str, arguments: list[str], monkeypatch) -> Trainer:
    """The trainer that an example has put together when it is about to train."""

    def stop(self, *args, **kwargs):
        raise _StartsTraining(self)

    monkeypatch.setattr(Trainer, "train", stop)
    monkeypatch.setattr(sys, "argv", [f"{example}.py", "--use_cpu", *arguments])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    with pytest.raises(_StartsTraining) as caught:
        load_example(example).main()
    return caught.value.args[0]


def test_the_checker_finds_held_out_combinations_where_they_are():
    """The negative control of all tests below."""
    rng = random.Random(0)
    for _ in range(1500):
        scene = sample_scene(rng, "held_out")
        wanted = {combination(item) for item in scene.objects if is_held_out(item)}
        assert held_out_mentions(describe_scene(scene, rng, frozenset({"texture"}))) == wanted
        assert held_out_mentions(describe_fully(scene, rng)) == wanted
    shape, colour, texture = sorted(HELD_OUT)[-1]
    for text in (
        f"make the {colour} {shape} {texture}",
        f"the {colour} {shape} is now {texture} and is on a grey background",
        f"add a small {texture} {colour} {shape} above the ring",
        f"has two {texture} {colour} {captions.plural(shape)} and the background is navy",
        f"change the {texture} {shape} to {colour}",
    ):
        assert held_out_mentions(text) == {(shape, colour, texture)}, text
    pairs = ScenePairs(300, seed=1, split="held_out")
    assert sum(bool(held_out_mentions(pairs[i]["caption"])) for i in range(300)) > 150


def test_the_small_clip_trains_on_no_held_out_combination(monkeypatch, tmp_path):
    texts = []
    monkeypatch.setattr(clip, "build_tokenizer", lambda given: texts.extend(given) or world_tokenizer())
    trainer = trainer_of("fit_shapes_clip", ["--output_dir", str(tmp_path)], monkeypatch)
    pairs = trainer.train_dataset
    assert isinstance(pairs, ScenePairs) and len(pairs) == 1000 * 256
    said = set()
    for index in range(0, len(pairs), 171):
        pair = pairs[index]
        assert pair["scene"].split == "train"
        assert_says(pair["caption"], pair["scene"], _aspects_of(pair["caption"], pair["scene"]))
        assert not held_out_mentions(pair["caption"]), pair["caption"]
        said |= mentions(pair["caption"])
    assert len(said) > 130  # of 144: the checker reads the captions
    assert len(texts) == 8000 and not [text for text in texts if held_out_mentions(text)]


def _aspects_of(caption: str, scene: Scene) -> frozenset[str]:
    """What a caption says, as far as the scene has it."""
    reading = read_caption(caption)
    return frozenset(
        [name for name in ("size", "texture") if getattr(reading.things[0], name)]
        + [name for name in ("position", "relation", "background") if getattr(reading, name)]
    )


@pytest.mark.parametrize("images", [False, True])
def test_projections_train_on_no_held_out_combination(monkeypatch, images):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = load_example("train_projection")
    objective = types.SimpleNamespace(needs_images=images, needs_captions=True)
    rows = example.load_data(example.ScriptArguments(num_rows=300_000), objective, 42)
    assert len(rows) == 300_000
    sample = [rows[index]["caption"] for index in range(0, len(rows), 101)]
    assert len(set(sample)) > 2000 and not [text for text in sample if held_out_mentions(text)]
    assert len(set.union(*map(mentions, sample))) == 144
    if images:
        assert all(rows[index]["scene"].split == "train" for index in range(200))
        assert np.array_equal(rows[5]["image"], rows[5]["picture"])


def test_phrases_are_about_training_combinations():
    phrases = world_phrases(20, seed=1)
    assert len(phrases) == 144
    for concept, lines in phrases.items():
        texture, colour, shape = concept.split()
        assert not is_held_out(Object(shape, colour, "small", texture))
        assert len(lines) == 20 and len(set(lines)) > 15 and all(concept in line for line in lines)
        assert not [line for line in lines if held_out_mentions(line.replace(f"{concept} that", "it that"))]
    assert world_phrases(20, seed=1) == phrases != world_phrases(20, seed=2)


def test_rtd_trains_on_no_held_out_combination(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = load_example("train_rtd")
    triplets = example.load_triplets("shapes", 4000, 42)
    assert len(triplets) == 4000
    columns = ("reference_caption", "conditioning_caption", "target_caption")
    for column in columns:
        assert not [text for text in triplets[column] if held_out_mentions(text)]
        assert len(set.union(*map(mentions, triplets[column]))) > 100


# ---------------------------------------- pictures
def test_a_picture_depends_on_its_scene_and_seed_alone():
    rng = random.Random(0)
    for _ in range(50):
        scene, seed = sample_scene(rng), rng.getrandbits(63)
        pixels = draw_scene(scene, seed)
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) == (48, 48, 3) and pixels.dtype == np.uint8
        draw_scene(sample_scene(rng), 0)
        assert np.array_equal(draw_scene(scene, seed), pixels)
        assert (np.abs(draw_scene(scene, seed + 1).astype(int) - pixels).max(axis=-1) > 10).sum() > 50
        image = picture(scene, seed)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_every_change_shows(kind):
    """With the same seed jitter and noise are the same: what differs is the change, by over two sigma of the noise."""
    rng = random.Random(0)
    for _ in range(200):
        try:
            edit = sample_edit(sample_scene(rng, kind=rng.choice(STARTS[kind])), rng, kind=kind)
        except ValueError:
            continue  # no such change keeps the split
        seed = rng.getrandbits(63)
        difference = np.abs(draw_scene(edit.before, seed).astype(int) - draw_scene(edit.after, seed)).max(axis=-1)
        assert (difference > 18).sum() >= 8, edit
        if kind == "background":
            assert (difference > 9).mean() > 0.3


@pytest.mark.parametrize("count", [2, 3, 4])
def test_groups_show_their_number(count):
    rng = random.Random(0)
    for shape in SHAPES:
        for colour in COLOURS:
            background = rng.choice(list(BACKGROUNDS))
            scene = Scene(background, (Object(shape, colour, "small", rng.choice(TEXTURES)),), count=count)
            pixels = draw_scene(scene, rng.getrandbits(63)).astype(float)
            quarters = [pixels[y : y + 24, x : x + 24] for y in (0, 24) for x in (0, 24)]
            # Noise alone has a standard deviation of 9; the palest object brings its quarter to 16.
            assert sum(quarter.std(axis=(0, 1)).max() > 13 for quarter in quarters) == count, scene


@pytest.mark.parametrize("name, colour", COLOURS.items())
def test_objects_have_their_colour_and_place(name, colour):
    places = {"centre": (24, 24), "left": (12, 24), "right": (36, 24), "top": (24, 12), "bottom": (24, 36)}
    for position, (x, y) in places.items():
        scene = Scene("black", (Object("square", name, "large", "plain"),), position=position)
        mean = np.mean([draw_scene(scene, seed)[y - 3 : y + 4, x - 3 : x + 4] for seed in range(40)], axis=(0, 1, 2))
        assert np.abs(mean - colour).max() < 12
    first, second = (Object("square", each, "large", "plain") for each in (name, "cyan" if name != "cyan" else "red"))
    for relation, (x, y) in (("beside", (12, 24)), ("above", (24, 12))):
        pair = Scene("black", (first, second), relation=relation)
        mean = np.mean([draw_scene(pair, seed)[y - 3 : y + 4, x - 3 : x + 4] for seed in range(40)], axis=(0, 1, 2))
        assert np.abs(mean - colour).max() < 12


# ---------------------------------------- pairs
def test_pairs():
    pairs = ScenePairs(400, seed=7)
    assert len(pairs) == 400
    first, again = pairs[11], ScenePairs(12, seed=7)[11]
    assert first["caption"] == again["caption"] and first["scene"] == again["scene"]
    assert np.array_equal(first["picture"], again["picture"])
    for index in (-1, 400):
        with pytest.raises(IndexError, match=rf"must be in 0..399, got {index}"):
            pairs[index]

    def share_of_full(dataset) -> float:
        full = 0
        for index in range(len(dataset)):
            reading = read_caption(dataset[index]["caption"])
            place = reading.count > 1 or (reading.relation if len(reading.things) == 2 else reading.position)
            full += bool(reading.things[0].size and reading.things[0].texture and reading.background and place)
        return full / len(dataset)

    assert share_of_full(ScenePairs(200, seed=7, full_captions=1.0)) == 1
    assert 0.15 < share_of_full(ScenePairs(200, seed=7, full_captions=0.0)) < 0.55
    assert 0.4 < share_of_full(pairs) < 0.7


# ---------------------------------------- tokenizer
def test_the_tokenizer_is_a_clip_tokenizer_as_published():
    tokenizer = world_tokenizer()
    assert type(tokenizer) is CLIPTokenizer and tokenizer.model_max_length == 77
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(tokenizer))) and len(tokenizer) == 781
    assert tokenizer.eos_token_id == max(vocabulary.values()) and tokenizer.bos_token_id == tokenizer.eos_token_id - 1
    placeholder = tokenizer("$")["input_ids"]
    assert placeholder == [tokenizer.bos_token_id, vocabulary["$</w>"], tokenizer.eos_token_id]
    bare, full = (tokenizer(text)["input_ids"] for text in ("a photo of $", "a photo of $ that is red"))
    assert full[: len(bare) - 1] == bare[:-1] and full.count(vocabulary["$</w>"]) == 1
    assert PromptTokenizer(tokenizer).bare_is_prefix
    # Bytes it never saw are spelled out, nothing is unknown.
    assert tokenizer.decode(tokenizer("Ünïcode ☂?")["input_ids"], skip_special_tokens=True).split() == [
        "ünïcode",
        "☂?",
    ]


@pytest.mark.parametrize("shipped", [False, True], ids=["built", "shipped"])
def test_words_of_the_world_are_short_and_come_back(shipped):
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "clip") if shipped else world_tokenizer()
    texts = clip.world_texts(1500, seed=99)
    for text in texts[::10]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text and len(ids) <= 77
    words = sorted({word for text in texts for word in text.split()})
    assert len(words) > 100
    lengths = {word: len(tokenizer(word)["input_ids"]) - 2 for word in words}
    assert max(lengths.values()) <= 2, {word: length for word, length in lengths.items() if length > 2}
    assert sum(lengths.values()) / len(lengths) < 1.2


# ---------------------------------------- the shipped models
@pytest.fixture(scope="module")
def shipped():
    """The shipped small CLIP, its tokenizer and image processor."""
    folder = ASSETS / "clip"
    model = CLIPModel.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)


def recipe_of(name: str) -> dict:
    return json.loads((ASSETS / name / "recipe.json").read_text())


def test_the_shipped_files_are_few_and_small():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16_000_000
    names = {path.relative_to(ASSETS).as_posix() for path in files}
    clip_files = (
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "recipe.json",
    )
    assert names >= {*(f"clip/{name}" for name in clip_files)}
    for method in PROJECTIONS:
        assert names >= {f"{method}/{name}" for name in ("config.json", "model.safetensors", "recipe.json")}


def test_the_shipped_clip_loads_in_plain_transformers(shipped):
    model, tokenizer, image_processor = shipped
    folder, towers = ASSETS / "clip", {}
    for kind in (CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, CLIPTextModelForRTD):
        towers[kind], report = kind.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"], kind
        towers[kind].eval()
    scenes = [pair["scene"] for pair in map(ScenePairs(6).__getitem__, range(6))]
    texts = tokenizer([describe_fully(s, random.Random(0)) for s in scenes], padding=True, return_tensors="pt")
    pixels = image_processor([picture(scene, 0) for scene in scenes], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (6, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        joint = model(**texts, pixel_values=pixels)
        for kind in (CLIPTextModelWithProjection, CLIPTextModelForRTD):
            embeds = torch.nn.functional.normalize(towers[kind](**texts).text_embeds, dim=-1)
            torch.testing.assert_close(embeds, joint.text_embeds, rtol=1e-5, atol=1e-5)
        embeds = towers[CLIPVisionModelWithProjection](pixel_values=pixels).image_embeds
        torch.testing.assert_close(
            torch.nn.functional.normalize(embeds, dim=-1), joint.image_embeds, rtol=1e-5, atol=1e-5
        )
    assert joint.logits_per_text.argmax(1).tolist() == list(range(6))


def test_the_shipped_clip_is_what_the_code_builds(shipped):
    model, tokenizer, image_processor = shipped
    built = clip.build_tokenizer(clip.world_texts(4000, seed=0))
    assert tokenizer.get_vocab() == built.get_vocab()
    for text in clip.world_texts(100, seed=8):
        assert tokenizer(text)["input_ids"] == built(text)["input_ids"]
    assert tokenizer.model_max_length == built.model_max_length

    def facts(config) -> dict:
        left_out = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
        values = {name: value for name, value in config.to_dict().items() if name not in left_out}
        for part in ("text_config", "vision_config"):
            values[part] = {name: value for name, value in values[part].items() if name not in left_out}
        return values

    assert facts(model.config) == facts(clip.build_config(built))
    rng = random.Random(0)
    pictures = [picture(sample_scene(rng), seed) for seed in range(4)]
    own, made = (
        each(pictures, return_tensors="pt")["pixel_values"] for each in (image_processor, clip.build_image_processor())
    )
    torch.testing.assert_close(own, made, rtol=0, atol=1e-5)


def test_the_shipped_recipe_of_the_clip_is_the_default_of_the_script():
    recipe = recipe_of("clip")
    fields = dataclasses.fields(load_example("fit_shapes_clip").FitArguments)
    defaults = {field.name: field.default for field in fields}
    options = {key: value for key, value in recipe.items() if key in defaults}
    assert {"seed", "max_steps", "per_device_train_batch_size", "learning_rate", "weight_decay"} <= options.keys()
    assert options == {key: defaults[key] for key in options}
    assert recipe["command"] == "python examples/fit_shapes_clip.py"
    assert recipe["figures"] and all(map(math.isfinite, recipe["figures"].values()))


def test_the_shipped_clip_reaches_its_figures(shipped):
    model, tokenizer, image_processor = shipped
    recipe = recipe_of("clip")
    assert recipe["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    figures = scoring.text_to_image_recall(model, tokenizer, image_processor, number=1000, seed=1)
    assert figures == pytest.approx(recipe["figures"], abs=0.5)
    assert figures["text_to_image_recall@1"] >= 60


def test_a_short_run_of_the_script_repeats_itself(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = load_example("fit_shapes_clip")

    def run(folder: Path, seed: int) -> dict[str, torch.Tensor]:
        arguments = f"--max_steps 3 --per_device_train_batch_size 16 --num_pictures 40 --seed {seed} --use_cpu"
        monkeypatch.setattr(
            sys, "argv", ["fit.py", *arguments.split(), "--output_dir", str(folder), "--disable_tqdm", "true"]
        )
        example.main()
        return load_file(folder / "model.safetensors")

    first, again, other = run(tmp_path / "1", 5), run(tmp_path / "2", 5), run(tmp_path / "3", 6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim == 2)
    recipes = [json.loads((tmp_path / folder / "recipe.json").read_text()) for folder in "123"]
    assert recipes[0].keys() == recipe_of("clip").keys()
    assert recipes[0]["figures"] == recipes[1]["figures"] and recipes[2]["seed"] == 6
    # What the run saved is the model of the recipe, ready to ship.
    model, report = CLIPModel.from_pretrained(tmp_path / "1", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == recipe_of("clip")["parameters"]


# ---------------------------------------- scoring
def test_held_out_pictures_are_different_scenes():
    rows = scoring.held_out_pictures(200, seed=1)
    assert len({scene for scene, _ in rows}) == len(rows) == 200
    assert {scene.split for scene, _ in rows} == {"held_out"}
    assert all(not np.array_equal(pixels, draw_scene(scene, 0)) for scene, pixels in rows[:5])


class _Scored(torch.nn.Module):
    """Stands in for the CLIP: the first `number` pairs are told from all others, the rest look all the same."""

    def __init__(self, number: int):
        super().__init__()
        self.number, self.seen, self.device, self.modes = number, 0, torch.device("cpu"), []

    def forward(self, input_ids, pixel_values, **kwargs):
        rows = torch.arange(self.seen, self.seen + len(input_ids))
        self.seen += len(rows)
        self.modes.append(self.training)
        embeds = torch.nn.functional.one_hot(rows.clamp(max=self.number), self.number + 1).float()
        return types.SimpleNamespace(text_embeds=embeds, image_embeds=embeds)


def test_recall_counts_ties_against_the_model_and_restores_its_mode():
    for training in (False, True):
        model = _Scored(40).train(training)
        figures = scoring.text_to_image_recall(
            model, world_tokenizer(), clip.build_image_processor(), number=50, seed=1
        )
        # Forty of fifty have their picture first; ten pictures tie for the others, whose rank is the last of them.
        assert list(figures) == ["text_to_image_recall@1", "text_to_image_recall@5", "text_to_image_recall@10"]
        assert list(figures.values()) == pytest.approx([80, 80, 100])
        assert model.modes == [False] and model.training == training
    figures = scoring.text_to_image_recall(_Scored(0), world_tokenizer(), clip.build_image_processor(), number=300)
    assert set(figures.values()) == {0}


def test_recall_is_that_of_sorting():
    """Of random weights, against sorting all captions and pictures that the score is said to be about."""
    model, processor, rng = random_clip(), clip.build_image_processor(), random.Random("captions 1")
    rows = scoring.held_out_pictures(60, seed=1)
    texts = world_tokenizer()([describe_fully(scene, rng) for scene, _ in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(
            **texts, pixel_values=processor([pixels for _, pixels in rows], return_tensors="pt")["pixel_values"]
        )
    order = output.logits_per_text.argsort(dim=1, descending=True)
    places = (order == torch.arange(60)[:, None]).float().argmax(dim=1)
    figures = scoring.text_to_image_recall(model, world_tokenizer(), processor, number=60, seed=1)
    for k in (1, 5, 10):
        assert figures[f"text_to_image_recall@{k}"] == pytest.approx(
            100 * (places < k).float().mean().item(), abs=1e-4
        )
