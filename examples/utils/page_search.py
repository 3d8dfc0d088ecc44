"""What the page of `app.py` asks: two text encoders over one index, and pictures for the screen."""

import base64
import io
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple


MAX_TEXT = 500  # characters
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 64_000_000
MAX_RESULTS = 48
DEPTH = 1000  # so far down the rank before RTD is looked up
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIDE, _TINY = 240, 120  # of pictures on the screen, and which are drawn larger
_KEPT = 2048  # pictures on the screen; about 10 kB each


class PageError(ValueError):
    """What a visitor is told: it says what to do, and nothing about the machine."""


class Example(NamedTuple):
    """
    A query to click on.

    Args:
        picture (`str`): Id of the reference.
        text (`str`): What should be different.
    """

    picture: str
    text: str


@dataclass(frozen=True)
class Reference:
    """
    A picture that was chosen; it is kept as what queries read of it, not as pixels.

    Args:
        features ([`~rtd_hf.ImageFeatures`]): Of one picture.
        shown (`str`): It as a `data:` address, small.
        label (`str`): What it is called on the page.
        milliseconds (`float`): How long reading it took.
    """

    features: Any
    shown: str
    label: str
    milliseconds: float


@dataclass(frozen=True)
class Side:
    """
    What one text encoder finds.

    Args:
        hits (`list[Hit]`): Best first, as many as were asked for.
        ranks (`dict[str, int]`): Of the first `DEPTH`, counted from 1.
        words (`list[tuple[str, float]]`): Each word, and what it adds to the score of the first hit.
        milliseconds (`float`): The query and the ranking.
    """

    hits: list
    ranks: dict[str, int]
    words: list[tuple[str, float]] = field(default_factory=list)
    milliseconds: float = 0.0


@dataclass(frozen=True)
class Found:
    """
    Both sides of a search.

    Args:
        before, after ([`Side`]): Of the original text encoder, and of the one that RTD trained.
        words_milliseconds (`float`): How long the words of both sides took.
        was_cut (`bool`): The text was longer than the text encoder reads.
    """

    before: Side
    after: Side
    words_milliseconds: float
    was_cut: bool


