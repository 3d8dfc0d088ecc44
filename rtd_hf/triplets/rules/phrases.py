"""A caption taken apart: its words with their parts of speech, and its noun phrases that are safe to edit."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

from ..faults import normalised
from .english import (
    ADVERBS,
    ATTRIBUTES,
    AUXILIARIES,
    CONJUNCTIONS,
    COUNTING_MANY,
    COUNTING_ONE,
    DETERMINERS,
    INDEFINITE,
    NUMBERS,
    PREPOSITIONS,
    PRONOUNS,
    RELATIONAL,
    article,
    capitalised_like,
    is_alike,
    is_participle,
    is_plural,
    singular,
)


_MARK = re.compile(r"\s+([.,!?])")  # with a blank before it
_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
_QUOTES = frozenset('"“”„«»')
# Parts of speech as one letter each: determiner, number, preposition, conjunction, pronoun, auxiliary, adverb.
_CLOSED: dict[str, str] = {}
for _letter, _words in (
    ("R", PRONOUNS), ("B", ADVERBS), ("C", CONJUNCTIONS), ("P", PREPOSITIONS), ("A", AUXILIARIES),
    ("#", NUMBERS), ("D", DETERMINERS), ("J", ATTRIBUTES),
):  # fmt: skip
    _CLOSED |= dict.fromkeys(_words, _letter)
# What may stand before and behind a noun phrase without being a part of it.
# Names of two words, the first of which looks like an adjective, by the second one.
_NAMES = {"decker": ("double", "triple"), "league": ("little", "major", "minor"), "screen": ("flat", "big", "wide")}
_NAMES |= {"panel": ("flat",), "ben": ("big",), "dog": ("hot",), "dogs": ("hot",)}
_BEFORE, _BEHIND = frozenset("D#PCVA.B"), frozenset("PCVA.BDR")


class Phrase(NamedTuple):
    """A noun phrase: word numbers of its start (determiner or number included), its nouns' start, and its end."""

    start: int
    nouns: int
    end: int
    determiner: str  # article, possessive or number before it; empty where there is none
    noun: str  # its noun or compound noun as written, in lower case
    plural: bool
    modifiers: tuple[str, ...]  # the adjectives between the two

    @property
    def lemma(self) -> str:
        """Its noun in the singular."""
        return singular(self.noun)


