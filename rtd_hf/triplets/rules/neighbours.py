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


_MEMORY = 1 << 28  # bytes of one block of similarities, where all are needed
_ROWS, _STRETCH = 1024, 4096  # sides of a block, where the first ones in a band are looked for
_SAMPLE = 8192  # of a keyword's similarities, to guess a quantile
_ROUNDING = np.float32(2e-6)  # of a cosine
_SHOWN = 20_000  # keywords from which on a bar shows the progress
_CONTEXTS = 1000


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
    for start in range(0, len(table), _ROWS):  # in place: half a million keywords take 2 GB
        block = table[start : start + _ROWS]
        with np.errstate(divide="ignore", invalid="ignore"):
            information = np.log(block / total / (by_row[start : start + _ROWS] * by_column))
        block[:] = np.where(block > 0, np.maximum(information, 0), 0)
    return table


def similar_keywords(
    embeddings: np.ndarray,
    keywords: Sequence[Keyword],
    *,
    band: tuple[float, float],
    quantile: bool,
    number: int = 32,
    seed: int = 0,
    device: str = "cpu",
    sample: int = 0,
) -> np.ndarray:
    """
    For every keyword some of its category whose cosine similarity to it lies in a band, drawn at random from all that
    do.

    The seed puts the keywords of a category in a circle, and each keyword gets the first ones behind it that lie in
    its band. That is a fair draw, and where the band holds many it is over before most of them were compared.
    Quantiles need all N x N similarities, or those to a sample. Memory holds two copies of the embeddings and besides
    about 400 MB, however many keywords there are. What a keyword gets depends on the seed and the words, not on the
    blocks.

    Measured on two CPU cores that others used too, in 512 dimensions: 50,000 keywords took 6 s where bands held one
    keyword in twenty, 131 s where they held none, and 49 s by quantiles. 500,000 keywords took 2.4 GB at the peak
    besides the embeddings that were given; going by their first blocks, 7 minutes are needed for such bands, 10 more
    for quantiles of a sample of 20,000, and 4 hours more for exact ones: take a sample or a GPU for those.

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
        sample (`int`, *optional*, defaults to 0):
            Quantiles are those of the similarities to so many others, drawn at random, instead of to all. A quantile q
            is off by about `sqrt(q * (1 - q) / sample)` then: 0.95 by 0.0015 with 20,000.

    Returns:
        `np.ndarray` of shape `(N, number)`, int32: numbers of keywords, -1 where there are fewer.

    Raises:
        ValueError: the band is empty, embeddings are not finite, or `sample` is too small.
    """
    low, high = band
    if not low < high or (quantile and not 0 <= low < high <= 1):
        kind = "quantiles in [0, 1]" if quantile else "cosines"
        raise ValueError(f"The similarity band must be two {kind}, the smaller one first, but is {low} to {high}.")
    if not np.isfinite(embeddings).all():
        raise ValueError("The embeddings of the keywords are not finite. Check the text encoder.")
    if sample < 0 or sample == 1:
        raise ValueError(f"`sample` must be 0, for all keywords, or at least 2, got {sample}.")
    table = torch.nn.functional.normalize(torch.from_numpy(np.asarray(embeddings, np.float32)).to(device), dim=-1)
    total = len(keywords)
    order = np.argsort(_keys(keywords, seed), kind="stable")
    bounds = np.tile(np.asarray(band, dtype=np.float32), (total, 1))
    if quantile and total > 1:
        # A quantile is one of the similarities, which another block rounds differently.
        bounds = _quantiles(table, order, low, high, sample=min(sample or total, total)) + (-_ROUNDING, _ROUNDING)
    circles: dict[str | None, list[int]] = {}
    for place in order.tolist():
        circles.setdefault(category(keywords[place].noun), []).append(place)
    found = np.full((total, number), -1, dtype=np.int32)
    with tqdm(total=total, desc="Choosing keywords", unit="keyword", disable=total < _SHOWN, leave=False) as bar:
        for circle in circles.values():
            _fill(found, table, keywords, np.asarray(circle), bounds=bounds, bar=bar)
    return found


