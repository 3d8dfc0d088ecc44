"""Composed queries on their way from pictures and texts to the text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class ImageFeatures(NamedTuple):
    """
    What a projection reads of images.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): Projected image embeddings, not normalised.
        patch_embeds (`torch.Tensor` of shape `(N, 1 + patches, W)`, *optional*): Vision tokens, where it reads them.
    """

    image_embeds: torch.Tensor
    patch_embeds: torch.Tensor | None = None

    def __getitem__(self, rows):
        """The features of some images."""
        return ImageFeatures(*(None if part is None else part[rows] for part in (*self,)))


@dataclass(frozen=True)
class ComposedPrompts:
    """
    Queries on their way to the text encoder, as far as the training of that encoder cannot change them.

    Args:
        texts (`list[str]`): A conditioning text for each of V prompts; a query with two orders of captions has two.
        queries (`torch.Tensor` of shape `(V,)`): The query each prompt belongs to.
        words (`torch.Tensor` of shape `(V, K, H)`): Its pseudo-words, unused places zero.
        counts (`list[int]`): How many of the places are used.
        templates (`list[str]`): Its template.
    """

    texts: list[str]
    queries: torch.Tensor
    words: torch.Tensor
    counts: list[int]
    templates: list[str]

    @classmethod
    def concatenate(cls, parts: "Sequence[ComposedPrompts]") -> "ComposedPrompts":
        """Several of one benchmark, one after the other; `queries` say which of its queries each part is about."""
        return cls(
            [text for part in parts for text in part.texts],
            torch.cat([part.queries for part in parts]),
            torch.cat([part.words for part in parts]),
            [count for part in parts for count in part.counts],
            [template for part in parts for template in part.templates],
        )
