"""FTI4CIR's objective (Lin et al., SIGIR 2024, "Fine-grained Textual Inversion Network for Zero-Shot CIR")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..anchors.fingerprints import unwrapped
from ..contexts import full_precision
from ..tagging import split_subject
from ..texts import PLACEHOLDER
from .base import OBJECTIVES, Batch, ObjectiveOptions, ProjectionObjective, contrast, cosine_loss


@dataclass
class FTI4CIROptions(ObjectiveOptions):
    """Options of [`FTI4CIRObjective`]."""

    temperature: float = field(default=0.2, metadata={"help": "Temperature of the NT-Xent loss."})
    orthogonality_weight: float = field(default=1.0, metadata={"help": "Weight of the attributes' orthogonality."})
    caption_weight: float = field(default=1.4, metadata={"help": "Weight of the three caption losses."})
    drop_epoch: float = field(
        default=10.0, metadata={"help": "Epoch at which the learning rate falls to a tenth; 0 for never."}
    )
    tagger: str = field(default="auto", metadata={"help": "What finds the subject: `spacy`, `hanta`, or `auto`."})


@OBJECTIVES.register("fti4cir")
class FTI4CIRObjective(ProjectionObjective):
    """
    The words of a picture's subject and attributes stand for the picture, and for those parts of its caption.

    The caption is split into subject S and attribute A ([`split_subject`]). With v the image embedding, s its
    subject's word and a its attributes' words, t(.) the text embedding, d(x, y) = 1 - cos(x, y), and F the selected
    local features, normalised (used or not),

    $$L = \\mathrm{NTXent}(v, t(s, a);\\ \\tau = 0.2) + \\mathrm{MSE}(F F^T, I)
        + 1.4\\, [d(t(s, A), t(S, A)) + d(t(S, a), t(S, A)) + d(t(s, a), t(S, A))]$$

    where t(x, y) is the embedding of `a photo of x with y`; a caption without attribute leaves `with` out. The
    pictures of all processes are each other's negatives.

    Published: AdamW with learning rate 4e-5, a tenth of it from epoch 10 on, weight decay 0.01 on all parameters, 80
    epochs in batches of 256, half precision with CLIP in float32, seed 42, on the 100,000 test images of ImageNet
    with captions by BLIP, padded to a ratio of 1.25.
    """

    options_class = FTI4CIROptions
    training_defaults = {
        "num_train_epochs": 80,
        "per_device_train_batch_size": 256,
        "learning_rate": 4e-5,
        "weight_decay": 0.01,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "seed": 42,
    }
    needs_captions = True
    needs_patches = True

    def learning_rate_factor(self, epoch: float) -> float:
        """A tenth from `drop_epoch` on."""
        return 0.1 if 0 < self.options.drop_epoch <= epoch else 1.0

    def text_batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Subjects and attributes, and the captions made of them."""
        parts = split_subject([row["caption"] for row in rows], tagger=self.options.tagger)
        return {
            "subjects": [subject for subject, _ in parts],
            "attributes": [attribute for _, attribute in parts],
            "caption": self.texts.lay_out_plain([_prompt(*part) for part in parts]),
        }

    def loss(self, model: nn.Module, inputs: Batch, draw: torch.Generator) -> tuple[torch.Tensor, dict]:
        """See the class."""
        image_embeds, patch_embeds = self.image_features(inputs)
        words, features = model(image_embeds, patch_embeds=patch_embeds, return_features=True)
        counts = unwrapped(model).count_words(words).tolist()
        captions = self.texts.encode_plain(inputs["caption"])
        only_subject, only_attributes, both = self.caption_embeds(inputs, words, counts)
        contrastive = contrast(model, both, image_embeds, self.options.temperature, "nt_xent")
        orthogonality = orthogonality_loss(features)
        texts = sum(cosine_loss(embeds, captions) for embeds in (only_subject, only_attributes, both))
        loss = contrastive + self.options.orthogonality_weight * orthogonality + self.options.caption_weight * texts
        return loss, {"contrastive_loss": contrastive, "orthogonality_loss": orthogonality, "caption_loss": texts}

    def caption_embeds(self, inputs: Batch, words: torch.Tensor, counts: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """
        Captions with pseudo-words in the place of the subject, of the attributes, and of both.

        How many attributes a picture has is known only now, so the texts are laid out here.

        Args:
            inputs (`dict`): The batch; its `subjects` and `attributes` count.
            words (`torch.Tensor` of shape `(B, K, H)`): The projection's words.
            counts (`Sequence[int]`): How many of them each picture has.

        Returns:
            `tuple` of three `torch.Tensor` of shape `(B, D)`.
        """
        texts, numbers = [], []
        places = words.shape[1]
        placeholders = [" ".join([PLACEHOLDER] * (count - 1)) for count in counts]
        subject_numbers = [[row * places] for row in range(len(counts))]
        attribute_numbers = [[row * places + place for place in range(1, count)] for row, count in enumerate(counts)]
        for row, attribute in enumerate(inputs["attributes"]):
            texts.append(_prompt(PLACEHOLDER, attribute))
            numbers += subject_numbers[row]
        for row, subject in enumerate(inputs["subjects"]):
            texts.append(_prompt(subject, placeholders[row]))
            numbers += attribute_numbers[row]
        for row, attributes in enumerate(placeholders):
            texts.append(_prompt(PLACEHOLDER, attributes))
            numbers += subject_numbers[row] + attribute_numbers[row]
        batch = self.texts.lay_out(texts, numbers, num_words=len(counts) * places)
        batch = {name: value.to(words.device) for name, value in batch.items()}
        return self.texts.encode(batch, words).chunk(3)


def orthogonality_loss(features: torch.Tensor) -> torch.Tensor:
    """
    How far local features are from being orthogonal to each other.

    Args:
        features (`torch.Tensor` of shape `(B, K, D)`): Of each picture, normalised.

    Returns:
        `torch.Tensor` (scalar, float32): the mean squared difference of their products and the identity.
    """
    with full_precision(features.device.type):
        features = features.float()
        products = features @ features.transpose(1, 2)
    return F.mse_loss(products, torch.eye(products.shape[-1], device=products.device).expand_as(products))


def _prompt(subject: str, attribute: str) -> str:
    return f"a photo of {subject} with {attribute}" if attribute else f"a photo of {subject}"
