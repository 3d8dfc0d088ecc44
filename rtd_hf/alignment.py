"""How far a training text encoder has moved away from the pictures, and from itself, on held-out captions."""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.utils import logging

from .benchmarks import CIRResult
from .metrics import rank_targets, recall_at_k
from .objectives.base import open_row_image
from .preservation import CUT_OFFS, CaptionedImages
from .retrieval import CIREncoder


logger = logging.get_logger(__name__)


class CaptionDrift:
    r"""A callable `(text_encoder) -> {metric: value}`: how alike captions still are to their frozen embeddings.

    For who has no pictures. With \\(t_c\\) and \\(t_c^0\\) the normalised embeddings of caption \\(c\\) now and under
    the frozen encoder, `NAME_caption_similarity` is the mean of \\(t_c \cdot t_c^0\\): 1 before the training.

    Args:
        captions (`Sequence[str]`): Captions that are not trained on.
        retriever ([`CIREncoder`]): Encodes them; its projection plays no part.
        frozen (`nn.Module`, *optional*): The encoder before the training; by default the retriever's own as it is
            now, before it is trained. It is used here and not kept.
        name (`str`, *optional*, defaults to `"held_out"`): Prefix of the metric.

    Raises:
        ValueError: If there are no captions, or some are blank.
    """

    def __init__(
        self,
        captions: Sequence[str],
        retriever: CIREncoder,
        *,
        frozen: nn.Module | None = None,
        name: str = "held_out",
    ):
        blank = [number for number, caption in enumerate(captions) if not caption.strip()]
        if blank or not captions:
            raise ValueError(
                f"`captions` of `{name}` must be at least one and none blank, got {len(captions)} with {len(blank)} "
                f"blank ones{f' (the first is number {blank[0]})' if blank else ''}. Remove these."
            )
        self.captions, self.retriever, self.name = list(captions), retriever, name
        self._frozen = retriever.encode_texts(self.captions, text_encoder=frozen)

    def __call__(self, text_encoder: nn.Module | None = None) -> dict[str, float]:
        """The similarity under an encoder, the retriever's own by default."""
        return self._of(self.retriever.encode_texts(self.captions, text_encoder=text_encoder))

    def _of(self, embeds: Tensor) -> dict[str, float]:
        return {f"{self.name}_caption_similarity": _cosines(embeds, self._frozen).mean().item()}


