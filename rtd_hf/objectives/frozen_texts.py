"""Texts with pseudo-words in them, through the frozen text encoder."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ..packing import pack_rows
from ..prompts import PromptTokenizer
from ..texts import PLACEHOLDER
from .towers import FrozenCLIP


TextBatch = dict[str, Any]


class FrozenTexts:
    """
    Lays texts out and encodes them with the frozen text encoder of a CLIP.

    Args:
        clip ([`FrozenCLIP`]): The CLIP.
        packing (`bool`, *optional*, defaults to `True`):
            Encode without padding, shared prefixes once, where the encoder can ([`PackedRows`]); the same embeddings
            in about half the time.
    """

    def __init__(self, clip: FrozenCLIP, *, packing: bool = True):
        self.encoder = clip.text_encoder
        self.packing = packing and getattr(self.encoder, "takes_packed_rows", False)
        self.prompts = PromptTokenizer(clip.tokenizer, **self.encoder.prompt_options())

    def lay_out(
        self, texts: Sequence[str], words: Sequence[int] | None = None, *, num_words: int | None = None
    ) -> TextBatch:
        """
        Lays out texts in which `$`, standing alone, is a placeholder. Runs in a data loader's workers.

        Args:
            texts (`Sequence[str]`): The R texts.
            words (`Sequence[int]`, *optional*):
                The number of the pseudo-word at each placeholder, in reading order, among all that
                [`~FrozenTexts.encode`] will be given. By default every placeholder of a row holds the row's.
            num_words (`int`, *optional*): How many that will be; R by default.

        Returns:
            `dict`: for [`~FrozenTexts.encode`].
        """
        batch = self.prompts.mark(texts)
        mask = batch["placeholder_mask"]
        row, _ = mask.nonzero(as_tuple=True)
        numbers = row if words is None else torch.as_tensor(words)[_kept(texts, mask)]
        if not self.packing:
            return {**batch, "word_numbers": numbers}
        where = torch.full(mask.shape, -1).masked_scatter(mask, numbers)
        lengths = batch["attention_mask"].sum(dim=1)
        packed = pack_rows(batch["input_ids"].numpy(), lengths.numpy(), words=where.numpy())
        # A word whose place was cut off is still given.
        return {"packed_rows": dataclasses.replace(packed, num_words=num_words or len(texts))}

    def lay_out_plain(self, texts: Sequence[str], *, placeholder_id: int | None = None) -> TextBatch:
        """Texts without pseudo-words; `$` is an ordinary token, or that of `placeholder_id`."""
        batch = self.prompts.mark(texts)
        mask = batch.pop("placeholder_mask")
        if placeholder_id is not None:
            batch["input_ids"] = batch["input_ids"].masked_fill(mask, placeholder_id)
        if not self.packing:
            return batch
        lengths = batch["attention_mask"].sum(dim=1)
        return {"packed_rows": pack_rows(batch["input_ids"].numpy(), lengths.numpy())}

    def encode(self, batch: TextBatch, words: torch.Tensor | None = None) -> torch.Tensor:
        """
        Text embeddings, through the frozen encoder; gradients reach the pseudo-words.

        Args:
            batch (`dict`): From [`~FrozenTexts.lay_out`] or [`~FrozenTexts.lay_out_plain`].
            words (`torch.Tensor` of shape `(R, K, H)`, *optional*): Pseudo-words.

        Returns:
            `torch.Tensor` of shape `(R, D)`, float32, not normalised.
        """
        if "packed_rows" in batch:
            return self.encoder(packed_rows=batch["packed_rows"], pseudo_words=words).text_embeds.float()
        batch = dict(batch)
        numbers, mask = batch.pop("word_numbers", None), batch.pop("placeholder_mask", None)
        if words is not None:
            batch |= {"pseudo_words": words.flatten(0, -2)[numbers], "placeholder_mask": mask}
        return self.encoder(**batch).text_embeds.float()

    def encode_plain(self, batch: TextBatch) -> torch.Tensor:
        """[`~FrozenTexts.encode`] of texts without pseudo-words, without gradient."""
        with torch.no_grad():
            return self.encode(batch)


def _kept(texts: Sequence[str], mask: torch.Tensor) -> torch.Tensor:
    """Which placeholders of the texts are still there, `(N,)` bool; a text that was cut has lost its last ones."""
    counts = mask.sum(dim=1).tolist()
    kept = []
    for text, count in zip(texts, counts, strict=True):
        kept += [place < count for place in range(text.split().count(PLACEHOLDER))]
    return torch.tensor(kept, dtype=torch.bool)
