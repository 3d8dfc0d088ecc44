"""Edits of what is there: a noun replaced, something added, something removed."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from . import templates
from .categories import NO_THINGS, PLACES, can_follow, category, head, means_the_same
from .english import (
    ARTICLES,
    COLOURS,
    DEFINITE,
    GENDERED,
    MATERIAL_WORDS,
    PEOPLE,
    POSSESSIVE,
    article,
    is_participle,
    is_plural,
    plural,
    singular,
    with_article,
)
from .english import ATTRIBUTES as ATTRIBUTE_WORDS
from .phrases import Caption, Phrase
from .vocabulary import Keyword, Vocabulary


class Edit(NamedTuple):
    """A triplet, and what it takes away and brings in."""

    reference: str
    conditioning: str
    target: str
    source: str
    new: str


_REFERRING = GENDERED | frozenset("it its itself they them their theirs themselves".split())
_MOST_WORDS_TO_ADD_TO = 25
_HALVES = frozenset({"decker", "league", "screen", "panel", "woman", "ben"})


def agreeing(noun: str, name: str) -> dict[str, str]:
    """The slots of verbs that agree with a noun: `is_s`, `was_s`, `has_s` for the name `s`."""
    many = is_plural(noun)
    return {
        f"is_{name}": "are" if many else "is",
        f"was_{name}": "were" if many else "was",
        f"has_{name}": "have" if many else "has",
    }


def filled(template: str, **slots: str) -> str:
    """A template with its slots filled; what starts with a noun starts with it in lower case."""
    return template.format(**slots)


def once_more(caption: Caption, phrase: Phrase) -> list[Phrase] | None:
    """All phrases with this noun; `None` where it also stands in a place that is not sure."""
    head = singular(phrase.noun.rpartition(" ")[2])
    same = [other for other in caption.phrases if other.lemma == phrase.lemma]
    inside = sum(singular(word) == head for word in caption.words)
    return same if inside == len(same) else None


def may_change(caption: Caption, phrase: Phrase) -> bool:
    """Whether no pronoun of the caption can refer to the phrase."""
    if not caption.vocabulary & _REFERRING:
        return True
    return phrase is not caption.phrases[0] and phrase.lemma.rpartition(" ")[2] not in PEOPLE


def fits(other: Keyword, phrase: Phrase, keyword: Keyword, *, before: str = "") -> bool:
    """Whether a noun can stand where another stands, behind the words before it: its like, with its article, in its
    number, and saying something else."""
    kind = category(keyword.noun)
    if category(other.noun) != kind or head(other.noun) in NO_THINGS or means_the_same(other.noun, keyword.noun):
        return False
    # "league player" and "decker bus" are halves of names.
    if other.noun.split()[0] in _HALVES or not can_follow(before, other.noun):
        return False
    if phrase.plural or phrase.determiner in ("a", "an", "one", "another", "each", "every"):
        return other.countable
    return other.countable if keyword.countable else other.mass


def replacement(caption: Caption, vocabulary: Vocabulary, rng: random.Random) -> tuple[Phrase, Keyword] | None:
    """A phrase that may be replaced, and what by."""
    choices = []
    for phrase in caption.phrases:
        keyword = vocabulary.find(phrase.noun)
        # "without bread" and "another man" say something else with another noun.
        if phrase.determiner in ("all", "both", "no", "any", "another") or head(phrase.lemma) in NO_THINGS:
            continue
        # "a hand written sign", "a cutting board": what describes it does not describe others.
        before = caption.words[phrase.start - 1] if phrase.start and not phrase.determiner else ""
        if is_participle(before) or (before.endswith("ing") and caption.kind_at(phrase.start - 2) in "DJ#"):
            continue
        # "a herd of zebra", "looking out to sea": not every noun can do without an article where others have theirs.
        alone = phrase.start and not phrase.determiner and not phrase.plural and keyword and keyword.countable
        if alone and (before == "of" or not caption.vocabulary.isdisjoint(ARTICLES)):
            continue
        if keyword and may_change(caption, phrase):
            choices.append((phrase, keyword))
    if not choices:
        return None
    phrase, keyword = rng.choice(choices)
    before = " ".join(caption.words[max(0, phrase.start - 2) : phrase.start])
    others = [
        other
        for other in vocabulary.replacements(keyword)
        if fits(other, phrase, keyword, before=before) and caption.lemmas.isdisjoint(other.noun.split())
    ]
    return (phrase, rng.choice(others)) if others else None


def replace_noun(
    caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, wording: str, all_of_them: bool, swap: bool
) -> Edit | None:
    """One noun for another, everywhere in the caption or in the first place alone."""
    found = replacement(caption, vocabulary, rng)
    places = once_more(caption, found[0]) if found else None
    if not places:
        return None
    phrase, other = found
    places = places if all_of_them else [phrase]
    # "a person past some people", "a dog beside another dog": one text asks for one of them.
    if any(place.plural != phrase.plural for place in places) or any(
        place.determiner and place.determiner not in DEFINITE | POSSESSIVE for place in places[1:]
    ):
        return None
    changes = []
    for place in places:
        new = plural(other.noun) if place.plural else other.noun
        changes.append((*_span_with_modifiers(place), new))
    start, end = _span_with_modifiers(phrase)
    source = " ".join(caption.words[start:end])
    target = plural(other.noun) if phrase.plural else other.noun
    reference, edited = caption.text, caption.edited(changes)
    if swap:
        reference, edited, source, target = edited, reference, target, source
    choices = templates.REPLACE if wording == "replace" else getattr(templates, wording.upper())
    if wording == "replace" and rng.random() < 0.15:
        choices = templates.UNNAMED
    if is_plural(target):
        choices = [one for one in choices if one != "make it {t}"]
    wanted = _with_article_if(target, countable=_is_countable(target, vocabulary, other))
    slots = {**agreeing(source, "s"), **agreeing(target, "t")}
    return Edit(reference, filled(rng.choice(choices), s=source, t=wanted, **slots), edited, source, target)


def _span_with_modifiers(phrase: Phrase) -> tuple[int, int]:
    """The nouns; with their adjectives where these may not fit another noun."""
    keep = all(word in ATTRIBUTE_WORDS and word not in MATERIAL_WORDS for word in phrase.modifiers)
    return (phrase.nouns if keep else phrase.nouns - len(phrase.modifiers)), phrase.end


def _is_countable(noun: str, vocabulary: Vocabulary, fallback: Keyword) -> bool:
    keyword = vocabulary.find(noun.rpartition(" ")[2]) if vocabulary.find(noun) is None else vocabulary.find(noun)
    return (keyword or fallback).countable


def _with_article_if(noun: str, *, countable: bool) -> str:
    return with_article(noun) if countable and not is_plural(noun) else noun


def add_object(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """Something more, written behind the caption; the other way round, something less."""
    if not can_be_appended_to(caption) or caption.vocabulary & {"background", "foreground", "nearby", "with"}:
        return None
    known = [phrase.lemma for phrase in caption.phrases if phrase.lemma in vocabulary.company]
    if not known:
        return None
    beside = [noun for noun in vocabulary.company[rng.choice(known)] if can_be_put(noun, caption)]
    if not beside:
        return None
    noun = rng.choice(beside)
    keyword = vocabulary.find(noun)
    plain = noun
    if keyword.coloured and rng.random() < 0.4:
        noun = f"{rng.choice(COLOURS)} {noun}"
    tail = rng.choice(tuple(templates.ADD))
    longer = caption.appended(tail.format(t=with_article(noun)))
    if swap:
        return Edit(longer, filled(rng.choice(templates.REMOVE), s=plain, **agreeing(plain, "s")),
                    caption.text, noun, "")  # fmt: skip
    text = filled(rng.choice(templates.ADD[tail]), t=with_article(noun), **agreeing(noun, "t"))
    return Edit(caption.text, text, longer, "", noun)


def can_be_put(noun: str, caption: Caption) -> bool:
    """Whether a noun is a thing that can stand somewhere, and the caption does not hold it yet."""
    fixed = category(noun) in {*PLACES, "building part", "surface", "worn"} or head(noun) in NO_THINGS
    if fixed or noun.split()[0] in _HALVES or not caption.lemmas.isdisjoint(noun.split()):
        return False
    return not any(means_the_same(noun, lemma) for lemma in caption.lemmas)


def can_be_appended_to(caption: Caption) -> bool:
    """Whether words may be written behind the caption: one statement that ends in a noun or the like."""
    return (
        caption.is_simple
        and caption.end <= _MOST_WORDS_TO_ADD_TO
        and len(caption.phrases) > 0
        and caption.kind_at(caption.end - 1) == "N"
        and caption.kind_at(caption.end - 2) != "X"
    )


def removable(caption: Caption) -> Iterator[tuple[int, Phrase]]:
    """Where an ending such as `with a hat` starts without which the caption still stands, and what it is about."""
    if not caption.is_simple or caption.vocabulary & {"between", "both", "of", "each"}:
        return
    for phrase in caption.phrases:
        before = phrase.start - 1
        joint = caption.words[before] if before > 0 else ""
        if phrase.end != caption.end or not phrase.determiner or caption.kind_at(before - 1) != "N":
            continue
        # Only behind a sure phrase: "playing tennis with a friend" and "looks at a cat and a dog" stay as they are.
        behind = any(other.end == before for other in caption.phrases)
        if joint == "with" and behind and not any(kind == "V" for kind in caption.kinds[:before]):
            yield before, phrase
        elif joint == "and" and behind and phrase.determiner in ("a", "an", "some") and before > 1:
            yield before, phrase


def remove_object(caption: Caption, vocabulary: Vocabulary, rng: random.Random, *, swap: bool) -> Edit | None:
    """What the end of the caption adds is taken away; the other way round, it is added."""
    choices = [(start, phrase) for start, phrase in removable(caption) if once_more(caption, phrase)]
    if not choices:
        return None
    start, phrase = rng.choice(choices)
    shorter = caption.without_end(start)
    noun = " ".join((*phrase.modifiers, phrase.noun))
    if len(shorter.split()) < 2:
        return None
    if not swap:
        text = filled(rng.choice(templates.REMOVE), s=phrase.noun, **agreeing(phrase.noun, "s"))
        return Edit(caption.text, text, shorter, noun, "")
    whole = " ".join(caption.words[phrase.start : phrase.end])
    if phrase.determiner in ("his", "her", "its", "their", "the", "this", "that"):
        whole = noun if phrase.plural else f"{article(noun)} {noun}"
    options = ("add {t}", "also has {t}", "there {is_t} also {t}", "include {t} as well", "put {t} there too")
    text = filled(rng.choice(options), t=whole, **agreeing(phrase.noun, "t"))
    return Edit(shorter, text, caption.text, "", noun)
