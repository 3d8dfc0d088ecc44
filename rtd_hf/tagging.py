"""Parts of speech of captions, and what projections are trained with: captions with words masked or split off.

Two taggers: spaCy's small English model where both are installed (`python -m spacy download en_core_web_sm`), as the
publications have it, and otherwise the Hanover Tagger (Wartena, KONVENS 2019), a pure Python package that brings its
model along, so that `pip` alone is enough. Tags are those of Universal Dependencies (`NOUN`, `ADJ`, `DET`, ...).
"""

import inspect
import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache

from .texts import PLACEHOLDER, clean_caption


TAGGERS = ("auto", "spacy", "hanta")
SPACY_MODEL = "en_core_web_sm"

TaggedWords = list[tuple[str, str]]

# The Hanover Tagger's English tags are those of the British National Corpus (CLAWS C5). Articles and the like fall
# apart into DET and PRON as in Universal Dependencies; what the corpus left unclassified are nouns in captions.
_BY_TAG = {"NP0": "PROPN", "AVP": "ADP", "CRD": "NUM", "ORD": "ADJ", "AT0": "DET", "DT0": "DET", "CJC": "CCONJ"}
_BY_TAG |= {"PRP": "ADP", "PRF": "ADP", "TO0": "PART", "POS": "PART", "XX0": "PART", "ITJ": "INTJ", "UNC": "NOUN"}
_BY_TAG |= {"VM0": "AUX", "EX0": "PRON", "DPS": "PRON", "DTQ": "PRON", "IN": "ADP"}
_BY_START = {"NN": "NOUN", "AJ": "ADJ", "AV": "ADV", "VV": "VERB", "VB": "AUX", "VD": "AUX", "VH": "AUX"}
_BY_START |= {"CJ": "SCONJ", "PN": "PRON", "PU": "PUNCT"}

_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
_KEYWORDS = frozenset({"NOUN", "PROPN", "ADJ", "DET"})
_NOUNS = frozenset({"NOUN", "PROPN"})
# "a circle right of a square": between two things these are no things.
_SIDES = frozenset({"left", "right"})
# What a caption says about itself before it says what it shows.
_MEDIA = frozenset("photo photograph picture image pic snapshot shot view closeup close-up".split())
_NOTHING_LEFT = f"a photo of {PLACEHOLDER}"


def tag(texts: Sequence[str], *, tagger: str = "auto", remember: bool = True) -> list[TaggedWords]:
    """
    Splits texts into words and says what part of speech each is.

    Texts are cleaned first ([`clean_caption`]): lower case, no `$`.

    Args:
        texts (`Sequence[str]`): Captions, in English.
        tagger (`str`, *optional*, defaults to `"auto"`):
            `"spacy"`, `"hanta"`, or `"auto"`: spaCy where it and its model are installed, else the Hanover Tagger.
        remember (`bool`, *optional*, defaults to `True`):
            Whether the results of up to 200,000 texts are kept, about 2 kB each, for when they come again.

    Returns:
        `list[list[tuple[str, str]]]`: for each text its words and punctuation marks, each with its tag of Universal
        Dependencies (`NOUN`, `PROPN`, `ADJ`, `DET`, `NUM`, `VERB`, `AUX`, `ADP`, ...).

    Raises:
        TypeError: `texts` is one string.
        ValueError: `tagger` is none of these.
        ImportError: the tagger is not installed; the message holds the command that installs it.
    """
    if isinstance(texts, str):
        raise TypeError(f"`texts` must be a sequence of strings, but is the one string {texts!r}. Wrap it: [...].")
    tagged = _remembered(_resolve(tagger))
    if not remember:
        tagged = tagged.__wrapped__
    return [list(tagged(clean_caption(text))) for text in texts]


def mask_keywords(texts: Sequence[str], *, seed: int = 0, tagger: str = "auto") -> list[str]:
    """
    Masks what a caption is about, as LinCIR does (Gu et al., CVPR 2024, section 3.2).

    Every longest run of nouns, proper nouns, adjectives and determiners becomes one `$`. Where there is none, one word
    drawn at random does; of a text without words `"a photo of $"` is made.

    Args:
        texts (`Sequence[str]`): Captions.
        seed (`int`, *optional*, defaults to 0): With the text, it alone decides what is drawn.
        tagger (`str`, *optional*, defaults to `"auto"`): See [`tag`].

    Returns:
        `list[str]`: `"$ sits on $"` for `"a grey cat sits on the old sofa"`.

    Raises:
        TypeError, ValueError, ImportError: as [`tag`].
    """
    return [_mask_runs(words, seed) for words in tag(texts, tagger=tagger)]


def mask_object(texts: Sequence[str], *, seed: int = 0, tagger: str = "auto") -> list[str]:
    """
    Masks the name of the object a caption is about, as Context-I2W's training wants it (Tang et al., AAAI 2024).

    How its authors found the object is not published. Here it is the head of the first noun phrase: the last of the
    first nouns in a row, which become one `$`, adjectives and articles remain. `a photo of` at the start is passed
    over. Where there is no noun, one word drawn at random is masked.

    Args:
        texts (`Sequence[str]`): Captions.
        seed (`int`, *optional*, defaults to 0): With the text, it alone decides what is drawn.
        tagger (`str`, *optional*, defaults to `"auto"`): See [`tag`].

    Returns:
        `list[str]`: `"a grey $ sits on the old sofa"` for `"a grey cat sits on the old sofa"`.

    Raises:
        TypeError, ValueError, ImportError: as [`tag`].
    """
    masked = []
    for words in tag(texts, tagger=tagger):
        start, end = _first_nouns(words)
        if start == end:
            masked.append(_mask_one(words, seed))
        else:
            masked.append(_joined([*words[: end - 1], (PLACEHOLDER, ""), *words[end:]]))
    return masked


