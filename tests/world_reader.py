"""Reads the texts of the offline world back by its grammar: what a caption says, what a conditioning text asks for."""

import re
from dataclasses import dataclass, replace

from rtd_hf.shapes.scenes import BACKGROUNDS, COLOURS, HELD_OUT, POSITIONS, SHAPES, Object, Scene


SIZE_OF = {**dict.fromkeys(("small", "smaller", "little", "tiny"), "small")}
SIZE_OF |= dict.fromkeys(("large", "larger", "big", "bigger"), "large")
TEXTURE_OF = {**dict.fromkeys(("plain", "solid", "without a pattern"), "plain")}
TEXTURE_OF |= dict.fromkeys(("striped", "with stripes"), "striped")
TEXTURE_OF |= dict.fromkeys(("dotted", "spotted", "with dots", "with spots"), "dotted")
SHAPE_OF = {**{name: name for name in SHAPES}, **{name + "s": name for name in SHAPES}, "crosses": "cross"}
NUMBER_OF = {"one": 1, "two": 2, "three": 3, "four": 4}
PLACE_OF = {
    **dict.fromkeys(("in the middle", "in the centre", "to the middle"), "centre"),
    **dict.fromkeys(("on the left", "at the left side", "to the left"), "left"),
    **dict.fromkeys(("on the right", "at the right side", "to the right"), "right"),
    **dict.fromkeys(("at the top", "up high", "to the top"), "top"),
    **dict.fromkeys(("at the bottom", "down low", "to the bottom"), "bottom"),
}
# What "A <words> B" says: the relation, and whether A stands first (on the left, on top).
RELATION_OF = {
    **dict.fromkeys(("to the left of", "left of"), ("beside", True)),
    **dict.fromkeys(("to the right of", "right of"), ("beside", False)),
    **dict.fromkeys(("above", "over"), ("above", True)),
    **dict.fromkeys(("below", "under"), ("above", False)),
}


def one_of(words) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


BACKGROUND, COLOUR, SHAPE = one_of(BACKGROUNDS), one_of(COLOURS), one_of(SHAPE_OF)
RELATION, PLACE = one_of(RELATION_OF), one_of(PLACE_OF)
PATTERN = r"(?: with (?:stripes|dots|spots))?"
PHRASE = rf"(?:{one_of([*SIZE_OF, *TEXTURE_OF])} ){{0,2}}(?:{COLOUR} )?{SHAPE}{PATTERN}"
THE = rf"the (?:{COLOUR} )?{SHAPE}"


