"""Which words of a text moved a result: each is left out in turn, and the scores are looked at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .retriever import ComposedImageRetriever


class WordEffect(NamedTuple):
    """
    What a word does to the scores of some pictures.

    Args:
        word (`str`): The word, as it stands in the text.
        effects (`tuple[float, ...]`): For each picture its score with all words, less its score without this one:
            positive where the word speaks for the picture.
    """

    word: str
    effects: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the pictures."""
        return sum(self.effects) / len(self.effects)


def word_effects(
    retriever: ComposedImageRetriever,
    image,
    text: str,
    pictures: Sequence[str] | None = None,
    *,
    text_weight: float = 0.5,
) -> list[WordEffect]:
    """
    Leaves out each word of a text in turn. What words do together does not show.

    Args:
        retriever ([`ComposedImageRetriever`]): With an index.
        image: The reference, or a list of references, as for [`~ComposedImageRetriever.search`].
        text (`str`): What should be different.
        pictures (`Sequence[str]`, *optional*): Ids of the pictures that are looked at; the best one by default.
        text_weight (`float`, *optional*, defaults to 0.5): As for the search.

    Returns:
        `list[WordEffect]`: One for each word, in order. One word alone is compared with the reference's embedding.

    Raises:
        ValueError: The text is empty, or there is no index.
        KeyError: A picture is not in the index.
    """
    words = text.split()
    if pictures is None:
        pictures = [hit.id for hit in retriever.search(image, text, 1, text_weight=text_weight)]
    index = retriever.searched
    embeds = np.asarray(index.embeddings[index.positions(pictures)])
    left = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
    texts = [text, *(some for some in left if some)]
    scores = retriever.encode_queries([image] * len(texts), texts, text_weight=text_weight) @ embeds.T
    without = scores[1:]
    if len(words) == 1:
        without = retriever.encode_queries([image], [""], text_weight=0) @ embeds.T
    return [WordEffect(word, tuple((scores[0] - row).tolist())) for word, row in zip(words, without, strict=True)]
