"""Context-I2W's projection (Tang et al., AAAI 2024, "Context-I2W: Mapping Images to Context-dependent Words")."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .base import PROJECTIONS, ImageToWordProjection
from .configuration import ProjectionConfig, check_positive
from .pic2word import Pic2WordProjection


class ContextI2WConfig(ProjectionConfig):
    """
    Configuration of [`ContextI2WProjection`].

    Args:
        num_latents (`int`): Learned latents that gather the patches.
        latent_depth (`int`): Layers of the extractor.
        latent_heads (`int`): Attention heads per layer.
        latent_head_dim (`int`): Width of a head.
        latent_ff_mult (`int`): Width of the extractor's feed-forward layers, in multiples of `vision_hidden_size`.
        context_placeholder_id (`int`):
            Token id at the placeholder of the context prompt. The publication's tokenizer gives its placeholder the
            number of CLIP's word `jekyll`, so that the context holds that word's embedding.
        kwargs: The arguments of [`ProjectionConfig`]; the projection needs `vision_hidden_size`.

    Raises:
        ValueError: as [`ProjectionConfig`], or a number is not positive.
    """

    def __init__(
        self,
        num_latents: int = 4,
        latent_depth: int = 6,
        latent_heads: int = 8,
        latent_head_dim: int = 64,
        latent_ff_mult: int = 4,
        context_placeholder_id: int = 49405,
        **kwargs: Any,
    ):
        check_positive(
            num_latents=num_latents,
            latent_depth=latent_depth,
            latent_heads=latent_heads,
            latent_head_dim=latent_head_dim,
            latent_ff_mult=latent_ff_mult,
        )
        self.num_latents = num_latents
        self.latent_depth = latent_depth
        self.latent_heads = latent_heads
        self.latent_head_dim = latent_head_dim
        self.latent_ff_mult = latent_ff_mult
        self.context_placeholder_id = context_placeholder_id
        super().__init__(**kwargs)


class LatentAttention(nn.Module):
    """Attention of the latents over the patches and themselves; no biases, no dropout."""

    def __init__(self, width: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(width, 2 * num_heads * head_dim, bias=False)  # the keys' rows first
        self.to_out = nn.Linear(num_heads * head_dim, width, bias=False)

    def forward(self, media: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """`(B, patches, W)` and `(B, latents, W)` to what is added to the latents."""
        latents = self.norm_latents(latents)
        sources = torch.cat([self.norm_media(media), latents], dim=1)
        queries, keys, values = (
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for states in (self.to_q(latents), *self.to_kv(sources).chunk(2, dim=-1))
        )
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class VisualTargetExtractor(nn.Module):
    """A few learned latents that gather what the context wants from the patches, layer by layer."""

    def __init__(self, config: ContextI2WConfig, width: int):
        super().__init__()
        self.latents = nn.Parameter(torch.empty(config.num_latents, width))
        hidden = config.latent_ff_mult * width
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    LatentAttention(width, config.latent_heads, config.latent_head_dim),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, hidden, bias=False),
                        nn.GELU(),
                        nn.Linear(hidden, width, bias=False),
                    ),
                ]
            )
            for _ in range(config.latent_depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, media: torch.Tensor) -> torch.Tensor:
        """`(B, patches, W)` to `(B, latents, W)`."""
        latents = self.latents.expand(len(media), -1, -1)
        for attend, feed_forward in self.layers:
            latents = latents + attend(media, latents)
            latents = latents + feed_forward(latents)
        return self.norm(latents)


@PROJECTIONS.register("context_i2w")
class ContextI2WProjection(ImageToWordProjection):
    """
    A pseudo-word that depends on the query's text: the context weighs the channels of all vision tokens.

    The class token becomes a global word and the patches, gathered by an extractor of four latents, a local one;
    the word is their sum, the local one through a tanh gate that starts shut. `image_embeds` are not read, only
    `patch_embeds` and `context_embeds`: the un-normalised text embedding of the prompt that still holds
    `config.context_placeholder_id` at its placeholder, by the text encoder the projection was trained with. That is
    the original one, also where another text encoder reads the composed prompt.

    The keys of its state dict are the published ones (`IM2TEXT_OWM_Attn`), except that the weight normalisation of
    `W_R` is folded: one `W_R.weight` stands for `W_R.weight_g * W_R.weight_v / |W_R.weight_v|`, row by row. In the
    publication D and H are equal; here the context is D and the word H wide. A text has no patches, so text-only
    training needs a surrogate ([`~ImageToWordProjection.fit_surrogate`]); without one it writes literal words.
    """

    config_class = ContextI2WConfig
    projection_type = "context_i2w"
    default_dropout = 0.1
    prompt_template = Pic2WordProjection.prompt_template  # its authors took over Pic2Word's prompts
    benchmark_templates = Pic2WordProjection.benchmark_templates
    caption_order = Pic2WordProjection.caption_order
    needs_patches = True
    needs_context = True
    text_trainings = ("literal", "surrogate")

    @staticmethod
    def default_hidden_dim(projection_dim: int) -> int:
        """512 for every backbone."""
        return 512

    def __init__(self, config: ContextI2WConfig):
        super().__init__(config)
        width, words = self._vision_width(), config.num_pseudo_words * config.output_dim
        self.to_c = nn.Linear(config.input_dim, width, bias=False)
        self.W_R = nn.Linear(width, width, bias=False)
        self.VT_Extractor = VisualTargetExtractor(config, width)
        self.local_gate = nn.Parameter(torch.empty(1))
        self.ln_post, self.ln_post_local = nn.LayerNorm(width), nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, config.output_dim))
        self.proj_local = nn.Parameter(torch.empty(width, config.output_dim))
        self.layers, self.layers_local = self._hidden_layers(), self._hidden_layers()
        self.fc_out, self.fc_out_local = nn.Linear(config.hidden_dim, words), nn.Linear(config.hidden_dim, words)
        self.post_init()

    def _hidden_layers(self) -> nn.Sequential:
        hidden, dropout = self.config.hidden_dim, self.config.dropout
        return nn.Sequential(
            *(
                nn.Sequential(nn.Linear(width, hidden), nn.Dropout(dropout), nn.ReLU())
                for width in (self.config.output_dim, hidden)
            )
        )

    def project(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        context_embeds: torch.Tensor,
    ) -> torch.Tensor:
        tokens = self.W_R(patch_embeds) * self.to_c(context_embeds).unsqueeze(1)
        gathered = self.VT_Extractor(tokens[:, 1:]).mean(dim=1)
        global_word = self.fc_out(self.layers(self.ln_post(tokens[:, 0]) @ self.proj))
        local_word = self.fc_out_local(self.layers_local(self.ln_post_local(gathered) @ self.proj_local))
        return global_word + self.local_gate.tanh() * local_word

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VisualTargetExtractor):
            init.normal_(module.latents)
        if isinstance(module, ContextI2WProjection):
            init.zeros_(module.local_gate)
            for weight in (module.proj, module.proj_local):
                init.normal_(weight, std=weight.shape[0] ** -0.5)
