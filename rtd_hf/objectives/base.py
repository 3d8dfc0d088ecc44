"""The contract of training objectives: what a projection is fitted with, batch by batch."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..distributed import world_size
from ..images import open_image, pad_to_ratio
from ..losses import target_anchored_contrastive_loss
from ..registry import Registry
from ..texts import PLACEHOLDER
from .frozen_texts import FrozenTexts
from .towers import FrozenCLIP


OBJECTIVES = Registry("objective", "OBJECTIVES")
# What image processors return; all but SigLIP 2's for pictures of any form return the first alone.
PIXELS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

Batch = dict[str, Any]
BARE_PROMPT = f"a photo of {PLACEHOLDER}"


@dataclass
class ObjectiveOptions:
    """Options of an objective; every method has a subclass with its own. Each is described by its `help` string."""

    def __post_init__(self):
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is None and item.default is None:
                continue
            if isinstance(item.default, float) and not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise ValueError(f"`{item.name}` must be a number of at least 0, but is {value!r}.")


class ProjectionObjective:
    """
    What a projection is fitted with: frozen towers around it, and a loss.

    An objective is one file with a subclass that defines `text_batch` and `loss` and the class facts below; the
    decorator `@OBJECTIVES.register(name)` enters it, under the name its projection has in `PROJECTIONS`.

    Rows are dictionaries with an `"image"` (a path, a PIL image, an array, or `{"bytes", "path"}`), a `"caption"`, or
    both, as `needs_images` and `needs_captions` say. `"image_embeds"` and `"patch_embeds"` may stand in the place of
    the image where they were computed ahead. `"key"` is what a row's random choices are drawn with.

    Args:
        clip ([`FrozenCLIP`]): The CLIP the projection is fitted to.
        config ([`ProjectionConfig`]): The projection's configuration.
        options ([`ObjectiveOptions`], *optional*): An instance of `options_class`; the published ones by default.
        packing (`bool`, *optional*, defaults to `True`): See [`FrozenTexts`].

    Class attributes:
        options_class (`type`): The dataclass of its options, with the published values as defaults.
        training_defaults (`dict`): The published [`~transformers.TrainingArguments`].
        needs_images, needs_captions (`bool`): What its rows must hold.
        needs_patches (`bool`): Whether it needs the vision tokens of images, not only their embeddings.
        needs_phrases (`bool`): Whether it is made with a [`PhraseBank`], `bank`.
        decays_all (`bool`): Whether weight decay is on all parameters, or on matrices only.

    Raises:
        ValueError: the projection does not fit the CLIP, or the CLIP lacks what the objective needs.
    """

    options_class: ClassVar[type[ObjectiveOptions]] = ObjectiveOptions
    training_defaults: ClassVar[dict[str, Any]] = {}
    needs_images: ClassVar[bool] = True
    needs_captions: ClassVar[bool] = False
    needs_patches: ClassVar[bool] = False
    needs_phrases: ClassVar[bool] = False
    decays_all: ClassVar[bool] = True

    def __init__(
        self, clip: FrozenCLIP, config: Any, options: ObjectiveOptions | None = None, *, packing: bool = True
    ):
        encoder = clip.text_encoder
        widths, wanted = (
            (config.input_dim, config.output_dim),
            (encoder.projection_dim, encoder.config.hidden_size),
        )
        if widths != wanted:
            raise ValueError(
                f"The projection maps {widths[0]} to {widths[1]} dimensions, but the CLIP has a joint space of "
                f"{wanted[0]} and token embeddings of {wanted[1]}. Build it with these widths."
            )
        if self.needs_images and clip.vision_model is None:
            raise ValueError("The objective looks at pictures. Load `clip` with its image tower (`images=True`).")
        self.clip, self.config = clip, config
        self.options = self.options_class() if options is None else options
        self.texts = FrozenTexts(clip, packing=packing)

    # What a method defines

    def text_batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The texts of a batch, laid out by `self.texts`; runs in the data loader's workers."""
        return {}

    def loss(self, model: nn.Module, inputs: Batch, draw: torch.Generator) -> tuple[torch.Tensor, dict]:
        """
        The loss of a batch.

        Args:
            model (`nn.Module`): The projection as the trainer wrapped it; to be called exactly once.
            inputs (`dict`): What [`~ProjectionObjective.collate`] returned, on the device.
            draw (`torch.Generator`): Of the CPU, for all that is random.

        Returns:
            `tuple[torch.Tensor, dict[str, torch.Tensor]]`: a float32 scalar, and its parts by name for the log.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `loss`.")

    def prepare(self, dataset: Any, **options: Any) -> Any:
        """What is computed once before the training; returns the data set to train on."""
        return dataset

    def learning_rate_factor(self, epoch: float) -> float:
        """What the schedule's learning rate is multiplied with after so many epochs."""
        return 1.0

    # What they share

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """
        Makes a batch; to be given to the data loader.

        Args:
            rows (`Sequence[Mapping]`): Rows, see the class.

        Returns:
            `dict`: `pixel_values` or `image_embeds` and `patch_embeds` of the images, and what `text_batch` makes.

        Raises:
            OSError: a picture is missing, damaged or none; the message names it.
        """
        images = self.image_batch(rows) if self.needs_images else {}
        return {**images, **self.text_batch(rows)}

    def image_batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The images of a batch: their embeddings where the rows hold them, else their pixels."""
        if "image_embeds" in rows[0]:
            names = ("image_embeds", "patch_embeds") if self.needs_patches else ("image_embeds",)
            return {name: torch.stack([row[name] for row in rows]) for name in names}
        images = [self.prepare_image(open_row_image(row), row) for row in rows]
        return dict(self.clip.image_processor(images, return_tensors="pt"))

    def prepare_image(self, image: Any, row: Mapping[str, Any]) -> Any:
        """What happens to a PIL image before CLIP's own preprocessing."""
        crop_scale = getattr(self.options, "crop_scale", 1.0)
        if crop_scale < 1:
            processor = self.clip.image_processor
            size = getattr(processor, "crop_size", None) or processor.size  # SigLIP's crops nothing
            image = random_crop(image, crop_scale, (size["width"], size["height"]), random.Random(row.get("key")))
        return pad_to_ratio(image) if self.config.image_preprocess == "targetpad" else image

    def image_features(self, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image embeddings `(B, D)`, not normalised, and vision tokens `(B, 1 + patches, W)`, of a batch."""
        if "image_embeds" in inputs:
            return inputs["image_embeds"], inputs.get("patch_embeds")
        return self.clip.encode_image(**{name: inputs[name] for name in PIXELS if name in inputs})


def contrast(
    model: nn.Module, embeds: torch.Tensor, targets: torch.Tensor, temperature: float, loss_type: str
) -> torch.Tensor:
    """[`target_anchored_contrastive_loss`], over all processes in training; evaluation batches may be uneven."""
    gather = model.training and world_size() > 1
    return target_anchored_contrastive_loss(embeds, targets, temperature, loss_type=loss_type, gather=gather)


def cosine_loss(embeds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus the cosine similarity, averaged over rows; float32."""
    return 1 - F.cosine_similarity(embeds.float(), targets.float(), dim=-1).mean()


def open_row_image(row: Mapping[str, Any]) -> Any:
    """The PIL image of a row; see [`ProjectionObjective`] for what it may be given as."""
    from PIL import Image

    image = row["image"]
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if hasattr(image, "__array_interface__"):
        return Image.fromarray(image)
    if isinstance(image, Mapping):
        name = row.get("name") or image.get("path")
        return open_image(image["path"]) if image.get("bytes") is None else open_image(image["bytes"], name=name)
    return open_image(image)


def random_crop(image: Any, scale: float, size: tuple[int, int], rng: random.Random) -> Any:
    """
    A part of an image, at a random place and of a random form, as `size`.

    Args:
        image (`PIL.Image.Image`): The image.
        scale (`float`): Least share of its area.
        size (`tuple[int, int]`): Width and height of the result, in pixels.
        rng (`random.Random`): Draws area, ratio (3/4 to 4/3, evenly in its logarithm) and place.

    Returns:
        `PIL.Image.Image`: the centre, as large as the ratio allows, where ten drawn parts do not fit.
    """
    from PIL import Image

    width, height = image.size
    for _ in range(10):
        area, ratio = rng.uniform(scale, 1) * width * height, (4 / 3) ** rng.uniform(-1, 1)
        across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            left, top = rng.randint(0, width - across), rng.randint(0, height - down)
            break
    else:
        across, down = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - across) // 2, (height - down) // 2
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + across, top + down))
