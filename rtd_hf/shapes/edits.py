"""Changes of scenes and the words people ask for them with: "is a star instead of a circle", "remove the blue ring".

An edit keeps its scene's split: what starts among the training combinations never reaches a held-out one, and a
benchmark query ends on a held-out combination.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .captions import (
    _TEXTURES,
    ASPECTS,
    describe_object,
    describe_position,
    describe_scene,
    number_word,
    plural,
    relation_words,
    sample_aspects,
    with_article,
)
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    MAX_COUNT,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Object,
    Scene,
    _sample_object,
    sample_scene,
    tell_apart,
)


ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "texture": TEXTURES}
_DESTINATIONS = {
    "centre": "to the middle",
    "left": "to the left",
    "right": "to the right",
    "top": "to the top",
    "bottom": "to the bottom",
}
_LARGER = {"small": ("small", "smaller", "tiny"), "large": ("large", "larger", "bigger")}
_PATTERNS = {"plain": "without a pattern", "striped": "with stripes", "dotted": "with dots"}
_ASPECT_OF = {"size": "size", "texture": "texture", "background": "background", "add": "relation"}
_MAX_TRIES = 200


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a scene and the conditioning text that asks for it.

    Args:
        kind (`str`): One of `EDIT_KINDS`.
        before ([`Scene`]): The reference scene.
        after ([`Scene`]): The target scene.
        text (`str`): The conditioning text, such as `"is red"` or `"add a small blue star on the right"`; it continues
            "a photo of $ that".
        aspect (`str`, *optional*): The aspect a caption of the target has to mention for the change to be said.
    """

    kind: str
    before: Scene
    after: Scene
    text: str
    aspect: str | None = None


def refer(scene: Scene, index: int, rng: random.Random) -> str:
    """Singles out an object in words: `"the red circle"`, or the shape alone where that is enough."""
    item = scene.objects[index]
    noun = plural(item.shape) if scene.count > 1 else item.shape
    alone = len(scene.objects) == 1 or scene.objects[0].shape != scene.objects[1].shape
    return f"the {noun}" if alone and rng.random() < 0.6 else f"the {item.colour} {noun}"


def _swap_object(scene: Scene, index: int, item: Object) -> Scene:
    objects = list(scene.objects)
    objects[index] = item
    return replace(scene, objects=tuple(objects))


def _change_attribute(scene: Scene, attribute: str, rng: random.Random) -> tuple[Scene, str]:
    index = rng.randrange(len(scene.objects))
    old = getattr(scene.objects[index], attribute)
    new = rng.choice([value for value in ATTRIBUTES[attribute] if value != old])
    after = _swap_object(scene, index, replace(scene.objects[index], **{attribute: new}))
    who, be, lone = refer(scene, index, rng), "are" if scene.count > 1 else "is", len(scene.objects) == 1
    if attribute == "shape":
        kind_of = plural if scene.count > 1 else with_article
        texts = [
            f"replace {who} with {kind_of(new)}",
            f"has {kind_of(new)} instead of {who}",
            f"change {who} into {kind_of(new)}",
            f"{be} {kind_of(new)} instead of {kind_of(old)}" if lone else f"{who} {be} now {kind_of(new)}",
        ]
        return after, rng.choice(texts)
    wordings = {"size": _LARGER, "texture": _TEXTURES}.get(attribute, {new: (new,)})
    word = rng.choice(wordings[new])
    texts = [f"{who} {be} {word}", f"make {who} {word}", f"{who} {be} now {word}"]
    texts += {
        "colour": [f"change {who} to {word}", f"has {who} in {word}"],
        "texture": [f"has {who} {_PATTERNS.get(new)}"],
    }.get(attribute, [])
    if lone:
        texts += [f"{be} {word}", f"{be} {word}", f"{be} {word} instead of {rng.choice(_TEXTURES.get(old, (old,)))}"]
    return after, rng.choice(texts)


