"""Changes of conditioning texts that a diagnosis tries: what composition must notice, and what it must not mind."""

import random
from collections.abc import Callable
from typing import NamedTuple

from ..registry import Registry


class Change(NamedTuple):
    """
    A change of a text.

    Args:
        make (`Callable[[str, Callable[[], str], random.Random], str]`): From a text, what draws a text of another
            query, and what else is to be drawn from, to the text that is asked instead.
        group (`str`): `"composition"` where an encoder that composes gets other results, `"robustness"` where a
            sensible one keeps them.
        what (`str`): In a few words.
    """

    make: Callable[[str, Callable[[], str], random.Random], str]
    group: str
    what: str


TEXT_CHANGES = Registry("change of texts", "TEXT_CHANGES")

Other = Callable[[], str]

_LOOKALIKES = str.maketrans("aceiopxyABCEHKMOPTX", "асеіорхуАВСЕНКМОРТХ")  # Latin to Cyrillic
# Texts that go on after `it`, as those of FashionIQ and of the offline world do, and those that do not.
_PREDICATES = frozenset(("is", "has", "are", "have", "shows", "was", "were", "had"))
_FILLERS = {
    True: (
        "i would like to see something rather similar to this one but in such a way that it {}",
        "please look at the picture carefully and then find me another one of the same kind that {} if you can",
    ),
    False: (
        "i would like to see something rather similar to this one but what i really want is this: {}",
        "please look at the picture carefully and then find me another one of the same kind: {} if you can",
    ),
}
_PARAPHRASES = {
    True: ("the same, but it {}", "it {} now", "like this one, only that it {}", "now it {}"),
    False: ("the same, but {}", "{}, please", "like this one, but {}", "what i want: {}"),
}
_COMMANDS = frozenset(
    ("make", "add", "remove", "replace", "change", "put", "turn", "swap", "take", "show", "give", "use", "move")
)
_NEIGHBOURS = {
    "a": "qs",
    "e": "wr",
    "i": "uo",
    "o": "ip",
    "r": "et",
    "t": "ry",
    "s": "ad",
    "n": "bm",
    "l": "k",
    "c": "xv",
}


def _change(name: str, group: str, what: str):
    def register(make):
        TEXT_CHANGES.register(name)(Change(make, group, what))
        return make

    return register


def _is_predicate(text: str) -> bool:
    return text.strip().partition(" ")[0].lower() in _PREDICATES


# Composition or keywords?


@_change("dropped", "composition", "no text at all")
def dropped(text: str, other: Other, rng: random.Random) -> str:
    """Nothing: what is found then, the picture finds."""
    return ""


@_change("shuffled", "composition", "its words in another order")
def shuffled(text: str, other: Other, rng: random.Random) -> str:
    """The same words, in another order where there is one: a bag of keywords does not notice."""
    words = text.split()
    for _ in range(10):
        mixed = rng.sample(words, len(words))
        if mixed != words:
            return " ".join(mixed)
    return text


@_change("negated", "composition", "its opposite")
def negated(text: str, other: Other, rng: random.Random) -> str:
    """The opposite, with the same keywords."""
    first, _, rest = text.strip().partition(" ")
    if first.lower() in _PREDICATES:
        return f"{first} not {rest}".rstrip()
    return f"do not {text}" if first.lower() in _COMMANDS else f"not {text}"


@_change("swapped", "composition", "another query's text")
def swapped(text: str, other: Other, rng: random.Random) -> str:
    """The text of another query."""
    return other()


# Robustness


@_change("typos", "robustness", "a typo in every second longer word")
def typos(text: str, other: Other, rng: random.Random) -> str:
    """In half of the words of four letters and more, one at least, a letter is lost, doubled, exchanged, or missed."""
    words = text.split()
    longer = [place for place, word in enumerate(words) if len(word) >= 4]
    for place in [place for place in longer if rng.random() < 0.5] or longer[:1]:
        word = words[place]
        at = rng.randrange(1, len(word) - 1)
        kind = rng.choice(("lost", "doubled", "swapped", "missed"))
        if kind == "lost":
            words[place] = word[:at] + word[at + 1 :]
        elif kind == "doubled":
            words[place] = word[:at] + word[at] + word[at:]
        elif kind == "swapped":
            words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        else:
            words[place] = word[:at] + rng.choice(_NEIGHBOURS.get(word[at], "e")) + word[at + 1 :]
    return " ".join(words)


@_change("paraphrase", "robustness", "said in another way")
def paraphrase(text: str, other: Other, rng: random.Random) -> str:
    """The same wish in another frame."""
    return rng.choice(_PARAPHRASES[_is_predicate(text)]).format(text)


@_change("verbose", "robustness", "wrapped in many polite words")
def verbose(text: str, other: Other, rng: random.Random) -> str:
    """The same wish among words that say nothing."""
    return rng.choice(_FILLERS[_is_predicate(text)]).format(text)


@_change("ambiguous", "robustness", "half of its words left out")
def ambiguous(text: str, other: Other, rng: random.Random) -> str:
    """Every word but the first with a chance of one half: what is left can mean more than one thing."""
    words = text.split()
    return " ".join(word for place, word in enumerate(words) if place == 0 or rng.random() < 0.5)


@_change("contradiction", "robustness", "followed by a text that says otherwise")
def contradiction(text: str, other: Other, rng: random.Random) -> str:
    """The text, and another query's after it: it cannot be both."""
    return f"{text} and {other()}"


@_change("suffix", "robustness", "followed by words of other queries, as of one who wants to be found")
def suffix(text: str, other: Other, rng: random.Random) -> str:
    """Six words of other queries behind it."""
    return " ".join([text, *(rng.choice(other().split() or [""]) for _ in range(6))])


@_change("lookalikes", "robustness", "Cyrillic letters in place of Latin ones that look the same")
def lookalikes(text: str, other: Other, rng: random.Random) -> str:
    """What a reader takes for the same text."""
    return text.translate(_LOOKALIKES)


@_change("capitals", "robustness", "in capitals")
def capitals(text: str, other: Other, rng: random.Random) -> str:
    """CLIP's tokenizer lowers them again; others may not."""
    return text.upper()


@_change("fullwidth", "robustness", "in full-width letters")
def fullwidth(text: str, other: Other, rng: random.Random) -> str:
    """As from an East Asian keyboard."""
    return "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text)
