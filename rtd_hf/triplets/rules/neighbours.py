"""Which keyword may stand for which: similarity under a text encoder, or by the company words keep in the corpus."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from .categories import category
from .vocabulary import Counts, Keyword


_MEMORY = 1 << 28  # bytes of one block of similarities
_CONTEXTS = 1000
_ODD, _POSITIVE = -1640531535, 0x7FFFFFFF  # a multiplicative hash in 32 bits, which wrap (Knuth, volume 3, 6.4)


def corpus_embeddings(counts: Counts, keywords: Sequence[Keyword]) -> np.ndarray:
    """
    Embeddings of keywords by the words and nouns that stand beside them: positive pointwise mutual information with
    the most frequent contexts (Church and Hanks, 1990; Levy and Goldberg, NeurIPS 2014), for where no text encoder is.

    Args:
        counts (`Counts`): Of the corpus.
        keywords (`Sequence[Keyword]`): N keywords.

    Returns:
        `np.ndarray` of shape `(N, C)`, float32: not normalised; C is at most 1000.
    """
    rows = {keyword.noun: row for row, keyword in enumerate(keywords)}
    used = [(rows[name], context, times) for (name, context), times in counts.contexts.items() if name in rows]
    totals: Counter[str] = Counter()
    for _, context, times in used:
        totals[context] += times
    columns = {context: column for column, (context, _) in enumerate(sorted(
        totals.items(), key=lambda item: (-item[1], item[0]))[:_CONTEXTS])}  # fmt: skip
    table = np.zeros((len(keywords), max(len(columns), 1)), dtype=np.float32)
    for row, context, times in used:
        if context in columns:
            table[row, columns[context]] = times
    total = max(table.sum(), 1.0)
    # Contexts to the power 0.75, as usual: rare ones would otherwise decide everything.
    by_column = table.sum(0) ** 0.75
    by_column /= max(by_column.sum(), 1e-9)
    by_row = table.sum(1, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(table / total / (by_row * by_column))
    return np.where(table > 0, np.maximum(information, 0), 0).astype(np.float32)


def similar_keywords(
    embeddings: np.ndarray,
    keywords: Sequence[Keyword],
    *,
    band: tuple[float, float],
    quantile: bool,
    number: int = 32,
    seed: int = 0,
    device: str = "cpu",
) -> np.ndarray:
    """
    For every keyword some of its category whose cosine similarity to it lies in a band, drawn at random from all that
    do.

    Similarities are computed block by block: besides the embeddings and the result, 256 MB are needed, however many
    keywords there are. What a keyword gets depends on the seed and the two words, not on the blocks.

    Args:
        embeddings (`np.ndarray` of shape `(N, D)`, float32): Of the keywords; need not be normalised.
        keywords (`Sequence[Keyword]`): N keywords. One that holds all words of another is no replacement for it.
        band (`tuple[float, float]`): Lower and upper bound.
        quantile (`bool`):
            Whether the bounds are quantiles of the keyword's own similarities to all others, in [0, 1], and not
            cosines: encoders differ in where their cosines lie.
        number (`int`, *optional*, defaults to 32): The most to keep for each keyword.
        seed (`int`, *optional*, defaults to 0): Decides which.
        device (`str`, *optional*, defaults to `"cpu"`): Where similarities are computed.

    Returns:
        `np.ndarray` of shape `(N, number)`, int32: numbers of keywords, -1 where there are fewer.

    Raises:
        ValueError: the band is empty, or embeddings are not finite.
    """
    low, high = band
    if not low < high or (quantile and not 0 <= low < high <= 1):
        kind = "quantiles in [0, 1]" if quantile else "cosines"
        raise ValueError(f"The similarity band must be two {kind}, the smaller one first, but is {low} to {high}.")
    if not np.isfinite(embeddings).all():
        raise ValueError("The embeddings of the keywords are not finite. Check the text encoder.")
    table = torch.nn.functional.normalize(torch.from_numpy(np.asarray(embeddings, np.float32)).to(device), dim=-1)
    total = len(keywords)
    found = np.full((total, number), -1, dtype=np.int32)
    keys = torch.from_numpy(_keys(keywords, seed)).to(device)
    names = {name: place for place, name in enumerate(dict.fromkeys(category(one.noun) for one in keywords))}
    kinds = torch.tensor([names[category(one.noun)] for one in keywords], dtype=torch.int16, device=device)
    words = [frozenset(keyword.noun.split()) for keyword in keywords]
    glued = [keyword.noun.replace(" ", "").replace("-", "") for keyword in keywords]
    size = max(1, min(total, _MEMORY // (16 * max(total, 1))))
    starts = range(0, total, size)
    for start in tqdm(starts, desc="Comparing keywords", unit="block", disable=len(starts) < 4, leave=False):
        block = table[start : start + size] @ table.T
        own = torch.arange(start, start + len(block), device=block.device)
        block[torch.arange(len(block)), own] = -math.inf
        bounds = _bounds(block, low, high) if quantile and total > 1 else (low, high)
        inside = (block >= bounds[0]) & (block <= bounds[1]) & (kinds[own][:, None] == kinds[None, :])
        # A random number for each pair, the same whatever the blocks: the largest ones are kept.
        draw = ((keys[None, :] ^ keys[own][:, None]) * _ODD) & _POSITIVE
        draw = draw.masked_fill_(~inside, -1)
        best = draw.topk(min(total, 3 * number), dim=-1)
        numbers, kept = best.indices.cpu().numpy(), best.values.cpu().numpy() >= 0
        for row in range(len(block)):
            mine = words[start + row]
            allowed = (
                one
                for one in numbers[row][kept[row]]
                if not (words[one] <= mine or mine <= words[one]) and not _same_word(glued[one], glued[start + row])
            )
            chosen = [one for one, _ in zip(allowed, range(number), strict=False)]
            found[start + row, : len(chosen)] = chosen
    return found


def _same_word(one: str, other: str) -> bool:
    """Whether two words differ in a blank, or as `frisbe` and `frisbee` do."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) > 5 and len(long) == len(short) + 1 and long.startswith(short))


