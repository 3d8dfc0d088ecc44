"""The scenes of the offline world: what a picture shows, before anyone draws or describes it.

A scene holds one object (alone at a position, or as a group of two to four copies) or two objects in a relation, on a
background. The precedent for a drawn world in composed retrieval is CSS (Vo et al., TIRG, CVPR 2019).

A quarter of all (shape, colour, texture) combinations is *held out*: the small CLIP, the projections and RTD only ever
see scenes without them, and every benchmark picture contains at least one.
"""

import random
from dataclasses import dataclass
from itertools import product
from typing import Literal


SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (40, 80, 215),
    "purple": (135, 60, 175),
    "pink": (250, 130, 190),
}
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = {
    "white": (240, 240, 240),
    "grey": (150, 150, 150),
    "black": (25, 25, 25),
    "brown": (120, 85, 55),
    "navy": (25, 35, 95),
    "olive": (110, 115, 45),
}
POSITIONS = ("centre", "left", "right", "top", "bottom")
RELATIONS = ("beside", "above")
MAX_COUNT = 4

Kind = Literal["single", "group", "pair"]
Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Object:
    """One drawn object: a shape, a colour, a size and a texture."""

    shape: str
    colour: str
    size: str
    texture: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What one picture shows. Equal scenes are drawn alike up to jitter, brightness and noise.

    Args:
        background (`str`): A key of `BACKGROUNDS`.
        objects (`tuple[Object, ...]`): One object, or two. Of two, the first stands on the left (`relation="beside"`)
            or on top (`relation="above"`), so that one arrangement has one scene and not two.
        position (`str`, *optional*): Where a lone object stands, one of `POSITIONS`; `None` for groups and pairs.
        relation (`str`, *optional*): One of `RELATIONS` for two objects, else `None`.
        count (`int`, *optional*, defaults to 1): Copies of a single object, 1 to `MAX_COUNT`.
    """

    background: str
    objects: tuple[Object, ...]
    position: str | None = None
    relation: str | None = None
    count: int = 1

    @property
    def kind(self) -> Kind:
        """`"single"`, `"group"` (several copies) or `"pair"` (two different objects)."""
        if len(self.objects) == 2:
            return "pair"
        return "group" if self.count > 1 else "single"

    @property
    def split(self) -> Split:
        """`"held_out"` as soon as one object has a held-out combination, else `"train"`."""
        return "held_out" if any(is_held_out(item) for item in self.objects) else "train"


def _draw_held_out(share: float = 0.25) -> frozenset[tuple[str, str, str]]:
    """Draws, once and for all, the held-out combinations: the same number for every (shape, texture)."""
    rng = random.Random("held-out combinations of the offline world")
    per_row = round(len(COLOURS) * share)
    return frozenset(
        (shape, colour, texture)
        for shape, texture in product(SHAPES, TEXTURES)
        for colour in rng.sample(tuple(COLOURS), per_row)
    )


HELD_OUT = _draw_held_out()
"""The (shape, colour, texture) combinations that no training picture, caption or triplet contains."""


def is_held_out(item: Object) -> bool:
    """Whether the (shape, colour, texture) of an object is kept from all training."""
    return (item.shape, item.colour, item.texture) in HELD_OUT


def _sample_object(rng: random.Random, split: Split) -> Object:
    if split == "held_out":
        shape, colour, texture = rng.choice(_HELD_OUT_LIST)
        return Object(shape, colour, rng.choice(SIZES), texture)
    while True:
        item = Object(
            rng.choice(SHAPES), rng.choice(_COLOUR_NAMES), rng.choice(SIZES), rng.choices(TEXTURES, (2, 1, 1))[0]
        )
        if not is_held_out(item):
            return item


def tell_apart(first: Object, second: Object) -> bool:
    """Whether two objects differ in shape or colour, so that words can single one of them out."""
    return first.shape != second.shape or first.colour != second.colour


def sample_scene(rng: random.Random, split: Split = "train", kind: Kind | None = None) -> Scene:
    """Draws a scene of a split.

    Args:
        rng (`random.Random`): The source of randomness; its state alone decides the scene.
        split (`str`, *optional*, defaults to `"train"`): `"train"` draws no held-out combination at all,
            `"held_out"` draws one for the first object (and a training one for a second object).
        kind (`str`, *optional*): `"single"`, `"group"` or `"pair"`; drawn 2 : 1 : 2 when not given.

    Returns:
        [`Scene`]
    """
    kind = kind or rng.choices(("single", "group", "pair"), (2, 1, 2))[0]
    background, first = rng.choice(_BACKGROUND_NAMES), _sample_object(rng, split)
    if kind == "single":
        return Scene(background, (first,), position=rng.choice(POSITIONS))
    if kind == "group":
        return Scene(background, (first,), count=rng.randint(2, MAX_COUNT))
    second = _sample_object(rng, "train")
    while not tell_apart(first, second):
        second = _sample_object(rng, "train")
    objects = (first, second) if rng.random() < 0.5 else (second, first)
    return Scene(background, objects, relation=rng.choice(RELATIONS))


_HELD_OUT_LIST = tuple(sorted(HELD_OUT))
_COLOUR_NAMES = tuple(COLOURS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