class Caption:
    """
    A caption taken apart.

    Args:
        text (`str`): The caption; white space is collapsed, and none is left before marks.
        letters (`Mapping[str, str]`): Part of speech of the corpus' words, see [`Vocabulary`].

    Attributes:
        text (`str`): The caption.
        words (`list[str]`): Words and punctuation marks in lower case.
        kinds (`list[str]`): For each its letter; `X` where it is not sure.
        phrases (`list[Phrase]`): Noun phrases whose borders are sure.
    """

    def __init__(self, text: str, letters: Mapping[str, str]):
        self.text = _MARK.sub(r"\1", normalised(text))
        matches = list(_WORD.finditer(self.text))
        self.words = [match.group().lower() for match in matches]
        self.spans = [match.span() for match in matches]
        self.kinds = [_kind(word, letters) for word in self.words]
        # What is quoted is written there, not seen.
        for start, end in _quoted(self.words):
            self.kinds[start:end] = "X" * len(self.kinds[start:end])
        self.phrases = list(self._find_phrases())

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The different words."""
        return frozenset(self.words)

    @cached_property
    def lemmas(self) -> frozenset[str]:
        """The different words, in the singular."""
        return frozenset(map(singular, self.words))

    @property
    def end(self) -> int:
        """How many words there are without the full stop."""
        end = len(self.words)
        while end and self.words[end - 1] in (".", "!", ","):
            end -= 1
        return end

    @cached_property
    def finite_verbs(self) -> list[int]:
        """Places of `is`, `has`, `sits` and the like, and of every word that might be one."""
        return [
            place
            for place, (word, kind) in enumerate(zip(self.words, self.kinds, strict=True))
            if (kind == "A" and word not in ("be", "been", "being"))
            or (kind == "V" and not word.endswith(("ing", "ed", "en")))
            or kind == "X"
        ]

    @cached_property
    def is_simple(self) -> bool:
        """Whether it is one statement: no marks but a comma-less end, no quotes, nothing in brackets."""
        return all(kind != "." for kind in self.kinds[: self.end]) and self.end > 1

    def is_name(self, place: int) -> bool:
        """Whether a word inside a caption has a capital: that of a name."""
        return place > 0 and not self.text.isupper() and self.text[self.spans[place][0]].isupper()

    def kind_at(self, place: int) -> str:
        """The letter of a word; `.` outside the caption."""
        return self.kinds[place] if 0 <= place < len(self.kinds) else "."

    def edited(self, changes: Iterable[tuple[int, int, str]]) -> str:
        """
        The caption with words exchanged.

        Args:
            changes (`Iterable[tuple[int, int, str]]`):
                Word number of the start, of the end, and what comes in their place; may be nothing. The spans do not
                overlap.

        Returns:
            `str`: articles before changed words agree, single spaces, and a capital where the caption has one.
        """
        text = self.text
        for start, end, new in sorted(changes, reverse=True):
            left = self.spans[start][0] if start < len(self.spans) else len(text)
            right = self.spans[end - 1][1] if end > start else left
            before = start - 1
            if new and before >= 0 and self.words[before] in INDEFINITE:
                own = self.spans[before]
                fitting = capitalised_like(article(new), text[own[0] :])
                text = text[: own[0]] + fitting + text[own[1] : left] + new + text[right:]
            else:
                text = text[:left] + new + text[right:]
        return self._in_its_letters(_MARK.sub(r"\1", normalised(text)))

    def appended(self, tail: str) -> str:
        """The caption with words behind it, before its full stop."""
        end = self.end
        cut = self.spans[end - 1][1] if end else 0
        glue = "" if tail.startswith(",") else " "
        return self._in_its_letters(f"{self.text[:cut]}{glue}{tail}{self.text[cut:]}")

    def _in_its_letters(self, text: str) -> str:
        return text.upper() if self.text.isupper() else capitalised_like(text, self.text)

    def without_end(self, start: int) -> str:
        """The caption without its words from a place on; the full stop stays."""
        end = self.end
        return f"{self.text[: self.spans[start - 1][1]]}{self.text[self.spans[end - 1][1] :]}"

    def _find_phrases(self) -> Iterable[Phrase]:
        place = 0
        while place < len(self.words):
            end = place
            while end < len(self.words) and self.kinds[end] == "N":
                end += 1
            if end > place:
                phrase = self._phrase(place, end)
                if phrase:
                    yield phrase
            place = max(end, place + 1)

    def _phrase(self, nouns: int, end: int) -> Phrase | None:
        start = nouns
        while start and self.kinds[start - 1] == "J":
            start -= 1
        if nouns > start and self.words[nouns - 1] in _NAMES.get(self.words[nouns], ()):
            nouns -= 1
        modifiers = tuple(self.words[start:nouns])
        if self.kind_at(start - 1) not in _BEFORE or self.kind_at(end) not in _BEHIND:
            return None
        # "a doughnut like pastry" and "a snow covered slope": the noun describes another.
        if self.kind_at(end + 1) in "NJ" and self.words[end] == "like":
            return None
        if self.kind_at(end) == "V" and is_participle(self.words[end]) and self.kind_at(end + 1) in "NJ":
            return None
        # "a black and white cat": the colour before `and` belongs to it too.
        joint = self.words[start - 1] if start < nouns and start > 1 else ""
        if joint in ("and", "or", "&", "/") and self.kinds[start - 2] == "J":
            return None
        # "a very cute cat": the adverb would be left over.
        if start < nouns and self.kind_at(start - 1) == "B":
            return None
        # "an over ripe banana" is no place.
        if self.kind_at(start - 1) == "P" and self.kind_at(start - 2) == "D":
            return None
        if any(word in RELATIONAL for word in self.words[nouns:end]) or end - nouns > 3:
            return None
        determiner = ""
        if self.kind_at(start - 1) in "D#":
            start -= 1
            determiner = self.words[start]
            if self.kind_at(start - 1) in "D#":  # "all the dogs", "his two dogs"
                return None
        noun = " ".join(self.words[nouns:end])
        many = is_plural(noun)
        # "six stove", "these man", "a shoes": what is wrong already is not made worse. "Two sheep" are right.
        if not is_alike(noun) and determiner in (COUNTING_ONE if many else COUNTING_MANY):
            return None
        return Phrase(start, nouns, end, determiner, noun, many, modifiers)


def _quoted(words: list[str]) -> Iterable[tuple[int, int]]:
    """Where quotes start and end, their marks included."""
    marks = [place for place, word in enumerate(words) if word in _QUOTES]
    return ((start, end + 1) for start, end in zip(marks[::2], [*marks[1::2], len(words)], strict=False))


def _kind(word: str, letters: Mapping[str, str]) -> str:
    if not any(map(str.isalnum, word)):
        return "."
    kind = _CLOSED.get(word)
    if kind:
        return kind
    if word in RELATIONAL:
        return "N"
    return letters.get(word, "X")
