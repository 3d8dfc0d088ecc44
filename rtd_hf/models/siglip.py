"""SigLIP and SigLIP 2 text encoders: no causal mask, rows of one length, the last position is pooled."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Siglip2TextModel, Siglip2VisionModel, SiglipTextModel, SiglipVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .base import PseudoWordMixin
from .checkpoints import BACKBONES


@dataclass
class SiglipTextOutputForRTD(BaseModelOutputWithPooling):
    """
    What the stock SigLIP text models return, with the text embeddings under the name that all backbones give them.

    Args:
        text_embeds (`torch.Tensor` of shape `(R, D)`): The same as `pooler_output`.
    """

    text_embeds: torch.Tensor | None = None


def _drop_saved_prefix(module, state_dict, prefix, *_) -> None:
    """Files have a prefix that the module has not; who reads one by hand, as HF's `Trainer` does, gives it on."""
    saved = f"{prefix}{module.saved_prefix}"
    for name in [name for name in state_dict if name.startswith(saved)]:
        state_dict[prefix + name.removeprefix(saved)] = state_dict.pop(name)


class SiglipTextMixin(PseudoWordMixin):
    """
    What SigLIP's text towers differ in from CLIP's.

    They are not causal and have no attention mask: all positions are read, padding too, and the last one is pooled,
    whatever stands there. So every row must be as long as in training, `max_position_embeddings` (64); no prompt is
    the prefix of another, and no row can be packed. [`PromptTokenizer`] with the tower's `prompt_options()` lays rows
    out so. After pooling comes the stock class's own `head`; what the stock class calls `pooler_output` is
    `text_embeds` here.
    """

    # The rest of a whole SigLIP checkpoint is left aside on purpose; a report of it would hide what matters.
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^logit_scale$", r"^logit_bias$"]

    output_class = SiglipTextOutputForRTD
    image_processor_class = "SiglipImageProcessorPil"
    stock_embeds = "pooler_output"
    projection_key = None
    saved_prefix = "text_model."
    padding = "max_length"
    # SigLIP 2 was trained on small letters, and its checkpoints name Gemma's tokenizer, which keeps capitals.
    lower_case = True
    lora_target_modules = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

    def __init__(self, config):
        super().__init__(config)
        self.register_load_state_dict_pre_hook(_drop_saved_prefix)

    @property
    def projection_dim(self) -> int:
        """Width D of the text embeddings: that of the head."""
        return self.config.projection_size

    def _mask_for(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor | None
    ) -> None:
        """No mask, once the rows are found to be such as the tower was trained on."""
        rows, length = input_ids.shape
        fixed = self.config.max_position_embeddings
        remedy = "Lay rows out with `PromptTokenizer(tokenizer, template, **text_encoder.prompt_options())`"
        if length != fixed:
            raise ValueError(
                f"`input_ids` must have rows of {fixed} tokens, padding included, but has shape "
                f"{tuple(input_ids.shape)}: {type(self).__name__} reads the padding and pools the last position. "
                f"{remedy}, or tokenize with `padding='max_length', max_length={fixed}`."
            )
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError(
                f"`attention_mask` hides positions, but {type(self).__name__} was trained to read all of them, "
                f"padding too. Leave it out. {remedy}, which gives one of all ones."
            )
        if positions is not None and (positions.shape != (rows, 1) or not bool((positions == length - 1).all())):
            raise ValueError(
                f"`pooling_positions` must be {length - 1}, the last position, in each of {rows} rows, but has shape "
                f"{tuple(positions.shape)} and begins with {positions.reshape(-1)[:4].tolist()}: "
                f"{type(self).__name__} pools nowhere else. {remedy}."
            )

    def _pooled(self, output: Any, input_ids: torch.Tensor, positions: torch.Tensor | None) -> SiglipTextOutputForRTD:
        return SiglipTextOutputForRTD(**output, text_embeds=output.pooler_output)

    @staticmethod
    def _image_features(output: BaseModelOutputWithPooling) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, patches = output.pooler_output, output.last_hidden_state
        if embeds is None:
            raise ValueError(
                "`vision_model` has no pooling head (`vision_use_head` is false in its configuration), so it gives no "
                "image embeddings. Load a checkpoint with one."
            )
        return embeds, torch.cat([embeds.unsqueeze(1), patches], dim=1)