@dataclass(frozen=True)
class Thing:
    """An object as far as it is described; `None` for what is left out."""

    shape: str
    colour: str | None
    size: str | None = None
    texture: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a caption says; `None` for what is left out. Of two things without relation the order means nothing."""

    things: tuple[Thing, ...]
    count: int = 1
    position: str | None = None
    relation: str | None = None
    background: str | None = None

    def scene(self) -> Scene:
        """The scene of a caption that leaves nothing out."""
        objects = tuple(Object(thing.shape, thing.colour, thing.size, thing.texture) for thing in self.things)
        return Scene(self.background, objects, position=self.position, relation=self.relation, count=self.count)


def read_thing(phrase: str) -> Thing:
    found: dict[str, str] = {}

    def take(name: str, value: str) -> None:
        if name in found:
            raise ValueError(f"two times {name} in {phrase!r}")
        found[name] = value

    match = re.fullmatch(r"(.*?)( with \w+)?", phrase)
    if match[2]:
        take("texture", TEXTURE_OF[match[2].strip()])
    for word in match[1].split():
        for name, values in (("size", SIZE_OF), ("texture", TEXTURE_OF), ("shape", SHAPE_OF)):
            if word in values:
                take(name, values[word])
                break
        else:
            if word not in COLOURS:
                raise ValueError(f"unknown word {word!r} in {phrase!r}")
            take("colour", word)
    return Thing(found["shape"], found.get("colour"), found.get("size"), found.get("texture"))


def read_caption(text: str) -> Reading:
    """Parses a caption; raises `ValueError` for anything that is none."""
    match = re.fullmatch(
        rf"(?:(?:a photo|a picture|an image) of )?(?P<what>.+?)"
        rf"(?: (?:on an? (?P<b1>{BACKGROUND}) background|on (?P<b2>{BACKGROUND})|in front of an? (?P<b3>{BACKGROUND}) "
        rf"background|with an? (?P<b4>{BACKGROUND}) background))?",
        text,
    )
    if not match:
        raise ValueError(f"no caption: {text!r}")
    background = next((match[name] for name in ("b1", "b2", "b3", "b4") if match[name]), None)
    what = match["what"]
    if group := re.fullmatch(rf"(two|three|four) ({PHRASE})", what):
        return Reading((read_thing(group[2]),), count=NUMBER_OF[group[1]], background=background)
    if pair := re.fullmatch(rf"an? ({PHRASE}) ({RELATION}|and) an? ({PHRASE})", what):
        things, relation, first = (read_thing(pair[1]), read_thing(pair[3])), None, True
        if pair[2] != "and":
            relation, first = RELATION_OF[pair[2]]
        return Reading(things if first else things[::-1], relation=relation, background=background)
    if single := re.fullmatch(rf"an? ({PHRASE})(?: ({PLACE}))?", what):
        return Reading((read_thing(single[1]),), position=PLACE_OF.get(single[2]), background=background)
    raise ValueError(f"no caption: {text!r}")


def find(who: str, scene: Scene) -> int:
    """The one object that "the red circle" or "the circle" means."""
    thing = read_thing(who.removeprefix("the "))
    fits = [
        index
        for index, item in enumerate(scene.objects)
        if item.shape == thing.shape and thing.colour in (None, item.colour)
    ]
    if len(fits) != 1:
        raise ValueError(f"{who!r} means {len(fits)} objects of {scene}")
    return fits[0]


def changed(scene: Scene, index: int, **values: str) -> Scene:
    objects = list(scene.objects)
    objects[index] = replace(objects[index], **values)
    return replace(scene, objects=tuple(objects))


def property_of(word: str) -> dict[str, str]:
    """`"tiny"` -> `{"size": "small"}`."""
    for name, values in (("size", SIZE_OF), ("texture", TEXTURE_OF), ("shape", SHAPE_OF)):
        if word in values:
            return {name: values[word]}
    if word in COLOURS:
        return {"colour": word}
    raise ValueError(f"unknown word {word!r}")


def follow(text: str, scene: Scene) -> Scene:
    """Does what one conditioning text asks for; raises `ValueError` if it cannot be understood."""
    for step in (_follow_background, _follow_add, _follow_remove, _follow_count, _follow_move, _follow_attribute):
        after = step(text, scene)
        if after is not None:
            return after
    raise ValueError(f"not understood: {text!r}")


def _match(text: str, *patterns: str) -> dict[str, str] | None:
    found = [match.groupdict() for pattern in patterns if (match := re.fullmatch(pattern, text))]
    if len(found) > 1 and any(other != found[0] for other in found):
        raise ValueError(f"ambiguous: {text!r}")
    return {name: value for name, value in found[0].items() if value} if found else None


def _follow_background(text: str, scene: Scene) -> Scene | None:
    said = _match(
        text,
        rf"(?:is on|has) an? (?P<new>{BACKGROUND}) background(?: instead of an? (?P<old>{BACKGROUND}) one)?",
        rf"change the background to (?P<new>{BACKGROUND})",
        rf"the background is (?P<new>{BACKGROUND})",
    )
    if said and said.get("old", scene.background) != scene.background:
        raise ValueError(f"{text!r} names another background than that of {scene}")
    return said and replace(scene, background=said["new"])


def _follow_add(text: str, scene: Scene) -> Scene | None:
    said = _match(
        text,
        rf"(?:add|also has) an? (?P<what>{PHRASE}) (?P<where>{RELATION}) (?P<other>it|{THE})",
        rf"has an? (?P<what>{PHRASE}) added (?P<where>{RELATION}) (?P<other>it|{THE})",
    )
    if not said:
        return None
    if scene.kind != "single":
        raise ValueError(f"{text!r} adds to {scene}, which has no room")
    if said["other"] != "it":
        find(said["other"], scene)
    thing, (relation, first) = read_thing(said["what"]), RELATION_OF[said["where"]]
    item = Object(thing.shape, thing.colour, thing.size, thing.texture)
    objects = (item, *scene.objects) if first else (*scene.objects, item)
    return Scene(scene.background, objects, relation=relation)


def _follow_remove(text: str, scene: Scene) -> Scene | None:
    said = _match(
        text,
        rf"(?:remove|is without|no longer has) (?P<gone>{THE})",
        rf"(?P<gone>{THE}) is gone",
        rf"only has (?P<kept>{THE})",
    )
    if not said:
        return None
    kept = find(said["kept"], scene) if "kept" in said else 1 - find(said["gone"], scene)
    return Scene(scene.background, (scene.objects[kept],), position="centre")


def _follow_count(text: str, scene: Scene) -> Scene | None:
    number = one_of(NUMBER_OF)
    said = _match(
        text,
        rf"has (?P<n>two|three|four) (?P<what>{SHAPE})(?: instead of (?P<old>{number}))?",
        r"shows (?P<n>two|three|four) of them",
        rf"there are (?P<n>two|three|four) (?P<what>{SHAPE})",
        rf"(?:has only one|shows a single|there is just one) (?P<what>{SHAPE})",
    )
    if not said:
        return None
    if SHAPE_OF.get(said.get("what"), scene.objects[0].shape) != scene.objects[0].shape or len(scene.objects) != 1:
        raise ValueError(f"{text!r} counts something else than {scene} shows")
    if NUMBER_OF.get(said.get("old"), scene.count) != scene.count:
        raise ValueError(f"{text!r} names another number than that of {scene}")
    count = NUMBER_OF[said.get("n", "one")]
    return replace(scene, count=count, position="centre" if count == 1 else None)


def _follow_move(text: str, scene: Scene) -> Scene | None:
    place = _match(text, rf"(?:is|moves) (?P<to>{PLACE})", rf"(?:has|move) (?P<who>{THE}) (?P<to>{PLACE})")
    if place and scene.kind == "single":
        find(place["who"], scene) if "who" in place else None
        return replace(scene, position=PLACE_OF[place["to"]])
    said = _match(text, rf"(?:move |has )?(?P<who>{THE})(?: is)? (?P<where>{RELATION}) (?P<other>{THE})")
    if not said:
        return None
    who, other = find(said["who"], scene), find(said["other"], scene)
    relation, first = RELATION_OF[said["where"]]
    order = (who, other) if first else (other, who)
    return replace(scene, relation=relation, objects=tuple(scene.objects[index] for index in order))


def _follow_attribute(text: str, scene: Scene) -> Scene | None:
    word = one_of([*SIZE_OF, *TEXTURE_OF, *COLOURS])
    said = _match(
        text,
        rf"replace (?P<who>{THE}) with (?:an? )?(?P<new>{SHAPE})",
        rf"has (?:an? )?(?P<new>{SHAPE}) instead of (?P<who>{THE})",
        rf"change (?P<who>{THE}) into (?:an? )?(?P<new>{SHAPE})",
        rf"(?P<who>{THE}) (?:is|are) now (?:an? )?(?P<new>{SHAPE})",
        rf"(?:is|are) (?:an? )?(?P<new>{SHAPE}) instead of (?:an? )?(?P<old>{SHAPE})",
        rf"(?P<who>{THE}) (?:is|are)(?: now)? (?P<new>{word})",
        rf"make (?P<who>{THE}) (?P<new>{word})",
        rf"change (?P<who>{THE}) to (?P<new>{COLOUR})",
        rf"has (?P<who>{THE}) in (?P<new>{COLOUR})",
        rf"has (?P<who>{THE}) (?P<new>without a pattern|with stripes|with dots)",
        rf"(?:is|are) (?P<new>{word})(?: instead of (?P<old>{word}))?",
    )
    if not said:
        return None
    if "who" not in said and len(scene.objects) > 1:
        raise ValueError(f"{text!r} does not say which object of {scene}")
    index, new = find(said["who"], scene) if "who" in said else 0, property_of(said["new"])
    ((attribute, value),) = new.items()
    if "old" in said and property_of(said["old"]) != {attribute: getattr(scene.objects[index], attribute)}:
        raise ValueError(f"{text!r} does not name what {scene} shows")
    if getattr(scene.objects[index], attribute) == value:
        raise ValueError(f"{text!r} changes nothing of {scene}")
    return changed(scene, index, **new)


def mentions(text: str) -> set[tuple[str, str, str]]:
    """
    The (shape, colour, texture) combinations that a text says of one object, of a caption or of conditioning texts.

    On purpose greedy: in a clause about a single thing every colour and texture word is counted as said of it.
    """
    words = rf"{one_of([*SIZE_OF, *TEXTURE_OF, *COLOURS])}"
    found = set()
    for clause in re.split(" and | instead of ", text):
        phrases = [match[0] for match in re.finditer(rf"\b(?:{words} )*{SHAPE}\b{PATTERN}", clause)]
        if len(phrases) == 1:
            phrases = [clause]
        for phrase in phrases:
            shapes = {SHAPE_OF[word] for word in re.findall(rf"\b{SHAPE}\b", phrase)}
            colours = set(re.findall(rf"\b{COLOUR}\b", phrase))
            textures = {TEXTURE_OF[word] for word in re.findall(rf"\b{one_of(TEXTURE_OF)}\b", phrase)}
            found |= {(s, c, t) for s in shapes for c in colours for t in textures}
    return found


def held_out_mentions(text: str) -> set[tuple[str, str, str]]:
    return mentions(text) & HELD_OUT


assert set(PLACE_OF.values()) == set(POSITIONS)
