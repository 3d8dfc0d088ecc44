"""The keywords of a corpus: which nouns there are, how they are used, and which may stand for which."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...files import whole_file
from ...parsing import read_object
from ...tagging import tag
from .english import (
    ATTRIBUTES,
    CONJUNCTIONS,
    DEFINITE,
    DETERMINERS,
    INDEFINITE,
    NUMBERS,
    POSSESSIVE,
    PREPOSITIONS,
    PRONOUNS,
    RELATIONAL,
    can_be_counted,
    is_participle,
    is_plural,
    singular,
)


_FILE = "vocabulary.json"
_REMEDY = "Remove it: the vocabulary is made anew."
_MOST_WORDS = 3  # of a compound noun
_SHORTEST_MISSPELLED, _MISSPELLED = 6, 50  # letters; how much more frequent the right spelling is
_SURE = 0.9  # share of a word's uses that must agree on its part of speech
_NOUN, _ADJECTIVE, _VERB, _OTHER = "N", "J", "V", "X"
_LETTERS = {"NOUN": _NOUN, "PROPN": _NOUN, "ADJ": _ADJECTIVE, "VERB": _VERB}


class Keyword(NamedTuple):
    """A noun or compound noun in the singular, and how the corpus uses it."""

    noun: str
    count: int
    countable: bool  # "a dog"
    mass: bool  # "grass" without any article
    coloured: bool  # colours stand before it
    sized: bool  # sizes stand before it


@dataclass
class Counts:
    """What captions are counted into; sums, so that neither order nor sharing among processes matters."""

    captions: int = 0
    tags: Counter[tuple[str, str]] = field(default_factory=Counter)  # (word, letter)
    nouns: Counter[tuple[str, str]] = field(default_factory=Counter)  # (noun, frame)
    contexts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (noun, what stands beside it)

    def add(self, other: "Counts") -> None:
        """Adds what was counted elsewhere."""
        self.captions += other.captions
        for name in ("tags", "nouns", "contexts"):
            getattr(self, name).update(getattr(other, name))


def count_captions(captions: Sequence[str], *, tagger: str = "auto") -> Counts:
    """
    Tags captions and counts their words and nouns.

    Args:
        captions (`Sequence[str]`): Captions that hold text.
        tagger (`str`, *optional*, defaults to `"auto"`): See [`tag`].

    Returns:
        `Counts`.
    """
    counts = Counts(captions=len(captions))
    for words in tag(captions, tagger=tagger, remember=False):
        counts.tags.update((word, _LETTERS.get(kind, _OTHER)) for word, kind in words)
        place, found = 0, []
        while place < len(words):
            end = place
            while end < len(words) and words[end][1] in ("NOUN", "PROPN") and words[end][0] not in ATTRIBUTES:
                end += 1
            if 0 < end - place <= _MOST_WORDS and not _describes(words, end):
                found.append((place, end))
            place = max(end, place + 1)
        names = [singular(" ".join(word for word, _ in words[start:end])) for start, end in found]
        for (start, end), name in zip(found, names, strict=True):
            _count_noun(counts, words, (start, end), name)
            counts.contexts.update((name, f"& {other}") for other in {*names} - {name})
    return counts


def _describes(words: list[tuple[str, str]], end: int) -> bool:
    """Whether the nouns before a place describe another one: `a snow covered slope`."""
    behind = words[end : end + 2]
    return len(behind) == 2 and is_participle(behind[0][0]) and behind[1][1] in ("NOUN", "ADJ")


def _count_noun(counts: Counts, words: list[tuple[str, str]], span: tuple[int, int], name: str) -> None:
    start, end = span
    before = start
    while before > 0 and words[before - 1][1] == "ADJ" and words[before - 1][0] not in DETERMINERS:
        before -= 1
        if words[before][0] in ATTRIBUTES:
            kind = "size" if words[before][0] in ("small", "large", "big", "little", "huge", "tiny") else "colour"
            counts.nouns[name, kind] += 1
    left = words[before - 1][0] if before else ""
    if is_plural(words[end - 1][0]):
        frame = "plural"
    elif left in INDEFINITE or left in ("one", "another"):
        frame = "a"
    elif left in DEFINITE or left in POSSESSIVE:
        frame = "the"
    else:
        frame = "bare"
    counts.nouns[name, frame] += 1
    counts.contexts[name, f"< {words[start - 1][0] if start else ''}"] += 1
    counts.contexts[name, f"<< {words[start - 2][0] if start > 1 else ''}"] += 1
    counts.contexts[name, f"> {words[end][0] if end < len(words) else ''}"] += 1


def keywords_of(counts: Counts, *, min_count: int, max_keywords: int | None = None) -> list[Keyword]:
    """
    The nouns that are frequent and unambiguous enough to be exchanged.

    A compound noun is one keyword. Words that taggers take for nouns in less than nine of ten uses, words that place
    or count others ("front", "group"), nouns that are never used with an article nor clearly without, and misspelled
    ones are left out.

    Args:
        counts (`Counts`): Of the corpus.
        min_count (`int`): Rarer ones are left out.
        max_keywords (`int`, *optional*): Only so many, the most frequent ones.

    Returns:
        `list[Keyword]`: by frequency, ties by name.
    """
    letters = letters_of(counts)
    frames: dict[str, Counter[str]] = {}
    for (name, frame), number in counts.nouns.items():
        frames.setdefault(name, Counter())[frame] += number
    found = []
    for name, uses in frames.items():
        number = sum(uses[frame] for frame in ("a", "the", "bare", "plural"))
        words = name.split()
        if number < min_count or not all(map(_is_word, words)) or any(word in RELATIONAL for word in words):
            continue
        # The tagger saw the plural too; the letter is that of whichever form occurs.
        if any(letters.get(word, _NOUN) != _NOUN for word in words):
            continue
        without = uses["a"] + uses["bare"] + uses["plural"]
        countable = can_be_counted(name) and uses["a"] >= 2 and uses["a"] + uses["plural"] >= 0.5 * without
        mass = uses["bare"] >= max(2, min_count) and uses["bare"] >= 0.75 * without and not is_plural(name)
        if countable or mass or is_plural(name):
            often = max(2, 0.01 * number)
            found.append(Keyword(name, number, countable, mass, uses["colour"] >= often, uses["size"] >= often))
    found = _without_misspelled(found)
    return sorted(found, key=lambda keyword: (-keyword.count, keyword.noun))[:max_keywords]


def _without_misspelled(keywords: list[Keyword]) -> list[Keyword]:
    """The keywords but for those that lack or repeat a letter of one fifty times as frequent: `frisbe`."""
    counts = {keyword.noun: keyword.count for keyword in keywords}
    shorter: dict[str, int] = {}  # word without one of its letters -> the most frequent such word's count
    for noun, count in counts.items():
        for one in _without_a_letter(noun):
            shorter[one] = max(count, shorter.get(one, 0))
    return [
        keyword
        for keyword in keywords
        if len(keyword.noun) < _SHORTEST_MISSPELLED
        or max(shorter.get(keyword.noun, 0), *(counts.get(one, 0) for one in _without_a_letter(keyword.noun)))
        < _MISSPELLED * keyword.count
    ]


def _without_a_letter(noun: str) -> set[str]:
    return {noun[:place] + noun[place + 1 :] for place in range(len(noun))}


def letters_of(counts: Counts) -> dict[str, str]:
    """For each word that is nearly always the same part of speech its letter: `N`, `J`, `V` or `X`."""
    totals: Counter[str] = Counter()
    for (word, _), number in counts.tags.items():
        totals[word] += number
    letters = {word: letter for (word, letter), number in counts.tags.items() if number >= _SURE * totals[word]}
    closed = {*PREPOSITIONS, *CONJUNCTIONS, *DETERMINERS, *PRONOUNS, *NUMBERS}
    return {word: letter for word, letter in letters.items() if word not in closed} | dict.fromkeys(
        ({word for word in totals} - letters.keys()) | closed, _OTHER
    )


def _is_word(word: str) -> bool:
    return len(word) > 1 and word.replace("-", "").isalpha() and word.isascii()


class Vocabulary:
    """
    Keywords of a corpus, with those that may stand for each.

    Args:
        keywords (`Sequence[Keyword]`): N keywords.
        neighbours (`np.ndarray` of shape `(N, K)`, int32): Numbers of the keywords that may replace each; -1 fills up.
        letters (`dict[str, str]`): See [`letters_of`].
        company (`dict[str, list[str]]`): For a noun the nouns that captions often hold beside it.
    """

    def __init__(
        self,
        keywords: Sequence[Keyword],
        neighbours: np.ndarray,
        *,
        letters: dict[str, str],
        company: dict[str, list[str]],
    ):
        self.keywords, self.neighbours = list(keywords), neighbours
        self.letters, self.company = letters, company
        self.number_of = {keyword.noun: number for number, keyword in enumerate(self.keywords)}

    def __len__(self) -> int:
        return len(self.keywords)

    def find(self, noun: str) -> Keyword | None:
        """The keyword of a noun in its singular or plural; `None` where it is none."""
        number = self.number_of.get(noun)
        if number is None:
            number = self.number_of.get(singular(noun))
        return None if number is None else self.keywords[number]

    def knows(self, text: str) -> bool:
        """Whether the corpus holds every word of a text."""
        return all(word in self.letters for word in text.split())

    def replacements(self, keyword: Keyword) -> list[Keyword]:
        """The keywords that may stand for one."""
        return [self.keywords[number] for number in self.neighbours[self.number_of[keyword.noun]] if number >= 0]

    def save(self, folder: Path) -> None:
        """Writes `vocabulary.json` and `neighbours.npy`."""
        np.save(folder / "neighbours.npy", self.neighbours)
        content = {"keywords": self.keywords, "letters": self.letters, "company": self.company}
        with whole_file(folder / _FILE) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Vocabulary":
        """Reads what `save` wrote; the neighbours stay on the disk. Raises `ValueError` where it is damaged."""
        folder = Path(folder)
        content = read_object(folder / _FILE, remedy=_REMEDY)
        try:
            return cls(
                [Keyword(*entry) for entry in content["keywords"]],
                np.load(folder / "neighbours.npy", mmap_mode="r", allow_pickle=False),
                letters=content["letters"],
                company=content["company"],
            )
        except Exception as error:  # numpy reads a header as Python's own text
            raise ValueError(
                f"The vocabulary in `{folder}` is damaged ({type(error).__name__}: {error}). {_REMEDY}"
            ) from error

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder holds a whole vocabulary."""
        return (folder / _FILE).is_file()


def company_of(counts: Counts, keywords: Iterable[Keyword], *, number: int = 40) -> dict[str, list[str]]:
    """The countable keywords that stand in one caption with a keyword most often, the most frequent first."""
    known = {keyword.noun: keyword for keyword in keywords}
    beside: dict[str, list[tuple[int, str]]] = {}
    for (name, context), times in counts.contexts.items():
        other = context.removeprefix("& ")
        if context[:2] == "& " and times > 1 and name in known and other in known and known[other].countable:
            beside.setdefault(name, []).append((-times, other))
    return {name: [other for _, other in sorted(pairs)[:number]] for name, pairs in beside.items()}


Encoder = Callable[[Sequence[str]], np.ndarray]