def _change_background(scene: Scene, rng: random.Random) -> tuple[Scene, str]:
    new = rng.choice([name for name in BACKGROUNDS if name != scene.background])
    texts = [
        f"is on {with_article(new)} background",
        f"has {with_article(new)} background",
        f"change the background to {new}",
        f"has {with_article(new)} background instead of {with_article(scene.background)} one",
        f"the background is {new}",
    ]
    return replace(scene, background=new), rng.choice(texts)


def _add(scene: Scene, rng: random.Random, aspects: frozenset[str]) -> tuple[Scene, str]:
    item = _sample_object(rng, "train")
    relation, new_is_first = rng.choice(RELATIONS), rng.random() < 0.5
    objects = (item, scene.objects[0]) if new_is_first else (scene.objects[0], item)
    what = with_article(describe_object(item, rng, aspects))
    where = relation_words(relation, new_is_first, rng) + " " + rng.choice(("it", refer(scene, 0, rng)))
    texts = [f"add {what} {where}", f"also has {what} {where}", f"has {what} added {where}"]
    return Scene(scene.background, objects, relation=relation), rng.choice(texts)


def _remove(scene: Scene, rng: random.Random) -> tuple[Scene, str]:
    index = rng.randrange(2)
    gone, kept = refer(scene, index, rng), refer(scene, 1 - index, rng)
    texts = [f"remove {gone}", f"is without {gone}", f"no longer has {gone}", f"only has {kept}", f"{gone} is gone"]
    return Scene(scene.background, (scene.objects[1 - index],), position="centre"), rng.choice(texts)


def _move(scene: Scene, rng: random.Random) -> tuple[Scene, str]:
    if scene.kind == "single":
        position = rng.choice([name for name in POSITIONS if name != scene.position])
        who = refer(scene, 0, rng)
        texts = [
            f"is {describe_position(position, rng)}",
            f"has {who} {describe_position(position, rng)}",
            f"move {who} {_DESTINATIONS[position]}",
            f"moves {_DESTINATIONS[position]}",
        ]
        return replace(scene, position=position), rng.choice(texts)
    relation, turned = rng.choice(
        [(r, t) for r in RELATIONS for t in (False, True) if (r, t) != (scene.relation, False)]
    )
    after = replace(scene, relation=relation, objects=scene.objects[::-1] if turned else scene.objects)
    index = rng.randrange(2)
    who, other = refer(scene, index, rng), refer(scene, 1 - index, rng)
    where = relation_words(relation, (index == 0) != turned, rng)
    return after, rng.choice(
        [f"{who} is {where} {other}", f"move {who} {where} {other}", f"has {who} {where} {other}"]
    )


def _change_count(scene: Scene, rng: random.Random) -> tuple[Scene, str]:
    count = rng.choice([n for n in range(1, MAX_COUNT + 1) if n != scene.count])
    number, shape = number_word(count), scene.objects[0].shape
    if count == 1:
        texts = [f"has only one {shape}", f"shows a single {shape}", f"there is just one {shape}"]
        return replace(scene, count=1, position="centre"), rng.choice(texts)
    texts = [f"has {number} {plural(shape)}", f"shows {number} of them", f"there are {number} {plural(shape)}"]
    texts.append(f"has {number} {plural(shape)} instead of {number_word(scene.count)}")
    return replace(scene, count=count, position=None), rng.choice(texts)


_CHANGES: dict[str, Callable[[Scene, random.Random, frozenset[str]], tuple[Scene, str]]] = {
    "shape": lambda scene, rng, _: _change_attribute(scene, "shape", rng),
    "colour": lambda scene, rng, _: _change_attribute(scene, "colour", rng),
    "size": lambda scene, rng, _: _change_attribute(scene, "size", rng),
    "texture": lambda scene, rng, _: _change_attribute(scene, "texture", rng),
    "background": lambda scene, rng, _: _change_background(scene, rng),
    "add": _add,
    "remove": lambda scene, rng, _: _remove(scene, rng),
    "move": lambda scene, rng, _: _move(scene, rng),
    "count": lambda scene, rng, _: _change_count(scene, rng),
}
EDIT_KINDS = tuple(_CHANGES)
"""What an edit can do. `add` and `count` start from a lone object, `remove` from a pair, `move` from either."""