class PageSearch:
    """
    Two retrievers over one index. Several visitors may ask at once.

    Args:
        before, after ([`~rtd_hf.search.ComposedImageRetriever`]): With the original text encoder, and with the trained
            one, which has the index of a folder; the first one takes over its index and its picture encoder.
        name (`str`): Of the model, to be read by people.
        examples (`Sequence[Example]`, *optional*): Queries to click on.
    """

    def __init__(self, before, after, *, name: str, examples=()):
        from rtd_hf.prompts import PromptTokenizer

        before.gallery, before.folder = after.gallery, after.folder
        before.encoder.vision_model = after.encoder.vision_model
        self.before, self.after, self.name, self.examples = before, after, name, list(examples)
        self._known = set(after.gallery.ids)
        encoder, self._lock = after.encoder, threading.Lock()
        template, options = encoder.projection.config.prompt_template, encoder.text_encoder.prompt_options()
        self._prompts = PromptTokenizer(encoder.tokenizer, template, **options)
        self.thumbnail = lru_cache(_KEPT)(self._thumbnail)

    @classmethod
    def load(
        cls,
        model: str,
        pictures: Path,
        *,
        base_model: str = "",
        features: str = "",
        device: str = "cpu",
        strict: bool = True,
        examples=(),
    ) -> "PageSearch":
        """
        Loads the models and reads the pictures.

        Args:
            model (`str`): Hub id, or folder of a run.
            pictures (`Path`): The folder.
            base_model (`str`, *optional*): The CLIP it belongs to, where the model does not name it.
            features (`str`, *optional*): Folder in which the pictures' embeddings are kept.
            device (`str`, *optional*, defaults to `"cpu"`): Where the models are put.
            strict (`bool`, *optional*, defaults to `True`): Refuse a folder with pictures that cannot be read.
            examples (`Sequence[Example]`, *optional*): Queries to click on.

        Raises:
            ValueError, OSError: As [`~rtd_hf.search.ComposedImageRetriever.from_pretrained`] and `index`.
        """
        from rtd_hf.search import ComposedImageRetriever

        options = {"base_model": base_model or None, "device": device}
        after = ComposedImageRetriever.from_pretrained(model, **options)
        after.index(pictures, cache=features or None, strict=strict)
        before = ComposedImageRetriever.from_pretrained(model, original=True, **options)
        return cls(before, after, name=Path(model).name if Path(model).exists() else model, examples=examples)

    @property
    def ids(self) -> list[str]:
        """Of all pictures."""
        return self.after.gallery.ids

    # Pictures

    def _thumbnail(self, name: str) -> bytes:
        return _small(self._open(name))

    def _open(self, name: str):
        from rtd_hf.images import open_image
        from rtd_hf.search.galleries import picture_path

        if name not in self._known:
            raise PageError(f"There is no picture called “{_sound(name[:80])}”. Names are as “{self.ids[0]}”.")
        try:
            return open_image(picture_path(self.after.folder, name), name=name, upright=True)
        except (OSError, ValueError) as error:
            raise PageError(f"The picture “{name}” can no longer be read. Choose another one.") from error

    def shown(self, name: str) -> str:
        """A picture of the folder as a small `data:` address."""
        return _address(self.thumbnail(name))

    def choose(self, name: str) -> Reference:
        """
        A picture of the folder as the reference.

        Raises:
            PageError: There is none of this name, or it is gone.
        """
        picture = self._open(name)
        return self._reference(picture, self.shown(name), name)

    def upload(self, content: bytes) -> Reference:
        """
        A picture that a visitor sent as the reference. Phones' pictures are turned as their EXIF entry says.

        Raises:
            PageError: It is no picture, or too large.
        """
        from rtd_hf.images import open_image

        check_upload(content)
        try:
            picture = open_image(content, name="you sent", upright=True)
        except OSError as error:
            raise PageError("This picture is damaged or cut short. Try another one, or save it anew.") from error
        return self._reference(picture, _address(_small(picture)), "your picture")

    def _reference(self, picture, shown: str, label: str) -> Reference:
        started = time.perf_counter()
        features = self.after.embed_references([picture])
        return Reference(features, shown, label, _since(started))

    # Search

    def search(
        self, reference: Reference | None, text: str, *, text_weight: float = 0.5, avoid: str = "", k: int = 6
    ) -> Found:
        """
        What both encoders find.

        Args:
            reference ([`Reference`]): From [`~PageSearch.choose`] or [`~PageSearch.upload`].
            text (`str`): What should be different; may be empty where `text_weight` is 0.
            text_weight (`float`, *optional*, defaults to 0.5): From the picture (0) to the text (1).
            avoid (`str`, *optional*): What must not be seen.
            k (`int`, *optional*, defaults to 6): How many.

        Raises:
            PageError: Something is missing, too long, or out of its range.
        """
        text, avoid = _checked_text(text, "change"), _checked_text(avoid, "text to avoid")
        if not isinstance(reference, Reference):
            raise PageError("Choose a picture first: click on one below, or send your own.")
        number = isinstance(text_weight, (int, float)) and not isinstance(text_weight, bool)
        if not number or not 0 <= text_weight <= 1:
            raise PageError("The weight of the text must lie between 0 and 1.")
        if isinstance(k, bool) or not isinstance(k, (int, float)) or k != k or not 1 <= k <= MAX_RESULTS:
            raise PageError(f"The number of results must lie between 1 and {MAX_RESULTS}.")
        if not text and text_weight > 0:
            raise PageError(
                "Say what should be different, for example “is red”. With the weight at 0 the picture alone counts."
            )
        ask = {"text_weight": text_weight, "avoid": avoid or None}
        before, after = (self._side(one, reference, text, int(k), ask) for one in (self.before, self.after))
        started = time.perf_counter()
        if text:
            before, after = (
                self._with_words(one, side, reference, text, text_weight)
                for one, side in ((self.before, before), (self.after, after))
            )
        return Found(before, after, _since(started), self._is_cut(text) or self._is_cut(avoid))

    def _side(self, retriever, reference: Reference, text: str, k: int, ask: dict) -> Side:
        started = time.perf_counter()
        ranked = retriever.search(reference.features, text, max(k, min(DEPTH, len(self.ids))), **ask)
        took = _since(started)
        return Side(ranked[:k], {hit.id: place for place, hit in enumerate(ranked, 1)}, milliseconds=took)

    def _with_words(self, retriever, side: Side, reference: Reference, text: str, weight: float) -> Side:
        from rtd_hf.search import word_effects

        if not side.hits:
            return side
        effects = word_effects(retriever, reference.features, text, [side.hits[0].id], text_weight=weight)
        words = [(effect.word, effect.mean) for effect in effects]
        return Side(side.hits, side.ranks, words, side.milliseconds)

    def _is_cut(self, text: str) -> bool:
        with self._lock:
            before = self._prompts.num_truncated
            self._prompts.compose([text])
            return self._prompts.num_truncated > before


