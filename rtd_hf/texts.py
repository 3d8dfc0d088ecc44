"""Captions and prompt templates as text: cleaning, the placeholder, and a number that stands for a caption."""

import hashlib
from collections.abc import Sequence

import numpy as np


PLACEHOLDER = "$"
CAPTION_SLOT = "{caption}"
DEFAULT_TEMPLATE = "a photo of $ that {caption}"
CAPTION_ORDERS = ("both", "last_first")


def clean_caption(text: str) -> str:
    """
    Cleans a reference or a target caption as the published RTD code does.

    `<PERSON>` becomes `person`, letters become lower-case, every placeholder character is deleted, white space is
    collapsed to single spaces and stripped.

    Args:
        text (`str`): The caption as it stands in the data.

    Returns:
        `str`: the cleaned caption; empty where nothing is left.
    """
    return " ".join(text.replace("<PERSON>", "person").lower().replace(PLACEHOLDER, "").split())


def clean_conditioning(text: str) -> str:
    """
    Cleans a conditioning text: placeholder characters are deleted and white space is collapsed; the case stays.

    A `$` that a user wrote would otherwise be a second placeholder in the composed prompt.

    Args:
        text (`str`): The conditioning text ("is red instead of blue").

    Returns:
        `str`: the cleaned text; empty where nothing is left.
    """
    return " ".join(text.replace(PLACEHOLDER, "").split())


def check_template(template: str) -> str:
    """
    Checks a prompt template and collapses its white space.

    Args:
        template (`str`):
            Text with one or more placeholders `$`, each standing alone between spaces, and exactly one `{caption}`.

    Returns:
        `str`: the template with single spaces.

    Raises:
        TypeError: `template` is not a string.
        ValueError: a placeholder or the caption slot is missing, repeated or glued to other characters.
    """
    if not isinstance(template, str):
        raise TypeError(f"`template` must be a string such as {DEFAULT_TEMPLATE!r}, but is {template!r}.")
    if template.count(CAPTION_SLOT) != 1:
        raise ValueError(
            f"`template` must hold `{CAPTION_SLOT}` exactly once, but {template!r} holds it "
            f"{template.count(CAPTION_SLOT)} times. Write it as in {DEFAULT_TEMPLATE!r}."
        )
    words = template.split()
    glued = [word for word in words if PLACEHOLDER in word and word != PLACEHOLDER]
    if glued:
        raise ValueError(
            f"Every `{PLACEHOLDER}` in `template` must stand alone between spaces, but {template!r} holds "
            f"{glued[0]!r}. Put spaces around it, also before punctuation, as in 'a photo of $ , {CAPTION_SLOT}'."
        )
    if PLACEHOLDER not in words:
        raise ValueError(
            f"`template` must hold the placeholder `{PLACEHOLDER}` at least once, but got {template!r}. "
            f"Write it as in {DEFAULT_TEMPLATE!r}."
        )
    return " ".join(words)


def join_captions(captions: Sequence[str], order: str) -> tuple[str, ...]:
    """
    The conditioning texts of a query that has several captions, such as FashionIQ's two.

    Args:
        captions (`Sequence[str]`): The captions, one or more.
        order (`str`):
            `"both"`: joined by `and` as they come and the other way round, their ends stripped of `.`, `?`, `,` and
            spaces (SEARLE, LinCIR, FTI4CIR, RTD); `"last_first"`: only the other way round, as they stand (Pic2Word,
            Context-I2W).

    Returns:
        `tuple[str, ...]`: the texts whose embeddings are averaged; one caption alone stays as it is.

    Raises:
        TypeError: `captions` is one string.
        ValueError: there is none, or `order` is unknown.
    """
    if isinstance(captions, str):
        raise TypeError(f"`captions` must be a sequence of strings, but is the one string {captions!r}.")
    if order not in CAPTION_ORDERS:
        raise ValueError(f"`order` must be one of {', '.join(map(repr, CAPTION_ORDERS))}, but is {order!r}.")
    if not captions:
        raise ValueError("`captions` is empty. Give at least one.")
    if len(captions) == 1:
        return tuple(captions)
    if order == "last_first":
        return (" and ".join(reversed(captions)),)
    stripped = [caption.strip(" .?,") for caption in captions]
    return " and ".join(stripped), " and ".join(reversed(stripped))


def compose_prompt(template: str, caption: str, *, reference: str | None = None) -> str:
    """
    Fills a template.

    Args:
        template (`str`): A checked template.
        caption (`str`): The conditioning text; cleaned here ([`clean_conditioning`]).
        reference (`str`, *optional*): Words to write in place of every placeholder; without it the placeholders stay.

    Returns:
        `str`: for example `"a photo of $ that is red"`.
    """
    left, right = template.split(CAPTION_SLOT)
    if reference is not None:
        left, right = left.replace(PLACEHOLDER, reference), right.replace(PLACEHOLDER, reference)
    return " ".join(f"{left}{clean_conditioning(caption)}{right}".split())


def bare_prompt(template: str, *, reference: str | None = None) -> str:
    """
    The part of a template up to and with its last placeholder, without the caption slot.

    Args:
        template (`str`): A checked template.
        reference (`str`, *optional*): Words to write in place of every placeholder; without it the placeholders stay.

    Returns:
        `str`: `"a photo of $"` for `"a photo of $ that {caption}"`.
    """
    prompt = template[: template.rindex(PLACEHOLDER) + 1].replace(CAPTION_SLOT, "")
    return " ".join(prompt.replace(PLACEHOLDER, PLACEHOLDER if reference is None else reference).split())


def text_id(text: str) -> int:
    """
    A number that stands for a text: the same in every process and on every machine, unlike `hash`.

    Args:
        text (`str`): The text, cleaned.

    Returns:
        `int`: 63 bits, so that it fits into int64. Of ten million texts any two share one with a chance of 5e-6.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def text_ids_of(texts: Sequence[str]) -> np.ndarray:
    """[`text_id`] of texts, cleaned: `(n,)` int64."""
    return np.fromiter(map(text_id, texts), dtype=np.int64, count=len(texts))
