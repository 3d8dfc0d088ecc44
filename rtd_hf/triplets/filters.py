"""Triplets that a training is better off without: empty, unchanged, too long, repeated, unfit, seen in a benchmark."""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..texts import text_id
from .columns import TRIPLET_COLUMNS
from .contamination import BenchmarkTexts
from .faults import text_fault


_HASHES, _BANDS = 32, 8  # of a signature; four equal ones in a row make two texts comparable
_PRIME = (1 << 31) - 1


def plain(text: str) -> str:
    """The words of a text alone, in lower case."""
    return " ".join(re.findall(r"\w+", text.lower()))


@dataclass
class FilterOptions:
    """What is left out."""

    longest_text: int = field(default=60, metadata={"help": "Texts with more words are left out."})
    longest_tokens: int = field(default=77, metadata={"help": "Texts with more tokens, where a tokenizer is at hand."})
    near_duplicates: float = field(
        default=0.0,
        metadata={"help": "Leave out triplets that share this share of their word pairs with one before, as 0.9."},
    )
    keep_unsafe: bool = field(default=False, metadata={"help": "Keep triplets with unsafe words."})
    benchmark_texts: list[str] = field(
        default_factory=list,
        metadata={"help": "Annotation files or folders of benchmarks: triplets with their texts are counted."},
    )
    drop_contaminated: bool = field(default=False, metadata={"help": "Leave them out, too."})

    def __post_init__(self):
        if not 0 <= self.near_duplicates <= 1:
            raise ValueError(f"`near_duplicates` must be a share in [0, 1], got {self.near_duplicates}.")
        for name in ("longest_text", "longest_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


class TripletFilter:
    """
    Says of one triplet after the other why it is left out; it remembers those it kept.

    Args:
        options ([`FilterOptions`], *optional*): What is left out.
        count_tokens (`Callable[[str], int]`, *optional*): Tokens of a text with BOS and EOS, for `longest_tokens`.

    Attributes:
        dropped (`Counter[str]`): Rows left out, by reason.
        contaminated (`Counter[str]`): Rows that hold a benchmark's text, by its file, left out or not.
        examples (`dict[str, dict]`): For each reason the first such row.
    """

    def __init__(self, options: FilterOptions | None = None, *, count_tokens: Callable[[str], int] | None = None):
        self.options = FilterOptions() if options is None else options
        self.count_tokens = count_tokens
        self.dropped: Counter[str] = Counter()
        self.contaminated: Counter[str] = Counter()
        self.examples: dict[str, dict[str, Any]] = {}
        self._seen = SeenIds()
        self._near = NearDuplicates(self.options.near_duplicates) if self.options.near_duplicates else None
        self._benchmarks = BenchmarkTexts(self.options.benchmark_texts) if self.options.benchmark_texts else None

    def apply(self, rows: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], Counter[str]]:
        """The rows that stay, and the others counted by reason."""
        kept, dropped = [], Counter()
        for row in rows:
            reason = self.reason(row)
            if reason is None:
                kept.append(row)
            else:
                dropped[reason] += 1
        return kept, dropped

    def remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Takes rows for kept, such as those of an earlier part of the run."""
        for row in rows:
            self.reason(row)

    def reason(self, row: Mapping[str, Any]) -> str | None:
        """
        Why a triplet is left out.

        Args:
            row (`Mapping[str, Any]`): With the three columns; further ones are ignored.

        Returns:
            `str`, *optional*: `"reference: empty"` and the like (see [`text_fault`]; `"too many tokens"`),
            `"identical"` where reference and target say the same, `"duplicate"`, `"near duplicate"`,
            `"contaminated"`; `None` where it stays.
        """
        found = self._reason(row)
        if found is not None:
            self.dropped[found] += 1
            self.examples.setdefault(found, dict(row))
        return found

    def _reason(self, row: Mapping[str, Any]) -> str | None:
        texts = [row.get(column) for column in TRIPLET_COLUMNS]
        for column, text in zip(TRIPLET_COLUMNS, texts, strict=True):
            name = column.removesuffix("_caption")
            fault = text_fault(text, max_words=self.options.longest_text, unsafe=not self.options.keep_unsafe)
            if fault:
                return f"{name}: {fault}"
            if self.count_tokens and self.count_tokens(text) > self.options.longest_tokens:
                return f"{name}: too many tokens"
        words = [plain(text) for text in texts]
        if words[0] == words[2]:
            return "identical"
        if self._benchmarks:
            source = next(filter(None, map(self._benchmarks.find, texts)), None)
            if source:
                self.contaminated[source] += 1
                self.examples.setdefault(f"contaminated: {source}", dict(row))
                if self.options.drop_contaminated:
                    return "contaminated"
        if not self._seen.add(text_id("\n".join(words))):
            return "duplicate"
        if self._near and not self._near.add(words):
            return "near duplicate"
        return None


class SeenIds:
    """A set of 63-bit numbers that takes 8 bytes each, where a `set` takes 60: sorted runs, merged as they grow."""

    def __init__(self):
        self._runs: list[np.ndarray] = []
        self._new: set[int] = set()

    def __len__(self) -> int:
        return len(self._new) + sum(map(len, self._runs))

    def __contains__(self, number: int) -> bool:
        if number in self._new:
            return True
        for run in self._runs:
            place = int(np.searchsorted(run, number))
            if place < len(run) and run[place] == number:
                return True
        return False

    def add(self, number: int) -> bool:
        """Adds a number; `False` where it was there."""
        if number in self:
            return False
        self._new.add(number)
        if len(self._new) >= 100_000:
            run = np.sort(np.fromiter(self._new, np.int64, len(self._new)))
            self._new = set()
            while self._runs and len(self._runs[-1]) <= 2 * len(run):
                run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
            self._runs.append(run)
        return True


class NearDuplicates:
    """
    Triplets told apart by their word pairs: MinHash signatures (Broder, 1997), compared where a band of them is equal.

    Args:
        threshold (`float`): Share of equal hashes, which estimates the Jaccard similarity, from which on two are near.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        rng = np.random.default_rng(20)
        self._factors = rng.integers(1, _PRIME, (_HASHES, 1), dtype=np.int64)
        self._offsets = rng.integers(0, _PRIME, (_HASHES, 1), dtype=np.int64)
        self._bands: dict[bytes, list[int]] = {}
        self._signatures: list[np.ndarray] = []

    def signature(self, texts: Sequence[str]) -> np.ndarray:
        """32 numbers of which two triplets share as large a part as of their word pairs."""
        pairs = set()
        for place, text in enumerate(texts):
            words = ["", *text.split(), ""]
            pairs |= {f"{place} {one} {two}" for one, two in zip(words, words[1:], strict=False)}
        hashes = np.fromiter((zlib.crc32(pair.encode()) % _PRIME for pair in pairs), np.int64, len(pairs))
        return ((hashes[None] * self._factors + self._offsets) % _PRIME).min(1).astype(np.int32)

    def add(self, texts: Sequence[str]) -> bool:
        """Adds a triplet; `False` where one that is there is near."""
        signature = self.signature(texts)
        size = _HASHES // _BANDS
        bands = [bytes([band]) + signature[band * size : (band + 1) * size].tobytes() for band in range(_BANDS)]
        for other in {number for band in bands for number in self._bands.get(band, ())}:
            if (self._signatures[other] == signature).mean() >= self.threshold:
                return False
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._signatures))
        self._signatures.append(signature)
        return True
