"""What an adapted text encoder may forget: plain retrieval between texts and pictures; and the way back, WiSE-FT."""

import copy
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers.utils import logging

from .benchmarks import CIRResult
from .images import ImageFolders, open_image
from .metrics import TIES, rank_targets, recall_at_k
from .parsing import read_json
from .retrieval import CIREncoder


logger = logging.get_logger(__name__)

CUT_OFFS = (1, 5, 10)


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures with captions, between which plain retrieval is measured.

    Args:
        name (`str`): Prefix of the metrics, as in `shapes_captions_text_to_image_recall@1`.
        images (`tuple[str, ...]`): Ids of the pictures.
        captions (`tuple[tuple[str, ...], ...]`): The captions of each, at least one.
        load_image (`Callable[[str], PIL.Image.Image]`): Opens a picture by its id.
        protocol (`Mapping`, *optional*): What to say beside every figure; the sizes are added here.

    Raises:
        ValueError: If an id occurs twice, a picture has no caption, or one is blank.
    """

    name: str
    images: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    load_image: Callable[[str], object]
    protocol: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        if not self.images or len(self.images) != len(self.captions) or len({*self.images}) < len(self.images):
            raise ValueError(
                f"`images` and `captions` of `{self.name}` must be as many, at least one, and no id twice, got "
                f"{len(self.images)} ({len({*self.images})} different) and {len(self.captions)}."
            )
        bare = [
            i for i, texts in zip(self.images, self.captions, strict=True) if not all(map(str.strip, texts or [""]))
        ]
        if bare:
            raise ValueError(
                f"{len(bare)} of {len(self.images)} pictures of `{self.name}` have no caption, or a blank one (first "
                f"{', '.join(bare[:5])}). Remove these pictures, or these captions."
            )
        sizes = {"num_images": len(self.images), "num_captions": sum(map(len, self.captions))}
        object.__setattr__(self, "protocol", {**self.protocol, **sizes})  # frozen to everyone else

    def without_images(self, missing: Mapping[str, str]) -> "CaptionedImages":
        """What is left without some pictures and their captions; their number stands in the new `protocol`."""
        kept = [row for row, image_id in enumerate(self.images) if image_id not in missing]
        return replace(
            self,
            images=tuple(self.images[row] for row in kept),
            captions=tuple(self.captions[row] for row in kept),
            protocol={**self.protocol, "left_out": {"images": len(self.images) - len(kept)}},
        )


def load_coco_captions(
    annotations: str | os.PathLike, images: str | os.PathLike, *, num_images: int | None = None, name: str = ""
) -> CaptionedImages:
    """Reads captions in COCO's format.

    Args:
        annotations (`str` or `os.PathLike`): Such as `annotations/captions_val2017.json`, also packed as `.gz`:
            `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`.
        images (`str` or `os.PathLike`): Folder of the pictures.
        num_images (`int`, *optional*): Only the first so many; all by default.
        name (`str`, *optional*): Prefix of the metrics; `coco_captions` by default.

    Returns:
        [`CaptionedImages`]; line breaks and outer blanks of captions are made single blanks.

    Raises:
        FileNotFoundError: If the file or the folder does not exist, or pictures are missing; all are counted.
        ValueError: If the file is something else, or names pictures that it does not list.
    """
    annotations, folder = Path(annotations), Path(images)
    if not annotations.is_file() or not folder.is_dir():
        raise FileNotFoundError(
            f"`annotations` must be a file and `images` a folder, got {annotations} and {folder}. Expected are COCO's "
            f"`annotations/captions_val2017.json` and `val2017/` (https://cocodataset.org), or others of this format."
        )
    try:
        content = read_json(annotations)
        files = {str(entry["id"]): entry["file_name"] for entry in content["images"]}
        captions: dict[str, list[str]] = {image_id: [] for image_id in files}
        for entry in content["annotations"]:
            captions[str(entry["image_id"])].append(" ".join(entry["caption"].split()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`annotations` {annotations} is damaged or no file of COCO captions ({type(error).__name__}: {error}). "
            f'Expected `{{"images": [{{"id", "file_name"}}], "annotations": [{{"image_id", "caption"}}]}}`.'
        ) from error
    ids = list(files)[:num_images]
    listing = ImageFolders([folder])
    paths = {image_id: listing.find(os.path.splitext(files[image_id])[0]) for image_id in ids}
    missing = [files[image_id] for image_id, path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(ids)} pictures that {annotations} names are not in {folder} (first "
            f"{', '.join(missing[:5])})."
        )
    texts = tuple(tuple(captions[image_id]) for image_id in ids)
    protocol = {"annotations": annotations.name}
    if num_images is not None and num_images < len(files):
        protocol["complete"] = False
    return CaptionedImages(name or "coco_captions", tuple(ids), texts, lambda i: open_image(paths[i]), protocol)


def load_shapes_captions(*, num_images: int = 500, seed: int = 0) -> CaptionedImages:
    """Pictures of the offline world that the small CLIP has not seen, each of another scene, with a full caption.

    Args:
        num_images (`int`, *optional*, defaults to 500): How many.
        seed (`int`, *optional*, defaults to 0): Another seed gives others.

    Returns:
        [`CaptionedImages`] named `shapes_captions`.
    """
    from .shapes.captions import describe_fully
    from .shapes.pictures import picture
    from .shapes.scenes import sample_scene

    rng = random.Random(f"shapes captions {seed}")
    scenes: dict[object, tuple[str, int]] = {}
    while len(scenes) < num_images:
        scene = sample_scene(rng, "held_out")
        if scene not in scenes:
            scenes[scene] = (describe_fully(scene, rng), rng.getrandbits(63))
    rows = list(scenes.items())
    return CaptionedImages(
        "shapes_captions",
        tuple(f"{row:05d}" for row in range(len(rows))),
        tuple((caption,) for _, (caption, _) in rows),
        lambda image_id: picture(rows[int(image_id)][0], rows[int(image_id)][1][1]),
        {"seed": seed},
    )


class PreservationEvaluator:
    """A callable `(text_encoder) -> {metric: percent}`: plain retrieval, in both directions, as before any training.

    `text_to_image_recall@K` is the share of captions whose picture is among the first K; `image_to_text_recall@K` that
    of pictures with one of their captions among the first K. The values per picture are kept, so that an interval
    resamples pictures: the captions of one are no independent queries.

    Args:
        data ([`CaptionedImages`]): Pictures and captions.
        retriever ([`CIREncoder`]): Encodes both; its projection plays no part.
        ties (`str`, *optional*, defaults to `"pessimistic"`): How equal scores count, see [`rank_targets`].
        features (`str` or `os.PathLike`, *optional*): Folder in which image embeddings are kept.
        strict (`bool`, *optional*, defaults to `True`): Refuse to score if a picture cannot be read; else leave such
            pictures out with their captions.

    Raises:
        ValueError: If `ties` is unknown.
    """

    def __init__(
        self,
        data: CaptionedImages,
        retriever: CIREncoder,
        *,
        ties: str = "pessimistic",
        features: str | os.PathLike | None = None,
        strict: bool = True,
    ):
        if ties not in TIES:
            raise ValueError(f"`ties` must be one of {', '.join(TIES)}, got {ties!r}.")
        self.data, self.retriever, self.ties = data, retriever, ties
        self.features, self.strict = features, strict
        self._image_embeds: torch.Tensor | None = None

    def __call__(self, text_encoder=None) -> dict[str, float]:
        """Scores a text encoder (the retriever's own by default), in percent."""
        return self.evaluate(text_encoder).metrics

    def evaluate(self, text_encoder=None) -> CIRResult:
        """Scores a text encoder.

        Args:
            text_encoder (*optional*): The encoder to score; the retriever's own by default.

        Returns:
            [`CIRResult`] with one value a picture. [`~CIRResult.gain_over`] compares two encoders.

        Raises:
            UnreadableImagesError: If pictures cannot be read, and `strict`. It names all of them.
            ValueError: If features are not finite.
        """
        images = self._images()
        data = self.data
        texts = [caption for captions in data.captions for caption in captions]
        owner = torch.tensor([row for row, captions in enumerate(data.captions) for _ in captions])
        embeds = self.retriever.encode_texts(texts, text_encoder=text_encoder)
        found = rank_targets(embeds, images, owner[:, None], ties=self.ties)
        rows = _rows_of(owner, len(data.images))
        back = rank_targets(images, embeds, rows, ties=self.ties)
        values = {}
        for k in CUT_OFFS:
            # Every caption counts the same, and so a picture with six counts for more than one with five.
            hits = torch.zeros(len(data.images)).index_add_(0, owner, recall_at_k(found, k))
            values[f"{data.name}_text_to_image_recall@{k}"] = 100 * hits * (len(data.images) / len(texts))
        for k in CUT_OFFS:
            values[f"{data.name}_image_to_text_recall@{k}"] = 100 * recall_at_k(back, k)
        tied = found.num_tied_queries + back.num_tied_queries
        if tied:
            logger.warning(
                f"{tied} captions and pictures of `{data.name}` score exactly like their counterpart's rivals; they "
                f"are counted by `ties={self.ties!r}`."
            )
        return CIRResult(values, tied, len(data.images), {**data.protocol, "ties": self.ties})

    def _images(self) -> torch.Tensor:
        if self._image_embeds is None:
            options = {"name": self.data.name, "folder": self.features, "strict": self.strict}
            found = self.retriever.embed_gallery(self.data.images, self.data.load_image, **options)
            if found.unreadable:
                logger.warning(
                    f"Not comparable with other results: {len(found.unreadable)} of {len(self.data.images)} pictures "
                    f"of `{self.data.name}` cannot be read and are left out with their captions."
                )
                self.data = self.data.without_images(found.unreadable)
            self._image_embeds = found.image_embeds
        return self._image_embeds


def _rows_of(owner: torch.Tensor, number: int) -> torch.Tensor:
    """The rows `(number, most)` that belong to each owner, filled up with -1."""
    counts = torch.bincount(owner, minlength=number)
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    rows = torch.full((number, int(counts.max())), -1)
    rows[owner, place] = torch.arange(len(owner))
    return rows


def interpolate_encoders(frozen: torch.nn.Module, trained: torch.nn.Module, alpha: float) -> torch.nn.Module:
    r"""The encoder between two: \\((1 - \alpha) \theta_{frozen} + \alpha \theta_{trained}\\), weight by weight.

    WiSE-FT (Wortsman et al., CVPR 2022, [arXiv:2109.01903](https://huggingface.co/papers/2109.01903)): a point between
    the two often keeps most of the gain and of what was there before.

    Args:
        frozen (`torch.nn.Module`): The encoder as it was before the training.
        trained (`torch.nn.Module`): The same after it, or with adapters, which are merged on a copy.
        alpha (`float`): 0 gives the frozen weights, 1 the trained ones, exactly.

    Returns:
        `torch.nn.Module`: a new encoder of the class of `frozen`, in evaluation mode.

    Raises:
        ValueError: If `alpha` is not between 0 and 1, or the two have different weights.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie between 0 and 1, got {alpha}.")
    if hasattr(trained, "merge_and_unload"):
        trained = copy.deepcopy(trained).merge_and_unload()
    first, second = frozen.state_dict(), trained.state_dict()
    shapes = [{name: tuple(weight.shape) for name, weight in weights.items()} for weights in (first, second)]
    differing = sorted(name for name in {*first, *second} if shapes[0].get(name) != shapes[1].get(name))
    if differing:
        raise ValueError(
            f"`frozen` and `trained` must have the same weights, but differ in {len(differing)} (such as "
            f"`{differing[0]}`: {shapes[0].get(differing[0])} and {shapes[1].get(differing[0])}). Give an encoder and "
            f"what was trained from it."
        )
    between = copy.deepcopy(frozen).eval()
    mixed = {name: _mixed(weight, second[name].to(weight.device), alpha) for name, weight in first.items()}
    between.load_state_dict(mixed)
    return between


def _mixed(first: torch.Tensor, second: torch.Tensor, alpha: float) -> torch.Tensor:
    if not first.is_floating_point():
        return first
    return torch.lerp(first.float(), second.float(), alpha).to(first.dtype)