@BACKBONES.register("siglip_text_model", "siglip")
class SiglipTextModelForRTD(SiglipTextMixin, SiglipTextModel):
    """
    [`~transformers.SiglipTextModel`] that accepts pseudo-words; see [`SiglipTextMixin`] and [`PseudoWordMixin`].

    For SigLIP, and for those checkpoints of SigLIP 2 that take pictures of one size, whose `model_type` is `siglip`
    too.

    Example:

    ```python
    >>> model = SiglipTextModelForRTD.from_pretrained("google/siglip-so400m-patch14-384")
    >>> prompts = PromptTokenizer(tokenizer, "a photo of $ that {caption}", **model.prompt_options())
    >>> model(**prompts.compose(["is red"]), pseudo_words=projection(image_embeds)).text_embeds.shape
    torch.Size([1, 1152])
    ```
    """

    stock_class = SiglipTextModel
    vision_class = SiglipVisionModel

    @staticmethod
    def encode_image(vision_model: SiglipVisionModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Encodes images with the frozen vision encoder.

        Args:
            vision_model ([`~transformers.SiglipVisionModel`]): The vision encoder.
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): Preprocessed images.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: the image embeddings `(B, D)`, not normalised, which are the stock
            `pooler_output`; and `(B, 1 + patches, D)`. SigLIP has no class token and pools by attention over the
            patches after the final layer norm: these patches it is, with the image embedding where CLIP has the class
            token. No published projection reads them; one that does is fitted to them as they are.

        Raises:
            ValueError: the vision encoder has no pooling head.
        """
        return SiglipTextMixin._image_features(vision_model(pixel_values=pixel_values))


@BACKBONES.register("siglip2_text_model", "siglip2")
class Siglip2TextModelForRTD(SiglipTextMixin, Siglip2TextModel):
    """
    [`~transformers.Siglip2TextModel`] that accepts pseudo-words; see [`SiglipTextMixin`] and [`PseudoWordMixin`].

    For the checkpoints of SigLIP 2 that keep a picture's aspect ratio (NaFlex); the others are `siglip`.
    """

    stock_class = Siglip2TextModel
    vision_class = Siglip2VisionModel
    image_processor_class = "Siglip2ImageProcessorPil"

    @staticmethod
    def encode_image(
        vision_model: Siglip2VisionModel,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Encodes images with the frozen vision encoder.

        Args:
            vision_model ([`~transformers.Siglip2VisionModel`]): The vision encoder.
            pixel_values (`torch.Tensor` of shape `(B, patches, pixels)`): Preprocessed images, cut into patches.
            pixel_attention_mask (`torch.Tensor` of shape `(B, patches)`): 1 for patches, 0 for padding.
            spatial_shapes (`torch.Tensor` of shape `(B, 2)`): Rows and columns of patches of each image.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: as [`~SiglipTextModelForRTD.encode_image`]; where an image has no
            patch, there is zero.

        Raises:
            ValueError: the mask or the shapes are missing, or the vision encoder has no pooling head.
        """
        if pixel_attention_mask is None or spatial_shapes is None:
            raise ValueError(
                "SigLIP 2 with pictures of any aspect ratio needs `pixel_attention_mask` and `spatial_shapes` besides "
                "`pixel_values`: give all that its image processor returns. Checkpoints of one picture size, such as "
                "`google/siglip2-base-patch16-224`, need `pixel_values` only."
            )
        output = vision_model(
            pixel_values=pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes
        )
        embeds, tokens = SiglipTextMixin._image_features(output)
        tokens[:, 1:] *= pixel_attention_mask.to(tokens.dtype).unsqueeze(-1)
        return embeds, tokens
