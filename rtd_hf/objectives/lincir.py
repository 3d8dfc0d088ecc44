"""LinCIR's self-masking projection (Gu et al., CVPR 2024, "Language-only Training of Zero-shot CIR")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..noise import draw_noise
from ..tagging import mask_keywords
from ..texts import clean_caption
from .base import OBJECTIVES, Batch, ObjectiveOptions, ProjectionObjective


@dataclass
class LinCIROptions(ObjectiveOptions):
    """Options of [`LinCIRObjective`]."""

    noise_scale: float = field(
        default=1.0, metadata={"help": "Gaussian noise on the caption's embedding, times one U(0, 1) a row."}
    )
    tagger: str = field(default="auto", metadata={"help": "What finds the keywords: `spacy`, `hanta`, or `auto`."})
    masking_seed: int = field(default=0, metadata={"help": "Draws the word to mask in captions without keywords."})


@OBJECTIVES.register("lincir")
class LinCIRObjective(ProjectionObjective):
    """
    A caption whose keywords are replaced by its own pseudo-word keeps its embedding. No pictures.

    With t the caption's embedding, noise u e of u ~ U(0, 1) a row and e ~ N(0, I), and the caption's keywords masked
    ([`mask_keywords`]), all gaps of a caption filled with one word:

    $$L = \\mathrm{MSE}\\big(E_T(\\text{masked caption with } \\phi(t + u e)),\\; t\\big)$$

    (section 3.2). Published: batches of 512 captions in all (64 on each of 8 GPUs), 20,000 steps, AdamW with a
    constant learning rate of 1e-4 and weight decay 0.01 on all parameters, noise scale 1.0, half precision, seed
    12345.
    """

    options_class = LinCIROptions
    training_defaults = {
        "max_steps": 20_000,
        "per_device_train_batch_size": 512,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "seed": 12345,
    }
    needs_images = False
    needs_captions = True

    def text_batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The captions, and the captions masked."""
        captions = [clean_caption(row["caption"]) for row in rows]
        masked = mask_keywords(captions, seed=self.options.masking_seed, tagger=self.options.tagger)
        return {"caption": self.texts.lay_out_plain(captions), "masked": self.texts.lay_out(masked)}

    def loss(self, model: nn.Module, inputs: Batch, draw: torch.Generator) -> tuple[torch.Tensor, dict]:
        """See the class."""
        targets = self.texts.encode_plain(inputs["caption"])
        words = model(targets + self._noise_like(targets, draw))
        embeds = self.texts.encode(inputs["masked"], words)
        return F.mse_loss(embeds, targets), {}

    def _noise_like(self, embeds: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        noise = draw_noise(embeds.shape, kind="scaled_gaussian", scale=1.0, generator=draw)
        return self.options.noise_scale * noise.to(embeds.device)