def _fill(
    found: np.ndarray,
    table: torch.Tensor,
    keywords: Sequence[Keyword],
    circle: np.ndarray,
    *,
    bounds: np.ndarray,
    bar: tqdm,
) -> None:
    """
    Fills the rows of one category: each keyword gets the first ones behind it in the circle that lie in its band.

    Keywords are taken in blocks that begin side by side and compared with one stretch of the circle after the other; a
    row that is full leaves its block.
    """
    size, most = len(circle), found.shape[1]
    near = table[torch.from_numpy(circle).to(table.device)]
    limits = torch.from_numpy(bounds[circle]).to(table.device)
    words = [frozenset(keywords[place].noun.split()) for place in circle]
    glued = [keywords[place].noun.replace(" ", "").replace("-", "") for place in circle]
    for start in range(0, size, _ROWS):
        rows = np.arange(start, min(start + _ROWS, size))
        chosen: list[list[int]] = [[] for _ in rows]
        begin, end = start + 1, start + len(rows) + size - 1  # places behind the circle's end are those at its start
        stretch = _STRETCH // 8
        while begin < end and len(rows):
            first = begin % size
            stop = min(begin + stretch, end, begin + size - first)
            stretch = min(2 * stretch, _STRETCH)  # where the band holds many, few are enough
            own = torch.from_numpy(rows).to(near.device)
            lines, columns = _inside(near[own] @ near[first : first + stop - begin].T, limits[own])
            distance = columns + begin - rows[lines]
            fit = (distance > 0) & (distance < size)  # neither itself nor what comes round again
            edges = np.searchsorted(lines[fit], np.arange(len(rows) + 1)).tolist()
            others = (columns[fit] + first).tolist()
            for number, row in enumerate(rows.tolist()):
                mine = chosen[row - start]
                for other in others[edges[number] : edges[number + 1]]:
                    if not _same_thing(words[other], words[row]) and not _same_word(glued[other], glued[row]):
                        mine.append(other)
                        if len(mine) == most:
                            break
            rows = rows[[len(chosen[row - start]) < most for row in rows]]
            begin = stop
        for row, others in enumerate(chosen, start=start):
            found[circle[row], : len(others)] = circle[others]
        bar.update(len(chosen))


def _inside(block: torch.Tensor, limits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where similarities lie between their row's limits: rows and columns, row by row from left to right."""
    if block.is_cuda:
        return tuple(((block >= limits[:, :1]) & (block <= limits[:, 1:])).nonzero().cpu().numpy().T)
    # On a CPU torch takes three times as long for these three passes.
    values, limits = block.numpy(), limits.numpy()
    inside = (values >= limits[:, :1]) & (values <= limits[:, 1:])
    return np.divmod(np.flatnonzero(inside), values.shape[1])


def _same_thing(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether one noun says all that the other does: `dog` and `black dog`."""
    return one <= other or other <= one


def _same_word(one: str, other: str) -> bool:
    """Whether two words differ in a blank, or as `frisbe` and `frisbee` do."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) > 5 and len(long) == len(short) + 1 and long.startswith(short))


def _quantiles(table: torch.Tensor, order: np.ndarray, low: float, high: float, *, sample: int) -> np.ndarray:
    """
    For each row of unit vectors the cosines at two quantiles of the others, itself left out: `(N, 2)`.

    The others are the first `sample` in `order`, a permutation: with all N of them, the quantiles are exact.
    """
    total = len(table)
    places = torch.from_numpy(order).to(table.device)
    others = table[places[:sample]]
    found = np.empty((total, 2), dtype=np.float32)
    size = max(1, min(total, _MEMORY // (4 * sample)))
    starts = [*range(0, sample, size), *range(sample, total, size)]
    for start in tqdm(starts, desc="Comparing keywords", unit="block", disable=len(starts) < 4, leave=False):
        rows = places[start : min(start + size, sample if start < sample else total)]
        block = table[rows] @ others.T
        known = int(start < sample)  # whether these are among the others, where each itself then has rank 0
        if known:
            block.diagonal(start).fill_(-math.inf)
        last = sample - 1 - known  # the last rank, counted from 0, without the word itself
        ranks = (known + math.floor(low * last), known + math.ceil(high * last))
        if block.is_cuda:
            # `torch.quantile` refuses large tensors.
            pair = [block.kthvalue(rank + 1, dim=-1).values for rank in ranks]
            found[order[start : start + len(rows)]] = torch.stack(pair, dim=-1).cpu().numpy()
        else:
            for place, row in zip(rows.tolist(), block.numpy(), strict=True):
                found[place] = _at_ranks(row, ranks)
    return found


def _at_ranks(values: np.ndarray, ranks: tuple[int, int]) -> np.ndarray:
    """
    The values at two ranks, counted from 0, the lower one first.

    A sample says from which value on to look, so that all but a few per cent are dropped at once where the ranks are
    high. Of 500,000 values, at quantiles 0.95 and 0.998, this takes a fifteenth of the time of `torch.kthvalue`.
    """
    total, sample = len(values), values[:: max(1, len(values) // _SAMPLE)]
    share = ranks[0] / total
    # Six standard deviations below the sample's own quantile: in some rows of 500 million the sample misleads.
    rank = math.floor(share * len(sample) - 6 * math.sqrt(len(sample) * share * (1 - share))) - 1
    if rank > 0:
        upper = values[values >= np.partition(sample, rank)[rank]]
        missing = total - len(upper)
        if missing <= ranks[0]:
            places = [rank - missing for rank in ranks]
            return np.partition(upper, places)[places]
    return np.partition(values, ranks)[list(ranks)]


def _keys(keywords: Sequence[Keyword], seed: int) -> np.ndarray:
    digests = (hashlib.blake2b(f"{seed} {one.noun}".encode(), digest_size=8).digest() for one in keywords)
    return np.fromiter((int.from_bytes(digest, "big") >> 1 for digest in digests), np.int64, len(keywords))


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
