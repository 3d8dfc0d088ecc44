"""A corpus counted: its captions tagged, by several processes if wanted."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

from tqdm.auto import tqdm

from ...texts import clean_caption
from ..faults import text_fault
from ..processes import mapped
from .vocabulary import Counts, count_captions


_AT_ONCE = 2000  # captions


def count_corpus(captions: Iterable[str | None], *, tagger: str = "auto", most: int = 0, workers: int = 1) -> Counts:
    """
    Tags the captions of a corpus and counts their words and nouns.

    Memory holds the counts, which grow with the different words and their neighbours, and a few thousand captions.

    Args:
        captions (`Iterable[str | None]`): As they stand in the data. Unfit ones ([`text_fault`]) are passed over.
        tagger (`str`, *optional*, defaults to `"auto"`): See [`tag`].
        most (`int`, *optional*, defaults to 0): Only the first so many that are fit; 0 is all of them.
        workers (`int`, *optional*, defaults to 1): Processes. The counts are the same, in the same order.

    Returns:
        `Counts`.
    """
    fit = (clean_caption(caption) for caption in captions if text_fault(caption) is None)
    batches = _batches(islice(fit, most or None))
    counts = Counts()
    with (
        mapped(partial(count_captions, tagger=tagger), workers) as counted,
        tqdm(desc="Tagging captions", unit="caption", leave=False) as bar,
    ):
        for part in counted(batches):
            counts.add(part)
            bar.update(part.captions)
    return counts


def _batches(captions: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(captions, _AT_ONCE)):
        yield batch
