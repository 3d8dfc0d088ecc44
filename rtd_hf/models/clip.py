"""CLIP text encoders, of OpenAI's, LAION's and MetaCLIP's families as `transformers` holds them."""

import torch
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from .base import BACKBONES, PseudoWordMixin


# A whole CLIP checkpoint says `clip` in its configuration; the text tower alone says `clip_text_model`.
@BACKBONES.register("clip_text_model", "clip")
class CLIPTextModelForRTD(PseudoWordMixin, CLIPTextModelWithProjection):
    """
    [`~transformers.CLIPTextModelWithProjection`] that accepts pseudo-words; see [`PseudoWordMixin`].

    Example:

    ```python
    >>> model = CLIPTextModelForRTD.from_pretrained("openai/clip-vit-large-patch14")
    >>> batch = PromptTokenizer(tokenizer, "a photo of $ that {caption}").compose(["is red"])
    >>> batch.pop("attention_mask")
    >>> model(**batch, pseudo_words=projection(image_embeds)).text_embeds.shape
    torch.Size([1, 768])
    ```
    """

    # The rest of a whole CLIP checkpoint is left aside on purpose; a report of it would hide what matters.
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^visual_projection\.", r"^logit_scale$"]

    stock_class = CLIPTextModelWithProjection
    vision_class = CLIPVisionModelWithProjection
    lora_target_modules = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

    @staticmethod
    def encode_image(
        vision_model: CLIPVisionModelWithProjection, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Encodes images with the frozen vision encoder.

        Args:
            vision_model ([`~transformers.CLIPVisionModelWithProjection`]): The vision encoder.
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): Preprocessed images.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: the projected image embeddings `(B, D)`, not normalised, and the
            tokens of the last layer before the final layer norm `(B, 1 + patches, W)`, the class token first.
        """
        output = vision_model(pixel_values=pixel_values)
        return output.image_embeds, output.last_hidden_state