def split_subject(texts: Sequence[str], *, tagger: str = "auto") -> list[tuple[str, str]]:
    """
    Splits captions into a subject and what is said about it, as FTI4CIR does (Lin et al., SIGIR 2024).

    The subject ends with the first noun, or with the last of several in a row. `a photo of` at the start is passed
    over, and so is a `with` at the split, because the prompt of FTI4CIR says it.

    Args:
        texts (`Sequence[str]`): Captions.
        tagger (`str`, *optional*, defaults to `"auto"`): See [`tag`].

    Returns:
        `list[tuple[str, str]]`: subject and attribute, `("a grey cat", "sits on the old sofa")`. The attribute is
        empty where nothing follows; a text without nouns is all subject.

    Raises:
        TypeError, ValueError, ImportError: as [`tag`].
    """
    parts = []
    for words in tag(texts, tagger=tagger):
        begin = _opening(words)
        _, end = _first_nouns(words)
        rest = [word for word in words[end:] if word[1] != "PUNCT"] if end > begin else []
        if rest and rest[0][0] == "with":
            rest = rest[1:]
        subject = words[begin:end] if end > begin else words
        parts.append((_joined(subject), _joined(rest)))
    return parts


def _mask_runs(words: TaggedWords, seed: int) -> str:
    masked: list[str] = []
    for word, kind in words:
        if kind not in _KEYWORDS:
            masked.append(word)
        elif not masked or masked[-1] != PLACEHOLDER:
            masked.append(PLACEHOLDER)
    return " ".join(masked) if PLACEHOLDER in masked else _mask_one(words, seed)


def _mask_one(words: TaggedWords, seed: int) -> str:
    """One word drawn at random becomes the placeholder."""
    places = [place for place, (_, kind) in enumerate(words) if kind != "PUNCT"]
    if not places:
        return _NOTHING_LEFT
    text = _joined(words)
    drawn = random.Random(f"{seed} {text}").choice(places)
    return _joined([*words[:drawn], (PLACEHOLDER, ""), *words[drawn + 1 :]])


def _joined(words: TaggedWords) -> str:
    return " ".join(word for word, _ in words)


def _opening(words: TaggedWords) -> int:
    """How many words `a photo of`, `there is` and the like take at the start; 0 where nothing else follows."""
    start = 2 if len(words) > 2 and words[0][0] == "there" and words[1][0] in ("is", "are") else 0
    for place in range(start, min(start + 5, len(words) - 2)):
        if words[place][0] in _MEDIA:
            return place + 2 if words[place + 1] == ("of", "ADP") else start
    return start


def _first_nouns(words: TaggedWords) -> tuple[int, int]:
    """Where the first nouns in a row begin and end; twice the same number where there are none."""
    start = _opening(words)
    while start < len(words) and words[start][1] not in _NOUNS:
        start += 1
    end = start
    while end < len(words) and words[end][1] in _NOUNS:
        end += 1
    return (start, end) if end > start else (0, 0)


# The taggers


def _resolve(tagger: str) -> str:
    if tagger not in TAGGERS:
        raise ValueError(f"`tagger` must be one of {', '.join(map(repr, TAGGERS))}, but is {tagger!r}.")
    return ("spacy" if _has_spacy() else "hanta") if tagger == "auto" else tagger


@cache
def _has_spacy() -> bool:
    from importlib.util import find_spec

    return find_spec("spacy") is not None and find_spec(SPACY_MODEL) is not None


@cache
def _remembered(tagger: str) -> Callable[[str], tuple[tuple[str, str], ...]]:
    """What tags one cleaned text, with its results kept."""
    tagging = _load_spacy() if tagger == "spacy" else _load_hanta()
    return lru_cache(maxsize=200_000)(lambda text: tuple(_corrected(list(tagging(text)))))


def _corrected(words: TaggedWords) -> Iterable[tuple[str, str]]:
    for place, (word, kind) in enumerate(words):
        is_side = word in _SIDES and words[place + 1 : place + 2] == [("of", "ADP")]
        yield word, "ADV" if is_side and words[place - 1][1] in _NOUNS else kind


def _load_spacy() -> Callable[[str], Iterable[tuple[str, str]]]:
    try:
        import spacy

        model = spacy.load(SPACY_MODEL, disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        raise ImportError(
            f"`tagger='spacy'` needs spaCy and its model ({error}). Install them: pip install spacy && python -m "
            f"spacy download {SPACY_MODEL}. Or use `tagger='hanta'`."
        ) from error
    return lambda text: ((word.text, word.pos_) for word in model(text) if not word.is_space)


def _load_hanta() -> Callable[[str], Iterable[tuple[str, str]]]:
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError as error:
        raise ImportError(
            "Parts of speech need a tagger, and none is installed. Install one with `pip install HanTa`, or `pip "
            "install 'rtd_hf[projections]'`."
        ) from error
    # By its name alone a file of that name in the working folder would be taken, and unpickled.
    model = HanoverTagger(os.path.join(os.path.dirname(inspect.getfile(HanoverTagger)), "morphmodel_en.pgz"))

    def tagging(text: str) -> Iterable[tuple[str, str]]:
        for word, _, kind in model.tag_sent(_WORD.findall(text)):
            yield word, "PUNCT" if not any(map(str.isalnum, word)) else _coarse(kind)

    return tagging


def _coarse(kind: str) -> str:
    return _BY_TAG.get(kind) or _BY_START.get(kind[:2], "X")
