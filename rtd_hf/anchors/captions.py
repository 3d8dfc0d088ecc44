"""The captions of a data set of triplets, read block by block and told apart by numbers, however many there are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..distributed import rank
from ..texts import clean_caption, text_ids_of
from ..triplets import resolve_triplet_columns, string_column


if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_AT_ONCE = 50_000


class TripletCaptions:
    """
    The captions of a data set, cleaned, as one sequence: row i's target at 2 i, its reference at 2 i + 1.

    Rows are read block by block, so that a memory-mapped data set stays on the disk.

    Args:
        triplets ([`~datasets.Dataset`] or `Sequence[Mapping]`): Rows with the columns of [`resolve_triplet_columns`].

    Raises:
        TypeError: `triplets` has no random access.
        ValueError: there are no rows, or a column is missing or holds no strings.
    """

    def __init__(self, triplets: "Dataset | Sequence[Mapping[str, Any]]"):
        from datasets import Dataset

        if not isinstance(triplets, (Dataset, list, tuple)):
            raise TypeError(
                f"`triplets` must be a `datasets.Dataset` or a list of rows, got {type(triplets).__name__}. Give one "
                f"split of a `DatasetDict`; an `IterableDataset` has to be saved and loaded as a `Dataset` first."
            )
        if len(triplets) == 0:
            raise ValueError("`triplets` holds no rows. Give at least one.")
        self._triplets = triplets
        found = resolve_triplet_columns(triplets.column_names if isinstance(triplets, Dataset) else triplets[0])
        self._columns = (found["target_caption"], found["reference_caption"])
        if not isinstance(triplets, Dataset):
            triplets = Dataset.from_dict({name: [row.get(name) for row in triplets] for name in self._columns})
        self._rows = triplets.select_columns(list(self._columns)).with_format("arrow")

    def __len__(self) -> int:
        return 2 * len(self._rows)

    def missing(self, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Reads all captions, and finds where each that is not known stands first.

        Args:
            known (`np.ndarray` of shape `(K,)`, int64): Text ids of the known ones, sorted.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: the text ids of all N distinct captions, sorted, and the places of the
            M unknown ones in order, both int64: 16 bytes for each distinct caption, however many rows there are.

        Raises:
            ValueError: captions are missing or blank; the message counts them and shows the first.
        """
        seen, positions, blank = np.empty(0, dtype=np.int64), [], []
        starts = range(0, len(self._rows), _ROWS_AT_ONCE)
        quiet = len(starts) < 4 or rank() > 0
        for start in tqdm(starts, desc="Reading captions", unit="block", disable=quiet, leave=False):
            texts = self._read(start, start + _ROWS_AT_ONCE)
            if not all(texts):
                blank.append(2 * start + np.flatnonzero([not text for text in texts]))
            text_ids, first = np.unique(text_ids_of(texts), return_index=True)
            new = ~contains(seen, text_ids)
            seen = np.insert(seen, np.searchsorted(seen, text_ids[new]), text_ids[new])
            positions.append(2 * start + np.sort(first[new & ~contains(known, text_ids)]))
        if blank:
            self._refuse(np.concatenate(blank))
        return seen, np.concatenate(positions)

    def at(self, positions: np.ndarray) -> list[str]:
        """The captions at some places, which are in order; only rows from the first to the last are read."""
        texts = []
        for start in range(positions[0] // 2, positions[-1] // 2 + 1, _ROWS_AT_ONCE):
            low, high = np.searchsorted(positions, [2 * start, 2 * (start + _ROWS_AT_ONCE)])
            if low < high:
                found = self._read(start, positions[high - 1] // 2 + 1)
                texts += [found[place] for place in positions[low:high] - 2 * start]
        return texts

    def _read(self, start: int, stop: int) -> list[str]:
        table = self._rows[int(start) : int(stop)]
        texts = [""] * (2 * len(table))
        for side, name in enumerate(self._columns):
            found = string_column(table, name).combine_chunks().to_pylist()
            texts[side::2] = [clean_caption(text or "") for text in found]
        return texts

    def _refuse(self, blank: np.ndarray) -> None:
        name = self._columns[blank[0] % 2]
        rows = blank[blank % 2 == blank[0] % 2] // 2
        raise ValueError(
            f"Column `{name}` holds no text in {len(rows)} of {len(self._rows)} rows, first in row {rows[0]}: "
            f"{self._triplets[int(rows[0])]!r}. Remove such rows, for example with "
            f"`dataset.filter(lambda row: clean_caption(row[{name!r}] or ''))`."
        )


def contains(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of `wanted` are among the sorted `ids`."""
    if len(ids) == 0:
        return np.zeros(len(wanted), dtype=bool)
    return ids[np.searchsorted(ids, wanted).clip(max=len(ids) - 1)] == wanted
