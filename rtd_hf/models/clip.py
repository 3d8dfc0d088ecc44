"""CLIP text encoders, of OpenAI's, LAION's and MetaCLIP's families as `transformers` holds them."""

from typing import Any

import torch
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPTextModelOutput

from ..kernels import fast_linears, packed_attention
from ..packing import PackedRows
from .base import PseudoWordMixin
from .checkpoints import BACKBONES


class PackedCLIPEncoderLayer(CLIPEncoderLayer):
    """[`~transformers.models.clip.modeling_clip.CLIPEncoderLayer`], for packed rows too."""

    def forward(self, hidden_states, attention_mask=None, rows: PackedRows | None = None, only_ends=False, **kwargs):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(N, H)`): States of the nodes; without `rows` as the stock layer.
            attention_mask (`torch.Tensor`, *optional*): For the stock layer.
            rows ([`PackedRows`], *optional*): The nodes.
            only_ends (`bool`, *optional*, defaults to `False`):
                In the last layer only the pooled states are wanted; the others serve as keys and values alone. Six
                percent of all multiplications of a tower of twelve layers are saved.

        Returns:
            `torch.Tensor` of shape `(N, H)`; with `only_ends` the states of the rows' last nodes, `(R, H)`.
        """
        if rows is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        attention = self.self_attn
        with fast_linears(hidden_states):
            states = self.layer_norm1(hidden_states)
            keys, values = attention.k_proj(states), attention.v_proj(states)
            if only_ends:
                ends = rows.ends
                hidden_states, states = hidden_states[ends], states[ends]
            attended = packed_attention(
                attention.q_proj(states), keys, values, rows, num_heads=attention.num_heads, only_ends=only_ends
            )
            hidden_states = hidden_states + attention.out_proj(attended)
            return hidden_states + self.mlp(self.layer_norm2(hidden_states))


# A whole CLIP checkpoint says `clip` in its configuration; the text tower alone says `clip_text_model`.
@BACKBONES.register("clip_text_model", "clip")
class CLIPTextModelForRTD(PseudoWordMixin, CLIPTextModelWithProjection):
    """
    [`~transformers.CLIPTextModelWithProjection`] that accepts pseudo-words; see [`PseudoWordMixin`].

    Serves what has this architecture: OpenAI's B/32, B/16 and L/14, LAION's H/14 and bigG/14, MetaCLIP's. They differ
    in widths, in the activation (`quick_gelu` or `gelu`), and in whether the configuration names EOS by its id or by
    the legacy value 2, for which the stock model takes the highest id of a row.

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
    output_class = CLIPTextModelOutput
    vision_class = CLIPVisionModelWithProjection
    image_processor_class = "CLIPImageProcessorPil"
    lora_target_modules = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

    def __init__(self, config):
        super().__init__(config)
        for layer in self.text_model.encoder.layers:
            # Of the same parameters: built as the stock layer, it learns one more way to be called.
            layer.__class__ = PackedCLIPEncoderLayer
        # By these names FSDP finds the layers to shard and `device_map` those to keep whole.
        for module in (self, self.text_model):
            renamed = {CLIPEncoderLayer.__name__: PackedCLIPEncoderLayer.__name__}
            module._no_split_modules = type(module._no_split_modules)(
                renamed.get(name, name) for name in module._no_split_modules
            )

    @classmethod
    def _amendments(cls, facts: dict[str, Any]) -> dict[str, Any]:
        # Of a whole CLIP only the entry at the top has to be right, as `CLIPModel` reads no other; those of the towers
        # may be left at 512, with which the classes of one tower refuse the weights.
        return {"projection_dim": facts["projection_dim"]} if facts.get("projection_dim") else {}

    @property
    def takes_packed_rows(self) -> bool:
        """All of CLIP's do, unless they drop attention weights, which no published checkpoint does."""
        return self.config.attention_dropout == 0

    def _encode_packed(self, rows: PackedRows, words: torch.Tensor | None) -> torch.Tensor:
        text = self.text_model
        placeholders = torch.zeros_like(rows.input_ids, dtype=torch.bool).index_fill_(0, rows.word_nodes, True)
        # As N rows of one token: the stock embedding holds a row of more than 77 for too long.
        with self._injected(None if words is None else words[rows.word_indices], placeholders[:, None]):
            states = text.embeddings(rows.input_ids[:, None], rows.position_ids[:, None]).squeeze(1)
        *layers, last = text.encoder.layers
        for layer in layers:
            states = layer(states, None, rows)
        states = text.final_layer_norm(last(states, None, rows, True))
        with fast_linears(states):
            return self.text_projection(states)

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
