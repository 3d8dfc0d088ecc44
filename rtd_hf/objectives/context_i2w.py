"""Context-I2W's objective (Tang et al., AAAI 2024, "Context-I2W: Mapping Images to Context-dependent Words")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..tagging import mask_object
from .base import BARE_PROMPT, OBJECTIVES, Batch, ProjectionObjective, contrast
from .pic2word import Pic2WordOptions, resolve_logit_scale
from .towers import FrozenCLIP


@dataclass
class ContextI2WOptions(Pic2WordOptions):
    """Options of [`ContextI2WObjective`], those of Pic2Word among them."""

    tagger: str = field(default="auto", metadata={"help": "What finds the object: `spacy`, `hanta`, or `auto`."})
    masking_seed: int = field(default=0, metadata={"help": "Draws the word to mask in captions without nouns."})
    foreign_contexts: float = field(
        default=0.0,
        metadata={
            "help": "Share of pictures whose context is another picture's, as the text of a query is; not published."
        },
    )


@OBJECTIVES.register("context_i2w")
class ContextI2WObjective(ProjectionObjective):
    """
    Pic2Word's objective for words that depend on a context: the picture's own caption with its object masked.

    With c the embedding of the masked caption, the token of `context_placeholder_id` in the object's place, X the
    vision tokens, v the image embedding and s CLIP's frozen logit scale, the loss is the cross-entropy of
    `s * cos(E_T(a photo of [phi(c, X)]), v)` over the pictures of a batch, and over the texts, averaged. The pictures
    of all processes are each other's negatives. How the authors masked captions is not published; here it is
    [`mask_object`].

    A caption says what its picture shows, and the text of a query what it does not show yet. Where captions say nearly
    everything, as in the offline world, words are then made of the context alone. `foreign_contexts` is our remedy: so
    many pictures get the context of a picture drawn at random.

    The settings of the published model are not known. Those of the published code: AdamW with learning rate 5e-4,
    betas 0.9 and 0.98, eps 1e-6, weight decay 0.2 on all but biases, norms and the gate, 10,000 steps of warm-up and a
    cosine schedule, 32 epochs in batches of 64 on each GPU; random crops of 0.9 to 1.0 of the area.
    """

    options_class = ContextI2WOptions
    training_defaults = {
        "num_train_epochs": 32,
        "per_device_train_batch_size": 64,
        "learning_rate": 5e-4,
        "weight_decay": 0.2,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "warmup_steps": 10_000,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.0,
    }
    needs_captions = True
    needs_patches = True
    decays_all = False

    def __init__(self, clip: FrozenCLIP, config: Any, options: ContextI2WOptions | None = None, **settings: Any):
        super().__init__(clip, config, options, **settings)
        self.logit_scale = resolve_logit_scale(clip, self.options.logit_scale)
        size = clip.text_encoder.get_input_embeddings().weight.shape[0]
        if not 0 <= config.context_placeholder_id < size:
            raise ValueError(
                f"`context_placeholder_id` {config.context_placeholder_id} is no token of the CLIP, whose vocabulary "
                f"has {size}. Build the projection with the id of a token that captions do not hold."
            )

    def text_batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The masked captions, and the same prompt for every picture."""
        captions = [row["caption"] for row in rows]
        masked = mask_object(captions, seed=self.options.masking_seed, tagger=self.options.tagger)
        return {
            "context": self.texts.lay_out_plain(masked, placeholder_id=self.config.context_placeholder_id),
            "prompt": self.texts.lay_out([BARE_PROMPT] * len(rows)),
        }

    def loss(self, model: nn.Module, inputs: Batch, draw: torch.Generator) -> tuple[torch.Tensor, dict]:
        """See the class."""
        image_embeds, patch_embeds = self.image_features(inputs)
        contexts = self._mixed(self.texts.encode_plain(inputs["context"]), draw)
        words = model(image_embeds, patch_embeds=patch_embeds, context_embeds=contexts)
        text_embeds = self.texts.encode(inputs["prompt"], words)
        return contrast(model, text_embeds, image_embeds, 1 / self.logit_scale, "info_nce"), {}

    def _mixed(self, contexts: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """The contexts `(B, D)`, of which some are another row's."""
        if self.options.foreign_contexts == 0:
            return contexts
        number = len(contexts)
        foreign = torch.rand(number, generator=draw) < self.options.foreign_contexts
        source = torch.randint(number, (number,), generator=draw)
        return contexts[torch.where(foreign, source, torch.arange(number)).to(contexts.device)]
