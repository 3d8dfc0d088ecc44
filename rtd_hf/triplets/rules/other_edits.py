"""Edits of how things are: how many, of what colour, where, in which style, and what is not so."""

import random

from . import templates
from .categories import NO_THINGS, PLACES, category, head
from .english import (
    COLOUR_WORDS,
    COLOURS,
    INDEFINITE,
    MATERIAL_WORDS,
    MATERIALS,
    NUMBERS,
    PLURAL_OF_VERB,
    SIZE_GROUPS,
    SIZE_WORDS,
    base_of_verb,
    capitalised_like,
    is_plural,
    plural,
    with_article,
)
from .noun_edits import Edit, agreeing, can_be_appended_to, can_be_put, filled, may_change, once_more
from .phrases import Caption, Phrase
from .vocabulary import Vocabulary


_MOST = 5  # things: more are not told apart in a picture
_NO_PLACE = frozenset("in at near by inside outside around along across under over background foreground".split())


def change_count(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """One thing becomes several, or several another number."""
    choices = []
    for phrase in caption.phrases:
        keyword = vocabulary.find(phrase.noun)
        # "in a field", "of a house": there is but one.
        where = phrase.start and caption.words[phrase.start - 1] not in ("with", "and") and (
            caption.kinds[phrase.start - 1] != "V")  # fmt: skip
        if where or category(phrase.lemma) in {*PLACES, "worn"} or head(phrase.lemma) in NO_THINGS:
            continue
        # "a horse and rider": they share the article.
        shared = caption.words[phrase.end : phrase.end + 1] in (["and"], ["or"], [","], ["&"])
        if shared and caption.kind_at(phrase.end + 1) not in "D#":
            continue
        if keyword and keyword.countable and once_more(caption, phrase) == [phrase] and not caption.vocabulary & {
            "each", "other", "another", "together", "both", "between"}:  # fmt: skip
            choices.append(phrase)
    if not choices:
        return None
    phrase = rng.choice(choices)
    if phrase.determiner in NUMBERS[1:6] and phrase.plural:
        old = NUMBERS.index(phrase.determiner) + 1
        new = rng.choice([number for number in range(2, _MOST + 1) if number != old])
        edited = caption.edited([(phrase.start, phrase.start + 1, NUMBERS[new - 1])])
    elif phrase.determiner in (*INDEFINITE, "one") and not phrase.plural and may_change(caption, phrase):
        old, new = 1, rng.randint(2, _MOST)
        bent = _as_many(caption, phrase)
        if bent is None:
            return None
        edited = caption.edited([(phrase.start, phrase.start + 1, NUMBERS[new - 1]), *bent])
    else:
        return None
    reference = caption.text
    if swap:
        reference, edited, old, new = edited, reference, new, old
    one = plural_to_one(phrase, vocabulary)
    counted = {number: f"{NUMBERS[number - 1]} {one if number == 1 else plural(one)}" for number in (old, new)}
    text = filled(
        rng.choice(templates.COUNT),
        n=counted[old],
        m=counted[new],
        k=NUMBERS[new - 1],
        plural=plural(one),
        are_m="is" if new == 1 else "are",
        becomes_n="becomes" if old == 1 else "become",
    )
    return Edit(reference, text, edited, counted[old], counted[new])


def plural_to_one(phrase: Phrase, vocabulary: Vocabulary) -> str:
    """The noun of a phrase in the singular, as the vocabulary has it."""
    return vocabulary.find(phrase.noun).noun


def _as_many(caption: Caption, phrase: Phrase) -> list[tuple[int, int, str]] | None:
    """What else has to change where one becomes several; `None` where that is not sure."""
    changes = [(phrase.nouns, phrase.end, plural(phrase.noun))]
    verbs = [place for place in caption.finite_verbs if place >= phrase.end]
    if phrase.start > 0:
        # An object: whatever verb stands behind it may or may not be its own.
        return None if verbs else changes
    if not verbs:
        return changes
    if verbs != [phrase.end]:
        return None
    word, kind = caption.words[phrase.end], caption.kinds[phrase.end]
    bent = PLURAL_OF_VERB.get(word) if kind == "A" else base_of_verb(word) if kind == "V" else None
    return None if bent is None else [*changes, (phrase.end, phrase.end + 1, bent)]


def change_attribute(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """Another colour, size or material, or a colour or size where none is named."""
    usable = [
        phrase
        for phrase in caption.phrases
        if phrase.determiner not in ("no", "any")
        and once_more(caption, phrase) == [phrase]
        # "a white refrigerator stove oven" may be several things.
        and (" " not in phrase.noun or vocabulary.find(phrase.noun))
    ]
    named = [
        (phrase, word)
        for phrase in usable
        for word in phrase.modifiers
        if _alternatives(word, phrase, vocabulary)
        and not caption.is_name(caption.words.index(word, phrase.start, phrase.nouns))
    ]
    bare = [
        phrase for phrase in usable if not phrase.modifiers and phrase.determiner and _can_have(phrase, vocabulary)
    ]
    if not named and not bare:
        return None
    if bare and (not named or rng.random() < 0.3):
        return _new_attribute(caption, rng.choice(bare), vocabulary, rng)
    phrase, old = rng.choice(named)
    kind, others = _alternatives(old, phrase, vocabulary)
    new = rng.choice(others)
    place = caption.words.index(old, phrase.start, phrase.nouns)
    reference, edited = caption.text, caption.edited([(place, place + 1, new)])
    if swap:
        reference, edited, old, new = edited, reference, new, old
    noun = phrase.noun
    described = {
        f"{name}_s": f"{value} {noun}" if phrase.plural or not phrase.determiner else with_article(f"{value} {noun}")
        for name, value in (("old", old), ("new", new))
    }
    text = filled(rng.choice(templates.ATTRIBUTE), s=noun, old=old, new=new, kind=kind, **described,
                  **agreeing(noun, "s"))  # fmt: skip
    return Edit(reference, text, edited, f"{old} {noun}", f"{new} {noun}")


def _alternatives(word: str, phrase: Phrase, vocabulary: Vocabulary) -> tuple[str, list[str]] | None:
    """What kind of attribute a word is, and others of its kind that the corpus knows; `None` if there are none."""
    kind, others = _kind_and_others(word, phrase)
    others = [other for other in others if vocabulary.knows(other)]
    return (kind, others) if others else None


def _kind_and_others(word: str, phrase: Phrase) -> tuple[str, list[str]]:
    kinds = sum(any(modifier in one for modifier in phrase.modifiers) for one in (COLOUR_WORDS, MATERIAL_WORDS))
    if word in COLOUR_WORDS and sum(modifier in COLOUR_WORDS for modifier in phrase.modifiers) == 1:
        same = {word, "grey" if word == "gray" else "gray" if word == "grey" else word}
        return "color", [other for other in COLOURS if other not in same]
    if word in MATERIAL_WORDS and kinds == 1:
        same = {word, "metal" if word == "metallic" else word}
        return "material", [other for other in MATERIALS if other not in same]
    if (
        word in SIZE_WORDS
        and word == phrase.modifiers[0]
        and sum(modifier in SIZE_WORDS for modifier in phrase.modifiers) == 1
    ):
        group = next(group for group in SIZE_GROUPS if word in group)
        small = {"small", "tiny", "little"}
        return "size", [other for other in group if other != word and (len(group) == 2 or (other in small) != (
            word in small))]  # fmt: skip
    return "", []


def _can_have(phrase: Phrase, vocabulary: Vocabulary) -> bool:
    keyword = vocabulary.find(phrase.noun)
    if head(phrase.lemma) in NO_THINGS:
        return False
    return keyword is not None and keyword.countable and (keyword.coloured or keyword.sized)


def _new_attribute(caption: Caption, phrase: Phrase, vocabulary: Vocabulary, rng: random.Random) -> Edit | None:
    keyword = vocabulary.find(phrase.noun)
    sizes = caption.vocabulary & SIZE_WORDS
    kinds = [("color", COLOURS)] if keyword.coloured else []
    # "two large dogs, one big, the other small" would contradict itself.
    kinds += [("size", ("tiny", "huge", "large", "small"))] if keyword.sized and not sizes else []
    kinds = [(kind, known) for kind, values in kinds if (known := [one for one in values if vocabulary.knows(one)])]
    if not kinds:
        return None
    kind, values = rng.choice(kinds)
    new = rng.choice(values)
    edited = caption.edited([(phrase.nouns, phrase.end, f"{new} {caption.words[phrase.nouns]}" + "".join(
        f" {word}" for word in caption.words[phrase.nouns + 1 : phrase.end]))])  # fmt: skip
    choices = templates.NEW_ATTRIBUTE if kind == "color" else templates.NEW_ATTRIBUTE[:-1]
    text = filled(rng.choice(choices), s=phrase.noun, new=new, kind=kind, **agreeing(phrase.noun, "s")).replace(
        " a orange ", " an orange "
    )
    return Edit(caption.text, text, edited, phrase.noun, f"{new} {phrase.noun}")


def move_elsewhere(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """Another place at the end of the caption, or a place where none is named."""
    joint, place = rng.choice(templates.PLACES)
    if not vocabulary.knows(place) or not caption.lemmas.isdisjoint(set(place.split()) - {"a", "an", "the"}):
        return None
    there = f"{joint} {place}"
    last = next((phrase for phrase in caption.phrases if phrase.end == caption.end), None)
    before = last.start - 1 if last else 0
    if last and last.noun.rpartition(" ")[2] in templates.PLACE_NOUNS and before > 1:
        # "down a street" and "looking at a field" belong to their verbs.
        if caption.words[before] not in ("in", "on") or caption.kind_at(before - 1) not in "NV":
            return None
        if any(caption.words[before - 1].startswith(start) for start in ("look", "driv", "walk", "cover", "interest")):
            return None
        was = " ".join(caption.words[last.start : last.end])
        if not last.determiner:
            return None
        was_at = f"{caption.words[before]} {was}"
        reference, edited = caption.text, caption.edited([(before, caption.end, there)])
        if swap:
            reference, edited = edited, reference
            there, was_at, place, was = was_at, there, was, place
        text = filled(rng.choice(_told(templates.MOVE, place, was)), at=there, was_at=was_at, place=place, old=was)
        return Edit(reference, text, edited, was, place)
    if not can_be_appended_to(caption) or caption.vocabulary & (_NO_PLACE | templates.PLACE_NOUNS | {"on"}):
        return None
    if any(category(lemma) in PLACES for lemma in caption.lemmas):
        return None
    # "has yellow feathers on a rooftop": the place would be that of the feathers.
    if not caption.vocabulary.isdisjoint(("has", "have", "had")):
        return None
    text = filled(rng.choice(_told(templates.NEW_PLACE, place)), at=there, place=place)
    return Edit(caption.text, text, caption.appended(there), "", place)


def _told(choices: tuple[str, ...], *places: str) -> list[str]:
    """The templates that go with the places: one is in the snow and in the rain, but these are no locations."""
    weather = any(place.split()[-1] in ("snow", "rain") for place in places)
    return [one for one in choices if not (weather and ("{place}" in one or "{old}" in one))]


def change_style(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """The same in another medium, and back to a photo."""
    style, tail = rng.choice(templates.STYLES)
    if not caption.is_simple or caption.vocabulary & {
        "photo", "photograph", "picture", "image", "painting", "drawing", "sketch", "cartoon", "view", "shot", "style",
        "portrait", "black-and-white", "vintage", "close-up", "close", "up"}:  # fmt: skip
        return None
    if style.split()[-1] in caption.vocabulary or (style.startswith("a black") and "black" in caption.vocabulary):
        return None
    leads = caption.words[0] in ("a", "an", "the", "two", "three", "four", "some", "several")
    if leads and not caption.finite_verbs and rng.random() < 0.6:
        plain = caption.text[:1].lower() + caption.text[1:]
        edited = capitalised_like(f"{style} of {plain}", caption.text)
    else:
        edited = caption.appended(f", {tail}")
    if swap:
        photo = "a color photo" if style.startswith("a black") else "a photo"
        text = rng.choice(("make it {photo} instead of {style}", "{photo} rather than {style}",
                           "change it from {style} to {photo}"))  # fmt: skip
        return Edit(edited, text.format(style=style, photo=photo), caption.text, style, "photo")
    return Edit(caption.text, filled(rng.choice(templates.STYLE), style=style), edited, "", style)


def negate(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """Something is not there, or not done."""
    ways = [_without, _not_doing]
    rng.shuffle(ways)
    # Naming what nobody expected is the weakest of them, and nearly always works.
    for way in (*ways, _nothing_of):
        edit = way(caption, vocabulary, rng, swap=swap)
        if edit:
            return edit
    return None


def _without(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """`with a hat` becomes `without a hat`."""
    for phrase in caption.phrases:
        before = phrase.start - 1
        if before < 2 or caption.words[before] != "with" or phrase.determiner not in ("", *INDEFINITE):
            continue
        behind = any(other.end == before for other in caption.phrases)
        if not behind or once_more(caption, phrase) != [phrase] or vocabulary.find(phrase.noun) is None:
            continue
        # "with a stove, sink and fridge": the others would be denied as well.
        if (phrase.end != caption.end and caption.kind_at(phrase.end) not in "PV") or any(
            kind == "V" for kind in caption.kinds[:before]
        ):
            continue
        edited = caption.edited([(before, before + 1, "without")])
        noun = " ".join((*phrase.modifiers, phrase.noun))
        shown = with_article(noun) if phrase.determiner else noun
        if swap:
            text = rng.choice(("now has {t}", "with {t}", "has {t} after all", "add {t}")).format(t=shown)
            return Edit(edited, text, caption.text, "", noun)
        text = filled(rng.choice(templates.NEGATED_OBJECT), s=noun, the_s=shown, **agreeing(phrase.noun, "s"))
        return Edit(caption.text, text, edited, noun, "")
    return None


def _not_doing(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """`is sleeping` becomes `is not sleeping`."""
    first = caption.phrases[0] if caption.phrases else None
    if first is None or first.start != 0:
        return None
    place = first.end
    if place + 1 >= len(caption) or caption.words[place] not in ("is", "are") or caption.kinds[place + 1] != "V":
        return None
    verb = caption.words[place + 1]
    if not verb.endswith("ing") or (caption.words[place] == "are") != is_plural(first.noun) or "and" in caption.words:
        return None
    # "is not wearing" says nothing without what is worn.
    if caption.kind_at(place + 2) not in "P.":
        return None
    edited = caption.edited([(place, place + 1, f"{caption.words[place]} not")])
    said = {"s": first.noun, "verb": verb, **agreeing(first.noun, "s")}
    if swap:
        text = rng.choice(("the {s} {is_s} {verb}", "now the {s} {is_s} {verb}")).format(**said)
        return Edit(edited, text, caption.text, "", verb)
    return Edit(caption.text, filled(rng.choice(templates.NEGATED_ACTION), **said), edited, verb, "")


def _nothing_of(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """Behind the caption: `with no cars around`."""
    if not can_be_appended_to(caption) or caption.vocabulary & {"with", "without", "no"}:
        return None
    known = [phrase.lemma for phrase in caption.phrases if phrase.lemma in vocabulary.company]
    beside = vocabulary.company[rng.choice(known)] if known else []
    # "a man on a beach with no guys around" would contradict itself.
    alive = any(category(lemma) == "animate" for lemma in caption.lemmas)
    beside = [noun for noun in beside if can_be_put(noun, caption) and not (alive and category(noun) == "animate")]
    if not beside:
        return None
    many = plural(rng.choice(beside))
    edited = caption.appended(f"with no {many} {rng.choice(('around', 'in sight', 'nearby'))}")
    return Edit(caption.text, filled(rng.choice(templates.ABSENT), plural=many), edited, many, "")