def _bounds(block: torch.Tensor, low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row the similarities at two quantiles of all others, itself left out."""
    last = block.shape[1] - 2  # the last rank, counted from 0, without the word itself
    ranks = [1 + math.floor(low * last), 1 + math.ceil(high * last)]  # the word itself has rank 0: -inf
    # `torch.quantile` refuses large tensors.
    return tuple(block.kthvalue(rank + 1, dim=-1, keepdim=True).values for rank in ranks)


def _keys(keywords: Sequence[Keyword], seed: int) -> np.ndarray:
    digests = (hashlib.blake2b(f"{seed} {one.noun}".encode(), digest_size=4).digest() for one in keywords)
    return np.fromiter((int.from_bytes(digest, "big") >> 1 for digest in digests), np.int32, len(keywords))


def embed_keywords(
    keywords: Sequence[Keyword], encode: Callable[[Sequence[str]], np.ndarray], *, batch_size: int = 512
) -> np.ndarray:
    """
    Embeddings of keywords by a text encoder, without any prompt around them, as CompoDiff has it.

    Args:
        keywords (`Sequence[Keyword]`): N keywords.
        encode (`Callable[[Sequence[str]], np.ndarray]`): Embeds texts: `(n,)` to `(n, D)`.
        batch_size (`int`, *optional*, defaults to 512): Texts at once.

    Returns:
        `np.ndarray` of shape `(N, D)`, float32.
    """
    texts = [keyword.noun for keyword in keywords]
    starts = range(0, len(texts), batch_size)
    parts = [
        np.asarray(encode(texts[start : start + batch_size]), dtype=np.float32)
        for start in tqdm(starts, desc="Encoding keywords", unit="batch", disable=len(starts) < 4, leave=False)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)
