"""Captions of scenes: varied wording, attributes left out as people leave them out.

What a caption says is one decision (a set of aspects to mention), how it says it another (the wording drawn by the
random source), so that two captions can say the same in different words, or more and less in the same ones.
"""

import random

from .scenes import Object, Scene


ASPECTS = ("size", "texture", "position", "background", "relation")
"""What a caption may leave out. Shape, colour and count are always said."""

_MENTIONED = {"size": 0.7, "texture": 0.75, "position": 0.75, "background": 0.75, "relation": 0.9}
_OPENINGS = ("", "", "", "a photo of ", "a photo of ", "a picture of ", "an image of ")
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_TEXTURES = {"plain": ("plain", "solid"), "striped": ("striped",), "dotted": ("dotted", "spotted")}
_AFTER = {"striped": ("with stripes",), "dotted": ("with dots", "with spots")}
_POSITIONS = {
    "centre": ("in the middle", "in the centre"),
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "top": ("at the top", "up high"),
    "bottom": ("at the bottom", "down low"),
}
_RELATIONS = {
    "beside": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over"), ("below", "under")),
}
_BACKGROUNDS = ("on a {} background", "on {}", "in front of a {} background", "with a {} background")


def sample_aspects(rng: random.Random) -> frozenset[str]:
    """Draws which aspects a caption mentions (each by its own probability, 0.7 to 0.9)."""
    return frozenset(aspect for aspect in ASPECTS if rng.random() < _MENTIONED[aspect])


def with_article(noun_phrase: str) -> str:
    """`"orange star"` -> `"an orange star"`."""
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


def plural(shape: str) -> str:
    """`"cross"` -> `"crosses"`."""
    return shape + ("es" if shape.endswith("s") else "s")


def describe_object(
    item: Object, rng: random.Random, aspects: frozenset[str] = frozenset(ASPECTS), *, count: int = 1
) -> str:
    """A noun phrase for an object, without article or number.

    Args:
        item ([`Object`]): The object.
        rng (`random.Random`): Draws the wording.
        aspects (`frozenset[str]`, *optional*): Of these only `"size"` and `"texture"` matter here.
        count (`int`, *optional*, defaults to 1): More than one gives the plural.

    Returns:
        `str`, such as `"large striped red circle"` or `"red circle with stripes"`.
    """
    words, after = [], ""
    if "size" in aspects:
        words.append(rng.choice(_SIZES[item.size]))
    if "texture" in aspects:
        if item.texture in _AFTER and rng.random() < 0.3:
            after = " " + rng.choice(_AFTER[item.texture])
        else:
            words.append(rng.choice(_TEXTURES[item.texture]))
    if len(words) == 2 and rng.random() < 0.2:
        words.reverse()
    words += [item.colour, plural(item.shape) if count > 1 else item.shape]
    return " ".join(words) + after


def describe_position(position: str, rng: random.Random) -> str:
    """`"left"` -> `"on the left"` or another wording of it."""
    return rng.choice(_POSITIONS[position])


def describe_background(background: str, rng: random.Random) -> str:
    """`"grey"` -> `"on a grey background"` or another wording of it."""
    return rng.choice(_BACKGROUNDS).format(background).replace(" a olive", " an olive")


def relation_words(relation: str, first_is_subject: bool, rng: random.Random) -> str:
    """The preposition between two objects, said from the first object or from the second."""
    return rng.choice(_RELATIONS[relation][0 if first_is_subject else 1])


def number_word(count: int) -> str:
    """`2` -> `"two"`."""
    return _NUMBERS[count]


def _describe_content(scene: Scene, rng: random.Random, aspects: frozenset[str]) -> str:
    if scene.kind == "group":
        return f"{number_word(scene.count)} " + describe_object(scene.objects[0], rng, aspects, count=scene.count)
    if scene.kind == "single":
        text = with_article(describe_object(scene.objects[0], rng, aspects))
        return f"{text} {describe_position(scene.position, rng)}" if "position" in aspects else text
    first_is_subject = rng.random() < 0.5
    subject, other = scene.objects if first_is_subject else reversed(scene.objects)
    subject = with_article(describe_object(subject, rng, aspects))
    other = with_article(describe_object(other, rng, aspects))
    between = relation_words(scene.relation, first_is_subject, rng) if "relation" in aspects else "and"
    return f"{subject} {between} {other}"


def describe_scene(scene: Scene, rng: random.Random, aspects: frozenset[str] | None = None) -> str:
    """A caption of a scene.

    Args:
        scene ([`Scene`]): What the picture shows.
        rng (`random.Random`): Draws the wording and, where `aspects` is not given, what is left out.
        aspects (`frozenset[str]`, *optional*): What to mention, out of `ASPECTS`; `frozenset(ASPECTS)` leaves nothing
            out (a full caption identifies the scene).

    Returns:
        `str`, such as `"a photo of a small red star above a large dotted blue ring on grey"`.
    """
    aspects = sample_aspects(rng) if aspects is None else aspects
    text = rng.choice(_OPENINGS) + _describe_content(scene, rng, aspects)
    return f"{text} {describe_background(scene.background, rng)}" if "background" in aspects else text


def describe_fully(scene: Scene, rng: random.Random) -> str:
    """A caption that leaves nothing out, hence fits no other scene."""
    return describe_scene(scene, rng, frozenset(ASPECTS))