_POSSIBLE = {
    "single": tuple(kind for kind in EDIT_KINDS if kind != "remove"),
    "group": ("shape", "colour", "size", "texture", "background", "count"),
    "pair": tuple(kind for kind in EDIT_KINDS if kind not in ("add", "count")),
}


def sample_edit(
    scene: Scene,
    rng: random.Random,
    *,
    kind: str | None = None,
    aspects: frozenset[str] = frozenset(ASPECTS),
) -> Edit:
    """Draws an edit of a scene that stays in the scene's split.

    Args:
        scene ([`Scene`]): The reference.
        rng (`random.Random`): Draws kind, values and wording.
        kind (`str`, *optional*): One of `EDIT_KINDS` that is possible for the scene; drawn when not given.
        aspects (`frozenset[str]`, *optional*): What the text says of an added object (its size, its texture).

    Returns:
        [`Edit`]

    Raises:
        ValueError: If `kind` is not possible for this kind of scene, or no edit of it stays in the split.
    """
    possible = _POSSIBLE[scene.kind]
    if kind is not None and kind not in possible:
        raise ValueError(f"`kind` must be one of {', '.join(possible)} for a {scene.kind} scene, got {kind!r}.")
    for _ in range(_MAX_TRIES):
        chosen = kind or rng.choice(possible)
        after, text = _CHANGES[chosen](scene, rng, aspects)
        if after.split == scene.split and (len(after.objects) == 1 or tell_apart(*after.objects)):
            aspect = _ASPECT_OF.get(chosen)
            if chosen == "move":
                aspect = "position" if scene.kind == "single" else "relation"
            return Edit(chosen, scene, after, text, aspect)
    raise ValueError(f"No edit of kind {kind!r} keeps {scene} in the split {scene.split!r}.")


def sample_edits(
    scene: Scene, rng: random.Random, number: int, *, aspects: frozenset[str] = frozenset(ASPECTS)
) -> list[Edit]:
    """Draws one edit, or two in a row that do different things and do not take each other back.

    Args:
        scene ([`Scene`]): The reference; the last edit's `after` is the target.
        rng (`random.Random`): Draws kinds, values and wording.
        number (`int`): 1 or 2.
        aspects (`frozenset[str]`, *optional*): As for [`sample_edit`].

    Returns:
        `list[Edit]`
    """
    first = sample_edit(scene, rng, aspects=aspects)
    if number == 1:
        return [first]
    while True:
        second = sample_edit(first.after, rng, aspects=aspects)
        undone = {first.kind, second.kind} == {"add", "remove"} or second.after == scene
        if second.kind != first.kind and not undone:
            return [first, second]


def conditioning_text(edits: Sequence[Edit]) -> str:
    """What asks for the edits in this order: `"is red and has two stars"`."""
    return " and ".join(edit.text for edit in edits)


def sample_triplet(rng: random.Random, *, two_edits: float = 0.25) -> dict[str, str]:
    """Draws one text triplet of training combinations: no picture is involved.

    Both captions mention the same aspects (and the target's also what was changed), each in its own words.

    Args:
        rng (`random.Random`): The source of randomness.
        two_edits (`float`, *optional*, defaults to 0.25): Share of triplets that ask for two changes at once.

    Returns:
        `dict` with the `str` entries `reference_caption`, `conditioning_caption`, `target_caption` and `rule` (the
        kinds of the edits, joined by `+`).
    """
    aspects = sample_aspects(rng)
    scene = sample_scene(rng, "train")
    edits = sample_edits(scene, rng, 2 if rng.random() < two_edits else 1, aspects=aspects)
    mentioned = aspects.union(edit.aspect for edit in edits if edit.aspect)
    return {
        "reference_caption": describe_scene(scene, rng, aspects),
        "conditioning_caption": conditioning_text(edits),
        "target_caption": describe_scene(edits[-1].after, rng, mentioned),
        "rule": "+".join(edit.kind for edit in edits),
    }
