"""What makes a text unfit for a triplet: nothing in it, markup, another script, a placeholder, unsafe words."""

import re
import unicodedata

from ..texts import PLACEHOLDER


_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|&(?:[a-z]{2,8}|#\d+);|https?://|www\.|\[/?\w+\]|\{\{|```")
_ALLOWED_TAG = "<PERSON>"  # that of Conceptual Captions, which `clean_caption` turns into a word
# Whole words only. Short on purpose: a data set for the public wants a list of its own.
_UNSAFE = re.compile(
    r"\b(?:porn\w*|nsfw|xxx|hentai|nude|nudes|nudity|naked|topless|genitals?|penis|vagina|blowjob|orgasm|rape[sd]?|"
    r"rapist|gore|beheaded|beheading|decapitat\w+|suicide|self-harm|pedophil\w*|lolita|nazi|swastika|fuck\w*|shit\w*|"
    r"cunt|bitch|slut|whore|nigg\w+|faggot)\b",
    re.IGNORECASE,
)

# Function words of neighbouring languages; those that English has too ("on", "die", "a") are left out.
_FOREIGN = frozenset(
    "le la les des du une et est avec dans sur pour qui el los las una un y con en por para que del der das und ist "
    "ein eine einen mit auf im dem den von il di che e per sono nel della um uma com os na no em het een van de "
    "och ett en med som".split()
) - {"no", "e", "en", "la", "el", "os", "van", "den", "des", "um", "un"}
_ENGLISH = frozenset("a an the of in on with and is are at by to from has it this that there near next".split())


def normalised(text: str) -> str:
    """The text with white space of every kind, line breaks too, collapsed to single spaces."""
    return " ".join(text.split())


def text_fault(text: object, *, max_words: int = 60, unsafe: bool = True) -> str | None:
    """
    Why a text is unfit for a triplet.

    Args:
        text (`object`): What stands in the data.
        max_words (`int`, *optional*, defaults to 60): More words than these are too long.
        unsafe (`bool`, *optional*, defaults to `True`): Whether unsafe words make it unfit.

    Returns:
        `str`, *optional*: `"missing"`, `"no text"`, `"empty"`, `"placeholder"`, `"too long"`, `"control characters"`,
        `"markup"`, `"not Latin script"`, `"not English"`, `"no words"`, `"unsafe"`; `None` where nothing is wrong.
    """
    if text is None:
        return "missing"
    if not isinstance(text, str):
        return "no text"
    if not text.strip():
        return "empty"
    # A text of megabytes is not searched for anything else.
    if len(text) > 40 * max_words or len(text.split()) > max_words:
        return "too long"
    if PLACEHOLDER in text:
        return "placeholder"
    fault = _fault_of_characters(text)
    if fault is None:
        words = re.findall(r"\w+", text.lower())
        foreign = sum(word in _FOREIGN for word in words)
        if foreign > 1 and foreign > sum(word in _ENGLISH for word in words):
            fault = "not English"
    return fault or ("unsafe" if unsafe and _UNSAFE.search(text) else None)


def _fault_of_characters(text: str) -> str | None:
    if _MARKUP.search(text.replace(_ALLOWED_TAG, "")):
        return "markup"
    if text.isascii():
        if not text.isprintable() and not normalised(text).isprintable():
            return "control characters"
        return None if any(map(str.isalpha, text)) else "no words"
    text = unicodedata.normalize("NFC", normalised(text))
    kinds = [unicodedata.category(character) for character in text]
    if any(kind in ("Cc", "Cf", "Cs", "Co", "Cn") for kind in kinds) or "�" in text:
        return "control characters"
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return "no words"
    # Letters of other scripts, and symbols such as emoji, are no words for an English CLIP.
    if any(kind == "So" for kind in kinds) or any("LATIN" not in unicodedata.name(one, "") for one in letters):
        return "not Latin script"
    return None
