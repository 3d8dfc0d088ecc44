"""SEARLE's projection (Baldrati et al., ICCV 2023, "Zero-Shot Composed Image Retrieval with Textual Inversion")."""

import torch

from .base import PROJECTIONS, ImageToWordProjection, ProjectionConfig
from .networks import word_layers


@PROJECTIONS.register("searle")
class SEARLEProjection(ImageToWordProjection):
    """
    A GELU network with two hidden layers of four times the input width, D to 4D to 4D to H, one pseudo-word.

    Dropout follows each GELU. The keys of its state dict (`layers.0`, `layers.3`, `layers.6`) are those of the
    published `Phi`. Its authors pad images to a ratio of 1.25 before CLIP's preprocessing.
    """

    projection_type = "searle"
    default_dropout = 0.5
    image_preprocess = "targetpad"

    def __init__(self, config: ProjectionConfig):
        super().__init__(config)
        words = config.num_pseudo_words * config.output_dim
        self.layers = word_layers(config.input_dim, config.hidden_dim, words, config.dropout)
        self.post_init()

    def project(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor | None,
        context_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        return self.layers(image_embeds)
