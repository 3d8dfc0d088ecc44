"""`ComposedImageRetriever`: from a reference picture and a text to ranked pictures, in three lines."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..features import UnreadableImagesError, image_fingerprint
from ..hub import load_cir_encoder
from ..retrieval import CIREncoder
from ..similarity import check_k
from .galleries import Gallery, check_ids, dataset_gallery, folder_gallery, picture_path
from .index import Hit, ImageIndex
from .queries import QueryEncoder


logger = logging.get_logger(__name__)

_SAME = 1 - 1e-4  # cosine from which a picture is the reference itself
_CHECKED = ("weights", "architecture", "preprocessing")


class ComposedImageRetriever(QueryEncoder):
    """
    Finds the pictures that a reference picture and a text together describe.

    **RTD leaves the image tower alone**: image embeddings that were made with the original CLIP, by any software that
    prepares pictures as it does, can be searched as they are; only queries are encoded anew.

    ```python
    retriever = ComposedImageRetriever.from_pretrained("org/rtd-lincir-l14")
    retriever.index("pictures")
    for name, score in retriever.search("dog.jpg", "in the snow"):
        print(f"{score:.3f} {name}")
    ```

    Pictures are turned as their EXIF orientation says, in folders, data sets and queries alike. Several threads may
    use one retriever: queries are encoded one after the other.

    Args:
        encoder ([`CIREncoder`]): Encodes pictures and queries.
        model (`str`, *optional*): Of which model the image tower is, to be read by people.
        revision (`str`, *optional*): Its revision.

    Attributes:
        gallery ([`ImageIndex`], *optional*): What is searched; from [`~ComposedImageRetriever.index`] or
            [`~ComposedImageRetriever.load_index`].
        folder (`Path`, *optional*): Where its pictures lie, if they were taken from a folder.
    """

    def __init__(self, encoder: CIREncoder, *, model: str = "", revision: str = ""):
        super().__init__(encoder)
        self.model, self.revision = model, revision
        self.gallery: ImageIndex | None = None
        self.folder: Path | None = None
        self._made_with: dict[str, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        repository: str | os.PathLike,
        *,
        base_model: str | os.PathLike | None = None,
        original: bool = False,
        device: Any = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> "ComposedImageRetriever":
        """
        Loads a published text encoder, its projection, and the picture encoder they belong to.

        Args:
            repository (`str` or `os.PathLike`): Hub id, or folder of a run.
            base_model (`str` or `os.PathLike`, *optional*): Hub id or folder of the CLIP whose picture encoder is
                taken; the one that the repository names by default.
            original (`bool`, *optional*, defaults to `False`): Take the text encoder as it was before RTD.
            device (*optional*): Where the models are put.
            revision (`str`, *optional*): Of the repository.
            token (`str` or `bool`, *optional*): For private repositories; the one that is logged in by default.
            options: Of [`CIREncoder`], such as `batch_size`.

        Returns:
            [`ComposedImageRetriever`]

        Raises:
            ValueError: The repository names no base model and none is given, or a part is damaged.
            OSError: There is no such repository, or a part of it is missing.
        """
        access = {"base_model": base_model, "revision": revision, "token": token}
        encoder = load_cir_encoder(repository, original=original, device=device, **access, **options)
        config = encoder.projection.config
        model = str(base_model or config.base_model or "")
        return cls(encoder, model=model, revision="" if base_model else getattr(config, "base_revision", None) or "")

    @property
    def made_with(self) -> dict[str, str]:
        """What embeddings of this image tower depend on: weights, architecture, preprocessing; its name, revision."""
        if self._made_with is None:
            before = self.encoder.projection.config.image_preprocess
            told = image_fingerprint(self.encoder.vision_model, self.encoder.image_processor, before)
            self._made_with = {**told, "model": self.model, "revision": self.revision}
        return self._made_with

    # Index

    def index(
        self,
        source,
        *,
        ids: Sequence[str] | None = None,
        kind: str = "exact",
        image_column: str | None = None,
        id_column: str | None = None,
        cache: str | os.PathLike | None = None,
        strict: bool = True,
        follow_links: bool = False,
    ) -> ImageIndex:
        """
        Makes the index that is searched from now on.

        Args:
            source (`str`, `os.PathLike`, `datasets.Dataset`, `np.ndarray` or `torch.Tensor`):
                A folder of pictures; a data set with a column of pictures; or image embeddings `(N, D)` that the same
                CLIP has made before, with `ids`.
            ids (`Sequence[str]`, *optional*): Of embeddings.
            kind (`str`, *optional*, defaults to `"exact"`): As for [`ImageIndex`].
            image_column, id_column (`str`, *optional*): Of a data set.
            cache (`str` or `os.PathLike`, *optional*): Folder in which pictures' embeddings are kept and found again.
            strict (`bool`, *optional*, defaults to `True`): Raise if pictures cannot be read; else they are left out,
                and named in a warning.
            follow_links (`bool`, *optional*, defaults to `False`): Take links that lead out of a folder.

        Returns:
            [`ImageIndex`]

        Raises:
            ValueError: There are no pictures, or the embeddings are of another width.
            UnreadableImagesError: Pictures cannot be read; it names all of them.
            FileNotFoundError, NotADirectoryError: There is no such folder.
        """
        folder = None
        if isinstance(source, (np.ndarray, torch.Tensor)):
            if ids is None:
                raise ValueError("`ids` is missing: embeddings need a name for each picture.")
            if source.ndim == 2 and source.shape[1] != self.width:
                raise ValueError(
                    f"`source` must be embeddings of this CLIP, {self.width} wide, got {source.shape[1]}. Only those "
                    f"of the same model ({self.model or 'see `base_model`'}) can be searched."
                )
            made = ImageIndex(source, ids, kind=kind)
        else:
            if ids is not None:
                raise ValueError("`ids` belongs to embeddings; a folder or a data set has its own.")
            if isinstance(source, (str, os.PathLike)):
                folder, found = Path(source), folder_gallery(source, follow_links=follow_links)
            else:
                found = dataset_gallery(source, image_column=image_column, id_column=id_column)
            embeds, names = self._embedded_gallery(found, cache, strict)
            made = ImageIndex(embeds, names, kind=kind, encoder=self.made_with)
        self.gallery, self.folder = made, folder
        return made

    def _embedded_gallery(self, gallery: Gallery, cache, strict: bool) -> tuple[torch.Tensor, list[str]]:
        """Embeddings of what can be read, and its ids."""
        number = len(gallery.ids)
        try:
            with self._lock:
                features = self.encoder.embed_gallery(
                    gallery.ids, gallery.picture, name=gallery.name, folder=cache, strict=strict
                )
        except UnreadableImagesError as error:
            leave = "or leave them out knowingly: `strict=False`."
            cure = (
                f"Mend them, take them away, {leave}" if len(error.faults) < number else "There is nothing to index."
            )
            raise UnreadableImagesError(error.faults, number, cure=cure) from error
        lost = features.unreadable
        if lost:
            told = "\n".join(f"  {name}: {fault}" for name, fault in lost.items())
            logger.warning(f"{len(lost)} of {number} pictures cannot be read and are not found:\n{told}")
        return features.image_embeds, [name for name in gallery.ids if name not in lost]

    def add(self, pictures: Sequence[str]) -> None:
        """
        Adds pictures of the folder that are not in the index yet.

        Args:
            pictures (`Sequence[str]`): Their paths within the folder.

        Raises:
            ValueError: The index is not of a folder, a picture lies outside of it, or is there already.
            UnreadableImagesError: Pictures cannot be read; none is added then.
        """
        gallery = self.searched
        if self.folder is None:
            raise ValueError("The index is not of a folder. `retriever.gallery.add(embeddings, ids)` adds to any.")
        check_ids(pictures, "pictures")
        paths = [picture_path(self.folder, name) for name in pictures]
        gallery.add(self.encode_images(paths), list(pictures), normalized=True)

    def load_index(
        self, folder: str | os.PathLike, *, pictures: str | os.PathLike | None = None, unknown: bool = False
    ) -> ImageIndex:
        """
        Reads an index that `gallery.save(folder)` wrote, and searches it from now on.

        Args:
            folder (`str` or `os.PathLike`): The index.
            pictures (`str` or `os.PathLike`, *optional*): The folder of its pictures, to show and to add.
            unknown (`bool`, *optional*, defaults to `False`): Take one that does not say what its embeddings were made
                with, as of embeddings that were brought along.

        Returns:
            [`ImageIndex`]

        Raises:
            ValueError: It was made with other weights, another architecture or preprocessing, or does not say with
                which; or is damaged.
            FileNotFoundError: There is no index.
        """
        found = ImageIndex.load(folder)
        mine = self.made_with
        if found.embeddings.shape[1] != self.width:
            raise ValueError(
                f"The index `{folder}` is {found.embeddings.shape[1]} wide, this CLIP's embeddings are {self.width}."
            )
        if found.encoder is None and not unknown:
            raise ValueError(
                f"The index `{folder}` does not say which model made its embeddings. `unknown=True` takes it, if you "
                f"know that it was {self.model or 'this one'}."
            )
        if found.encoder is not None:
            wrong = [name for name in _CHECKED if found.encoder.get(name) != mine[name]]
            if wrong:
                theirs = f"{found.encoder.get('model') or 'unnamed'} {found.encoder.get('revision') or ''}".strip()
                raise ValueError(
                    f"The index `{folder}` was made with another image tower: {', '.join(wrong)} differ. It is of "
                    f"{theirs}, this retriever of {self.model or 'unnamed'}. Make it again with `index`."
                )
        self.gallery, self.folder = found, None if pictures is None else Path(pictures)
        return found

    @property
    def searched(self) -> ImageIndex:
        """The index; `ValueError` where there is none yet."""
        if self.gallery is None:
            raise ValueError("There is nothing to search in yet. Call `index` or `load_index` first.")
        return self.gallery

    # Search

    def search(
        self,
        image,
        text,
        k: int = 10,
        *,
        text_weight: float = 0.5,
        avoid=None,
        avoid_weight: float = 0.3,
        exclude_reference: bool = True,
        exclude: Sequence[str] = (),
    ) -> list[Hit] | list[list[Hit]]:
        """
        The pictures that the reference and the text together describe, best first.

        Args:
            image (path, PIL picture, array or [`ImageFeatures`]; or `list` of them): The reference. With one text a
                list is several references of one query; with a list of texts it holds the reference, or references,
                of each query.
            text (`str` or `list[str]`): What should be different, or one for each query.
            k (`int`, *optional*, defaults to 10): How many.
            text_weight, avoid, avoid_weight: As for [`~ComposedImageRetriever.encode_queries`]; `avoid` is a text
                where `text` is.
            exclude_reference (`bool`, *optional*, defaults to `True`): Leave out the reference where the index has it.
            exclude (`Sequence[str]`): Ids that are left out.

        Returns:
            `list[Hit]`, of `(id, score)`; with a list of texts, one such list for each.

        Raises:
            ValueError, TypeError, OSError: As [`~ComposedImageRetriever.encode_queries`], or there is no index yet.
            KeyError: `exclude` names what is not in the index.
        """
        gallery = self.searched
        check_k(k)
        if isinstance(text, str) or text is None:
            weights = {"text_weight": text_weight, "avoid_weight": avoid_weight}
            options = {"exclude_reference": exclude_reference, "exclude": exclude, **weights}
            return self.search([image], [text], k, avoid=None if avoid is None else [avoid], **options)[0]
        if not isinstance(text, (list, tuple)):
            raise TypeError(f"`text` must be a text, or a list of texts, got {type(text).__name__}.")
        check_ids(exclude, "exclude")
        queries, references = self._queries(image, text, text_weight, avoid, avoid_weight)
        hidden = [list(exclude)] * len(queries) if exclude else None
        if not exclude_reference:
            return gallery.search(queries, k, exclude=hidden)
        most = k + max(len(group) for group in references)
        while True:
            found = gallery.rank(queries, most, exclude=hidden)
            kept = [self._without(*ranked, group) for *ranked, group in zip(*found, references, strict=True)]
            if all(len(hits) >= k or len(rows) < most for hits, rows in zip(kept, found[0], strict=True)):
                return [hits[:k] for hits in kept]
            most *= 2  # more copies of a reference than were reckoned with

    def _without(self, rows: list[int], scores: list[float], references: torch.Tensor) -> list[Hit]:
        """What was found but the references, which are recognised by their embeddings."""
        gallery = self.searched
        same = (torch.from_numpy(gallery.embeddings[rows]) @ references.T).amax(1) >= _SAME
        ranked = zip(rows, scores, same.tolist(), strict=True)
        return [Hit(gallery.ids[row], score) for row, score, is_reference in ranked if not is_reference]
