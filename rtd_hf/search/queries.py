"""Composed queries as numpy arrays: references and texts, weighed, of several pictures, without what is not wanted."""

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

from ..composition import ImageFeatures
from ..images import as_picture
from ..retrieval import CIREncoder
from ..similarity import slerp


logger = logging.get_logger(__name__)


class QueryEncoder:
    """
    Encodes pictures, texts and composed queries.

    Pictures are taken as viewers show them, turned as their EXIF orientation says ([`CIREncoder`], which scores
    benchmarks, takes files as they are stored). Several threads may use one: they are served one after the other.

    Args:
        encoder ([`CIREncoder`]): Encodes pictures and queries.
    """

    def __init__(self, encoder: CIREncoder):
        self.encoder = encoder
        self._lock = threading.RLock()

    @property
    def width(self) -> int:
        """Of embeddings."""
        return self.encoder.projection.config.input_dim

    def encode_images(self, images: Sequence) -> np.ndarray:
        """
        Embeddings of pictures, those of the original CLIP.

        Args:
            images (`Sequence` of paths, PIL pictures or arrays): The pictures. Arrays and tensors hold whole numbers
                from 0 to 255.

        Returns:
            `np.ndarray` of shape `(N, D)`, float32, normalised.

        Raises:
            TypeError: It is no sequence, or holds something else.
            ValueError: It is empty, or holds an array that is no picture.
            UnreadableImagesError: Files are missing, damaged or no pictures; it names all of them.
        """
        pictures = _pictures(images)
        with self._lock:
            return self.encoder.encode_images(lambda place: as_picture(pictures[place]), number=len(pictures)).numpy()

    def embed_references(self, images: Sequence) -> ImageFeatures:
        """
        What queries read of references, to ask about the same ones often, or by several text encoders.

        Args:
            images (`Sequence` of paths, PIL pictures or arrays): The references.

        Returns:
            [`ImageFeatures`]: `features[[0]]`, those of one picture, stand where a picture stands.

        Raises:
            TypeError, ValueError, UnreadableImagesError: As [`~QueryEncoder.encode_images`].
        """
        pictures = _pictures(images)
        with self._lock:
            return self.encoder.embed_references(lambda place: as_picture(pictures[place]), number=len(pictures))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """
        Embeddings of plain texts, to search without a reference.

        Args:
            texts (`Sequence[str]`): The texts.

        Returns:
            `np.ndarray` of shape `(N, D)`, float32, normalised.

        Raises:
            TypeError: It is one text, or holds something else.
            ValueError: There are none, or one is empty.
        """
        with self._lock, self._saying_what_is_cut():
            return self.encoder.encode_texts(_texts(texts)).numpy()

    def encode_queries(
        self,
        images: Sequence,
        texts: Sequence[str],
        *,
        text_weight: float = 0.5,
        avoid: Sequence[str | None] | None = None,
        avoid_weight: float = 0.3,
    ) -> np.ndarray:
        """
        Composed queries.

        Args:
            images (`Sequence` of paths, PIL pictures, arrays or [`ImageFeatures`], or of lists of them):
                The reference of each query. Of several references the mean of their composed queries is taken.
            texts (`Sequence[str]`): For each what should be different.
            text_weight (`float`, *optional*, defaults to 0.5):
                0.5 is the composed query; below, it moves on the sphere towards the picture (0: search by picture
                alone), above, towards the text (1: search by text alone).
            avoid (`Sequence[str]`, *optional*): For each what must not be seen, or None.
            avoid_weight (`float`, *optional*, defaults to 0.3): How much of that text's embedding is taken away.

        Returns:
            `np.ndarray` of shape `(Q, D)`, float32, normalised.

        Raises:
            ValueError: Not as many texts as references, an empty text, a weight out of its range.
            TypeError, UnreadableImagesError: As [`~QueryEncoder.encode_images`].
        """
        return self._queries(images, texts, text_weight, avoid, avoid_weight)[0].numpy()

    def _queries(self, images, texts, text_weight, avoid, avoid_weight) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The queries, and the normalised embeddings of the references of each."""
        for name, weight in (("text_weight", text_weight), ("avoid_weight", avoid_weight)):
            if not isinstance(weight, Real) or not 0 <= weight <= 1:
                raise ValueError(f"`{name}` must be a number between 0 and 1, got {weight!r}.")
        check_is_list(images)
        groups = [_references(entry) for entry in images]
        texts = list(texts) if text_weight == 0 else _texts(texts)
        for name, entries in (("texts", texts), ("avoid", avoid)):
            if entries is not None and len(entries) != len(groups):
                raise ValueError(f"`{name}` must hold one for each of {len(groups)} references, got {len(entries)}.")
        owners = torch.tensor([number for number, group in enumerate(groups) for _ in group])
        with self._lock, self._saying_what_is_cut():
            features = self._embedded([image for group in groups for image in group])
            pictures = F.normalize(features.image_embeds, dim=-1)
            queries = self._blended(features, pictures, owners, texts, text_weight)
            unwanted = [(row, text) for row, text in enumerate(avoid or ()) if text]
            if unwanted:
                rows, negatives = zip(*unwanted, strict=True)
                queries[list(rows)] -= avoid_weight * self.encoder.encode_texts(_texts(negatives, "avoid"))
                queries = F.normalize(queries, dim=-1)
        return queries, [pictures[owners == number] for number in range(len(groups))]

    def _embedded(self, references: list) -> ImageFeatures:
        """Those of all references; a picture that comes several times is embedded once."""
        new = {id(image): image for image in references if not isinstance(image, ImageFeatures)}
        if not any(isinstance(one, ImageFeatures) for one in references) and len(new) == len(references):
            return self.embed_references(references)
        places = {key: place for place, key in enumerate(new)}
        made = self.embed_references(list(new.values())) if new else None
        parts = [made[[places[id(one)]]] if id(one) in places else one for one in references]
        if any(len(part.image_embeds) != 1 for part in parts):
            raise ValueError("A reference is one picture: of the features of several give `features[[row]]`.")
        columns = zip(*parts, strict=True)
        return ImageFeatures(*(None if column[0] is None else torch.cat(column) for column in columns))

    def _blended(self, features: ImageFeatures, pictures, owners, texts, weight: float) -> torch.Tensor:
        def mean(embeds: torch.Tensor) -> torch.Tensor:
            sums = torch.zeros(len(texts), embeds.shape[1]).index_add_(0, owners, embeds)
            return F.normalize(sums, dim=-1)

        if weight == 0:
            return mean(pictures)
        if weight == 1:
            return self.encoder.encode_texts(texts)
        composed = mean(self.encoder.encode_queries(features, [texts[owner] for owner in owners]))
        if weight < 0.5:
            return slerp(composed, mean(pictures), 1 - 2 * weight)
        return composed if weight == 0.5 else slerp(composed, self.encoder.encode_texts(texts), 2 * weight - 1)

    @contextmanager
    def _saying_what_is_cut(self):
        """Warns of texts that are longer than the encoder reads."""
        before = self.encoder.num_truncated
        yield
        cut = self.encoder.num_truncated - before
        if cut:
            logger.warning(
                f"{cut} texts were longer than the text encoder reads ({self.encoder.prompts.max_length} tokens), and "
                f"lost their end. Say it shorter."
            )


def _references(entry) -> list:
    several = isinstance(entry, (list, tuple)) and not isinstance(entry, ImageFeatures)
    if several and not entry:
        raise ValueError("A query has no reference picture: its list is empty.")
    return list(entry) if several else [entry]


def check_is_list(images) -> None:
    """
    Refuses one picture where a list of them is wanted.

    Args:
        images: What should be a list.

    Raises:
        TypeError: It is a picture, or nothing that can be gone through.
    """
    one = isinstance(images, (str, bytes, os.PathLike, ImageFeatures)) or getattr(images, "ndim", 1) in (2, 3)
    if one or not isinstance(images, Iterable):
        raise TypeError(
            f"`images` must be a list of pictures, got {type(images).__name__}. Put it in a list: [image]."
        )


def _pictures(images) -> list:
    """The pictures, arrays checked at once, since they name no file by which a later error would tell them apart."""
    from PIL import Image

    check_is_list(images)
    pictures = list(images)
    for place, image in enumerate(pictures):
        if not isinstance(image, (str, os.PathLike, Image.Image)):
            try:
                pictures[place] = as_picture(image)
            except (TypeError, ValueError) as error:
                raise type(error)(f"`images` holds no picture at place {place}: {error}") from error
    return pictures


def _texts(texts: Sequence[str], name: str = "texts") -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"`{name}` must be a list of texts, got the one text {texts[:80]!r}. Put it in a list.")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"`{name}` must hold strings, got {type(text).__name__} at place {number}.")
        if not text.strip():
            cure = "`text_weight=0` searches by the picture alone" if name == "texts" else "None avoids nothing"
            raise ValueError(f"`{name}` holds an empty text at place {number}. Say what should be different; {cure}.")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(
                f"`{name}` holds a text at place {number} that is no Unicode, with half of a surrogate pair. "
                "Decode it anew from its bytes."
            )
    return texts
