"""What a projection is given: embeddings, vision tokens and contexts of the right shapes."""

from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from .base import ImageToWordProjection


def check_inputs(
    projection: "ImageToWordProjection",
    image_embeds: torch.Tensor,
    patch_embeds: torch.Tensor | None,
    context_embeds: torch.Tensor | None,
):
    """
    Checks the arguments of a projection's `forward`.

    Args:
        projection ([`ImageToWordProjection`]): Says what it needs, and how wide.
        image_embeds, patch_embeds, context_embeds (`torch.Tensor`): As `forward` takes them.

    Raises:
        ValueError: one has another shape, or is missing where it is needed.
    """
    check_embeds(projection, image_embeds)
    if projection.needs_patches:
        check_patches(projection, patch_embeds, len(image_embeds))
    if projection.needs_context:
        check_context(projection, context_embeds, len(image_embeds))


def check_embeds(projection: "ImageToWordProjection", embeds: torch.Tensor):
    """The part of [`check_inputs`] on global embeddings."""
    width = projection.config.input_dim
    if embeds.ndim != 2:
        raise ValueError(f"The embeddings must have shape (batch, {width}), but have {tuple(embeds.shape)}.")
    if embeds.shape[-1] != width:
        trained_on = f" ({projection.config.base_model})" if projection.config.base_model else ""
        raise ValueError(
            f"The embeddings are {embeds.shape[-1]} wide, but this `{projection.config.projection_type}` "
            f"projection takes `input_dim` {width}. Use it with the CLIP model it was trained on{trained_on}, "
            f"or a projection made for this one."
        )


def check_patches(projection: "ImageToWordProjection", patch_embeds: torch.Tensor | None, rows: int):
    """The part of [`check_inputs`] on vision tokens."""
    if patch_embeds is None:
        raise ValueError(
            f"The `{projection.config.projection_type}` projection reads `patch_embeds`, but got None. Give the "
            f"vision encoder's last hidden states, as the retriever's `embed_references` and the backbone's "
            f"`encode_image` return them."
        )
    width = projection.config.vision_hidden_size
    shape = tuple(patch_embeds.shape)
    if len(shape) != 3 or shape[0] != rows or shape[1] < 1 or (width is not None and shape[2] != width):
        wanted = f"({rows}, 1 + patches, {'width' if width is None else width})"
        raise ValueError(
            f"`patch_embeds` must have shape {wanted}, but have {shape}. Give all tokens of the last vision "
            f"layer, the class token first, of the CLIP model that the projection was trained on."
        )


def check_context(projection: "ImageToWordProjection", context_embeds: torch.Tensor | None, rows: int):
    """The part of [`check_inputs`] on contexts."""
    if context_embeds is None:
        raise ValueError(
            f"The `{projection.config.projection_type}` projection reads `context_embeds`, but got None. Give the "
            f"text embeddings of the prompts, placeholder included, by the text encoder it was trained with (the "
            f"original one, not one trained since), not normalised."
        )
    if tuple(context_embeds.shape) != (rows, projection.config.input_dim):
        raise ValueError(
            f"`context_embeds` must have shape {(rows, projection.config.input_dim)}, one text embedding per image, "
            f"but have {tuple(context_embeds.shape)}."
        )
