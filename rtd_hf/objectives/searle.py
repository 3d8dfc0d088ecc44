"""SEARLE's objective (Baldrati et al., ICCV 2023, "Zero-Shot Composed Image Retrieval with Textual Inversion")."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from .base import OBJECTIVES, Batch, ProjectionObjective, contrast, cosine_loss
from .concepts import PhraseBank, nearest_concepts
from .features import EncodedRows
from .inversion import InversionOptions, textual_inversion


@dataclass
class SEARLEOptions(InversionOptions):
    """Options of [`SEARLEObjective`], those of its textual inversion among them."""

    temperature: float = field(default=0.25, metadata={"help": "Temperature of the distillation's NT-Xent loss."})
    phrase_weight: float = field(default=0.75, metadata={"help": "Weight of the phrases in the distillation."})
    phrase_concepts: int = field(default=150, metadata={"help": "Nearest concepts that phrases are drawn from."})


@OBJECTIVES.register("searle")
class SEARLEObjective(ProjectionObjective):
    """
    The projection learns to give, at once, the words that textual inversion finds for images one by one. No captions.

    `prepare` embeds the images, finds their nearest concepts, and inverts them ([`textual_inversion`]). With w an
    image's word and v its embedding, the projection then minimises

    $$L = \\mathrm{NTXent}(w, \\phi(v);\\ \\tau = 0.25) + 0.75\\, (1 - \\cos(E_T(p_{\\phi(v)}), E_T(p)))$$

    where p is a phrase about one of the image's nearest concepts and, in the other text, the word stands for that
    concept (sections 3.1 and 3.2). Where the phrases come from is up to the [`PhraseBank`]; the publication had them
    written by GPT-Neo 2.7B about names of Open Images.

    Published: 350 inversion steps with AdamW at 2e-2, weight decay 0.01, moving average 0.99, 15 concepts; then 100
    epochs in batches of 256 with AdamW at 1e-4, weight decay 0.01 on all parameters, 150 concepts, half precision, on
    the 100,000 test images of ImageNet, padded to a ratio of 1.25.

    Args:
        bank ([`PhraseBank`]): Concepts and phrases.
        kwargs: As [`ProjectionObjective`].
    """

    options_class = SEARLEOptions
    training_defaults = {
        "num_train_epochs": 100,
        "per_device_train_batch_size": 256,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    needs_phrases = True

    def __init__(self, *args: Any, bank: PhraseBank, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.bank = bank

    def prepare(self, dataset: Dataset, *, folder: str | None = None, seed: int = 0, **loading: Any) -> Dataset:
        """
        Embeds and inverts the images.

        Args:
            dataset (`Dataset`): Rows with an `"image"`.
            folder (`str`, *optional*): Where words are kept; see [`textual_inversion`].
            seed (`int`, *optional*, defaults to 0): Of the inversion.
            loading: As [`EncodedRows`] takes it: `batch_size`, `num_workers`.

        Returns:
            `Dataset`: rows with `"image_embeds"` `(D,)`, `"inversion"` `(H,)` and `"concepts"` `(C,)`.
        """
        encoded = dataset if isinstance(dataset, EncodedRows) else EncodedRows(dataset, self, **loading)
        number = max(self.options.phrase_concepts, self.options.inversion_concepts)
        concepts = nearest_concepts(encoded.image_embeds, self.bank.concepts, self.texts, number)
        words = textual_inversion(
            encoded.image_embeds,
            self.texts,
            InversionOptions(**{name: getattr(self.options, name) for name in InversionOptions.__dataclass_fields__}),
            bank=self.bank,
            concepts=concepts[:, : self.options.inversion_concepts],
            seed=seed,
            folder=folder,
        )
        return encoded.with_columns(inversion=words, concepts=concepts[:, : self.options.phrase_concepts])

    def text_batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """A phrase for each image, with and without its concept, and the image's own word."""
        pairs = []
        for row in rows:
            rng = random.Random(f"phrase {row['key']}")
            pairs.append(self.bank.draw(int(rng.choice(row["concepts"])), rng))
        return {
            "phrase": self.texts.lay_out_plain([phrase for phrase, _ in pairs]),
            "masked": self.texts.lay_out([masked for _, masked in pairs]),
            "inversion": torch.stack([row["inversion"] for row in rows]),
        }

    def loss(self, model: nn.Module, inputs: Batch, draw: torch.Generator) -> tuple[torch.Tensor, dict]:
        """See the class."""
        image_embeds, _ = self.image_features(inputs)
        words = model(image_embeds)
        distillation = contrast(model, words[:, 0], inputs["inversion"], self.options.temperature, "nt_xent")
        phrases = self.texts.encode_plain(inputs["phrase"])
        regulariser = cosine_loss(self.texts.encode(inputs["masked"], words), phrases)
        loss = distillation + self.options.phrase_weight * regulariser
        return loss, {"distillation_loss": distillation, "phrase_loss": regulariser}