def check_upload(content: bytes) -> None:
    """
    Looks at a file's size and header before any pixel is decoded.

    Args:
        content (`bytes`): The file.

    Raises:
        PageError: It is no picture, or too large.
    """
    import warnings

    from PIL import Image

    if len(content) > MAX_BYTES:
        raise PageError(f"The file has {len(content) / 2**20:.0f} MB. Send a picture of at most {MAX_BYTES >> 20} MB.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is refused below
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError as error:
        raise PageError(_too_many_pixels("more than 178 million")) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's formats each have their own
        raise PageError("This file is not a picture that can be read here. Send a JPEG, PNG or WebP file.") from error
    if width * height > MAX_PIXELS:
        raise PageError(_too_many_pixels(f"{width} × {height}"))


def _too_many_pixels(count: str) -> str:
    return f"The picture has {count} pixels. Scale it down to at most {MAX_PIXELS // 10**6} million."


def _checked_text(text: Any, name: str) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise PageError(f"The {name} must be a text.")
    if len(text) > MAX_TEXT:
        raise PageError(f"The {name} has {len(text):,} characters. Say it in at most {MAX_TEXT}.")
    if text != _sound(text):
        raise PageError(f"The {name} holds signs that are cut in half. Type it anew.")
    return " ".join(text.replace("\0", " ").split())


def _sound(text: str) -> str:
    """A text without halves of surrogate pairs, which can be neither encoded nor sent."""
    return text.encode("utf-8", "replace").decode()


def _since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)


def _small(picture) -> bytes:
    """A picture for the screen, as JPEG; tiny ones are drawn larger, with sharp edges."""
    from PIL import Image

    longest = max(picture.size)
    if longest <= _TINY:
        factor = _SIDE // longest
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    else:
        picture = picture.copy()
        picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _address(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def draw_world(folder: Path, *, queries: int = 24, seed: int = 0) -> list[Example]:
    """
    Draws pictures of the offline world, none of which shows a combination that anything was trained on.

    Args:
        folder (`Path`): Empty.
        queries (`int`, *optional*, defaults to 24): About twelve pictures come with each.
        seed (`int`, *optional*, defaults to 0): Another seed gives other pictures.

    Returns:
        `list[Example]`: Queries whose answers are among the pictures, the shortest texts first.
    """
    from rtd_hf import BENCHMARKS

    world = BENCHMARKS["shapes"](num_queries=queries, seed=seed)
    for name in world.gallery:
        world.load_image(name).save(folder / f"{name}.png")
    drawn = {query.texts[0]: Example(f"{query.reference}.png", query.texts[0]) for query in world.queries}
    return sorted(drawn.values(), key=lambda example: len(example.text))


def examples_for(ids: list[str], texts: list[str]) -> list[Example]:
    """
    Queries to click on, for pictures of which nothing is known: some at even distances, with texts that fit most.

    Args:
        ids (`list[str]`): Of the pictures.
        texts (`list[str]`): The texts.

    Returns:
        `list[Example]`
    """
    return [Example(ids[place * len(ids) // len(texts)], text) for place, text in enumerate(texts)]


def results_of(page: str) -> list[str]:
    """
    The pictures in what the page shows of one side, in order.

    Args:
        page (`str`): Its HTML.

    Returns:
        `list[str]`: Their ids.
    """
    import html
    import re

    return [html.unescape(name) for name in re.findall(r'<li data-id="([^"]*)"', page)]