class ImageAlignment:
    r"""A callable `(text_encoder) -> {metric: value}`: whether captions still lie beside their pictures.

    With \\(v_c\\) the normalised embedding of the picture of caption \\(c\\), and \\(t_c\\) and \\(t_c^0\\) those of
    the caption now and under the frozen encoder, over all captions of a held-out set:

    - `NAME_image_alignment`: the mean of \\(t_c \cdot v_c\\);
    - `NAME_image_alignment_change`: that minus the mean of \\(t_c^0 \cdot v_c\\); 0 before the training;
    - `NAME_caption_similarity`: the mean of \\(t_c \cdot t_c^0\\); 1 before the training;
    - `NAME_text_to_image_recall@K`: percent of captions whose picture is among the first K, for 1, 5 and 10.

    Pictures are encoded once, for RTD does not change their side. As an evaluator of [`RTDTrainer`] its metrics are
    logged with `eval_` in front, so that `stop_when` can name them.

    Args:
        data ([`CaptionedImages`]): Pictures with captions: [`load_coco_captions`], [`load_shapes_captions`],
            [`captioned_rows`], or others.
        retriever ([`CIREncoder`]): Encodes both; its projection plays no part.
        frozen (`nn.Module`, *optional*): The encoder before the training; by default the retriever's own as it is
            now, before it is trained. It is used here and not kept.
        features (`str` or `os.PathLike`, *optional*): Folder in which image embeddings are kept.
        strict (`bool`, *optional*, defaults to `True`): Refuse if a picture cannot be read; else leave such pictures
            out with their captions, with a warning.

    Attributes:
        frozen_metrics (`dict[str, float]`): The metrics of the frozen encoder.

    Raises:
        UnreadableImagesError: If pictures cannot be read, and `strict`. It names all of them.
    """

    def __init__(
        self,
        data: CaptionedImages,
        retriever: CIREncoder,
        *,
        frozen: nn.Module | None = None,
        features: str | os.PathLike | None = None,
        strict: bool = True,
    ):
        options = {"name": data.name, "folder": features, "strict": strict}
        gallery = retriever.embed_gallery(data.images, data.load_image, **options)
        if gallery.unreadable:
            logger.warning(
                f"{len(gallery.unreadable)} of {len(data.images)} pictures of `{data.name}` cannot be read and are "
                f"left out with their captions."
            )
            data = data.without_images(gallery.unreadable)
        self.data, self.retriever = data, retriever
        self._images = gallery.image_embeds  # whoever compares them normalises
        self._owner = torch.tensor([row for row, captions in enumerate(data.captions) for _ in captions])
        captions = [caption for own in data.captions for caption in own]
        self._drift = CaptionDrift(captions, retriever, frozen=frozen, name=data.name)
        self._frozen_alignment = _cosines(self._drift._frozen, self._images[self._owner])
        self.frozen_metrics = self._of(self._drift._frozen)

    def __call__(self, text_encoder: nn.Module | None = None) -> dict[str, float]:
        """The metrics of an encoder, the retriever's own by default."""
        return self._of(self.retriever.encode_texts(self._drift.captions, text_encoder=text_encoder))

    def evaluate(self, text_encoder: nn.Module | None = None) -> CIRResult:
        """The metrics of an encoder with the values behind them.

        Args:
            text_encoder (`nn.Module`, *optional*): The retriever's own by default.

        Returns:
            [`CIRResult`] with one value a picture, since the captions of one are no independent samples.
            [`~CIRResult.gain_over`] compares two encoders. Cosines are no percents.
        """
        per_caption = self._values(self.retriever.encode_texts(self._drift.captions, text_encoder=text_encoder))
        pictures = len(self.data.images)
        # Every caption counts the same, and so a picture with six counts for more than one with five.
        values = {
            name: torch.zeros(pictures).double().index_add_(0, self._owner, rows) * (pictures / len(rows))
            for name, rows in per_caption.items()
        }
        return CIRResult(values, 0, pictures, {**self.data.protocol, "ties": "pessimistic"})

    def _of(self, embeds: Tensor) -> dict[str, float]:
        return {name: rows.mean().item() for name, rows in self._values(embeds).items()}

    def _values(self, embeds: Tensor) -> dict[str, Tensor]:
        """Per metric one value a caption, float64."""
        name, aligned = self.data.name, _cosines(embeds, self._images[self._owner])
        found = rank_targets(embeds, self._images, self._owner[:, None], ties="pessimistic")
        return {
            f"{name}_image_alignment": aligned,
            f"{name}_image_alignment_change": aligned - self._frozen_alignment,
            f"{name}_caption_similarity": _cosines(embeds, self._drift._frozen),
            **{f"{name}_text_to_image_recall@{k}": 100 * recall_at_k(found, k).double() for k in CUT_OFFS},
        }


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    return F.cosine_similarity(left.double(), right.double())


def captioned_rows(rows: Dataset, *, name: str = "held_out", num_images: int | None = None) -> CaptionedImages:
    """Any data set of pictures with captions, for [`ImageAlignment`] and [`PreservationEvaluator`].

    Args:
        rows (`Dataset`): Rows with `image` and `caption` (one text, or several), such as of [`load_rows`]. Pictures of
            two rows count as two, so a picture with several captions should be one row.
        name (`str`, *optional*, defaults to `"held_out"`): Prefix of the metrics.
        num_images (`int`, *optional*): Only the first so many rows; all by default.

    Returns:
        [`CaptionedImages`]

    Raises:
        ValueError: If there are no rows, or a caption is missing or blank.
    """
    number = len(rows) if num_images is None else min(num_images, len(rows))
    captions = [rows[row]["caption"] for row in range(number)]
    return CaptionedImages(
        name,
        tuple(f"{row:07d}" for row in range(number)),
        tuple((own,) if isinstance(own, str) else tuple(own or ()) for own in captions),
        lambda image_id: open_row_image(rows[int(image_id)]),
        {"complete": False} if number < len(rows) else {},
    )
