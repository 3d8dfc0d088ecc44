"""Sets of text triplets about the offline world that differ in how good they are."""

import random
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path


Rows = list[dict]
COLUMNS = ("reference_caption", "conditioning_caption", "target_caption")
FAMILIES = {
    "rules: replace": {"replace": 1},
    "rules: attribute": {"attribute": 1},
    "rules: add, remove": {"add": 1, "remove": 1},
}
# Set -> what it is.
SETS = {
    "world": "edits of scenes, the world's own",
    "rules": "captions, edited by the rule-based generator",
    **{name: "one family of its templates" for name in FAMILIES},
    "world, noisy": "every word is another one of the texts with probability 0.2",
    "world, shuffled": "the target captions of other rows",
    "rules, noisy": "every word is another one of the texts with probability 0.2",
    "rules, shuffled": "the target captions of other rows",
    "world + rules": "half and half",
    "world + rules: replace": "half and half",
    "world + world, shuffled": "half and half",
}
NOISE = 0.2
_CAPTIONS = 24_000


def triplet_set(name: str, number: int, seed: int) -> Rows:
    """
    A set of triplets without the combinations that are kept for the benchmarks.

    Args:
        name (`str`): A key of `SETS`.
        number (`int`): How many. Of a generator that makes fewer different ones all are there, and some twice.
        seed (`int`): Draws scenes, captions, edits and damage.
    """
    rng = random.Random(f"{name} {number} {seed}")
    if " + " in name:
        parts = [triplet_set(part, number // 2, seed) for part in name.split(" + ")]
        rows = [row for part in parts for row in part]
        rng.shuffle(rows)
        return rows
    origin, _, damage = name.partition(", ")
    if name in FAMILIES or damage not in ("noisy", "shuffled"):
        origin, damage = name, ""
    rows = _world(number, seed) if origin == "world" else _by_rules(origin, number, seed)
    if damage == "shuffled":
        targets = [row["target_caption"] for row in rows]
        rng.shuffle(targets)
        rows = [{**row, "target_caption": target} for row, target in zip(rows, targets, strict=True)]
    return _noisy(rows, rng) if damage == "noisy" else rows


def _world(number: int, seed: int) -> Rows:
    from rtd_hf.shapes.edits import sample_triplet

    rng = random.Random(f"triplets {seed}")
    return [sample_triplet(rng) for _ in range(number)]


@lru_cache(maxsize=8)
def _made(family: str, seed: int, captions: int) -> tuple[dict, ...]:
    from rtd_hf.shapes.pairs import SceneCaptions
    from rtd_hf.triplets import RuleGenerator, RuleOptions

    scenes = SceneCaptions(captions, seed=seed)
    captions = [scenes[place]["caption"] for place in range(captions)]
    weights = {}
    if family in FAMILIES:
        weights = {rule: 0 for rule in RuleOptions().shares} | FAMILIES[family]
    # Nine nouns: any is similar enough to any other.
    generator = RuleGenerator(RuleOptions(weights=str(weights), sim_min=-1.0, sim_max=1.0), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        generator.prepare(captions, folder=Path(folder))
        rows = list(generator.generate(enumerate(captions)))
    return tuple(row for row in rows if not any(says_held_out(row[column]) for column in COLUMNS))


def _by_rules(family: str, number: int, seed: int) -> Rows:
    rows = list(_made(family, seed, min(_CAPTIONS, number)))
    random.Random(f"{family} {seed}").shuffle(rows)
    return [dict(row) for row in islice(cycle(rows), number)]


def _noisy(rows: Rows, rng: random.Random) -> Rows:
    words = {column: [word for row in rows for word in row[column].split()] for column in COLUMNS}

    def damaged(column: str, text: str) -> str:
        return " ".join(rng.choice(words[column]) if rng.random() < NOISE else word for word in text.split())

    return [{**row, **{column: damaged(column, row[column]) for column in COLUMNS}} for row in rows]


def says_held_out(text: str) -> bool:
    """Whether a text names a combination of shape, colour and texture that is kept for the benchmarks."""
    from rtd_hf.shapes.scenes import HELD_OUT

    return any(found in HELD_OUT for found in _objects(text))


def _objects(text: str) -> Iterator[tuple[str, str, str]]:
    """Shape, colour and texture of the objects whose texture the text tells."""
    textures = {"plain": "plain", "solid": "plain", "striped": "striped", "dotted": "dotted", "spotted": "dotted"}
    textures |= {"stripes": "striped", "dots": "dotted", "spots": "dotted"}
    for found in _object()(text.lower()):
        told = [textures[word] for word in re.findall(r"\w+", found[0]) if word in textures]
        if told:
            yield found["shape"], found["colour"], told[0]


@lru_cache(maxsize=1)
def _object() -> Callable[[str], Iterator[re.Match]]:
    from rtd_hf.shapes.scenes import COLOURS, SHAPES

    before = r"(?:(?:small|little|tiny|large|big|huge|plain|solid|striped|dotted|spotted) ){0,2}"
    colour, shape = "|".join(COLOURS), "|".join(SHAPES)
    return re.compile(
        rf"{before}(?P<colour>{colour}) (?P<shape>{shape})(?:e?s)?\b(?: with (?:stripes|dots|spots))?"
    ).finditer


# What a query of the world asks for, told by its words; the first that fits.
_ASKED = {
    "background": "background",
    "add": "add also added",
    "remove": "remove without longer gone only",
    "move": "move moves left right top bottom middle centre above below over under high low",
    "count": "one two three four single them",
    "texture": "striped dotted spotted plain solid stripes dots spots pattern",
    "size": "small large little tiny big smaller larger bigger",
    "shape": "replace into has",
    "colour": "red orange yellow green cyan blue purple pink",
}


def asked_for(text: str) -> str:
    """The kind of change that a conditioning text of the world asks for, by its words: one of nine."""
    words = set(re.findall(r"\w+", text.lower()))
    if "one" in words:  # "only one circle" counts, "only the circle" removes
        words.discard("only")
    return next((kind for kind, telling in _ASKED.items() if words & set(telling.split())), "shape")
