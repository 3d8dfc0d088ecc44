"""Phrases about the objects of the offline world, in place of a language model's: SEARLE's text regulariser."""

import random

from .captions import describe_background, describe_position, relation_words, with_article
from .edits import sample_triplet
from .scenes import BACKGROUNDS, COLOURS, POSITIONS, RELATIONS, SHAPES, TEXTURES, Object, is_held_out


def world_concepts() -> list[str]:
    """The names of all training combinations, such as `"striped red circle"`."""
    return [
        f"{texture} {colour} {shape}"
        for shape in SHAPES
        for colour in COLOURS
        for texture in TEXTURES
        if not is_held_out(Object(shape, colour, "small", texture))
    ]


def world_phrases(number: int, seed: int) -> dict[str, list[str]]:
    """
    Phrases about every training combination.

    Args:
        number (`int`): Phrases for each.
        seed (`int`): Draws them.

    Returns:
        `dict[str, list[str]]`: `{"striped red circle": ["a photo of a striped red circle on the left on grey", ...]}`;
        half of them go on with `that` and a wish for a change.
    """
    names = world_concepts()
    rng = random.Random(f"phrases {seed}")
    return {name: [_phrase(name, names, rng) for _ in range(number)] for name in names}


def _phrase(name: str, names: list[str], rng: random.Random) -> str:
    if rng.random() < 0.5:
        return f"a photo of {name} that {sample_triplet(rng)['conditioning_caption']}"
    place = rng.random()
    words = f"a photo of {with_article(name)}"
    if place < 0.4:
        words += f" {describe_position(rng.choice(POSITIONS), rng)}"
    elif place < 0.7:
        relation = relation_words(rng.choice(RELATIONS), rng.random() < 0.5, rng)
        words += f" {relation} {with_article(rng.choice(names))}"
    return words if rng.random() < 0.25 else f"{words} {describe_background(rng.choice(tuple(BACKGROUNDS)), rng)}"
