"""Approximate neighbours by FAISS, which propose candidates for an exact score; an extra: `pip install faiss-cpu`."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import whole_file


NEIGHBOURS = ("flat", "hnsw", "ivf_pq")
_FILE, _KEYS = "neighbours.faiss", "neighbours.npy"
_ROWS_AT_ONCE = 65536
_GRAPH_LINKS, _GRAPH_WIDTH_BUILT, _GRAPH_WIDTH = 32, 100, 128
_CODE_DIMENSIONS = 12  # of an embedding that share a byte: 4 bytes each, so a 48th
_TRAINED_ON, _LEAST_FOR_LISTS = 256 * 1024, 39 * 256  # FAISS asks for 39 points for each of the 256 codes
_REBUILT_ABOVE = 0.2  # of all that FAISS holds having been removed


class Neighbours:
    """
    FAISS's structure over the rows of an index. FAISS holds each row under a key that never changes, since its graphs
    forget nothing: what was removed is passed over, and left out when the structure is built anew.

    Args:
        kind (`str`): Of `NEIGHBOURS`.
        structure (`faiss.Index`): Holds the rows as they were added.
        keys (`np.ndarray` of shape `(N,)`): For each row of the index the number under which FAISS has it, ascending.
    """

    def __init__(self, kind: str, structure, keys: np.ndarray):
        self.kind, self.structure, self.keys = kind, structure, keys

    @classmethod
    def build(cls, kind: str, embeddings: np.ndarray) -> "Neighbours":
        """
        Makes the structure.

        Args:
            kind (`str`): Of `NEIGHBOURS`.
            embeddings (`np.ndarray` of shape `(N, D)`): Normalised, float32.

        Raises:
            ValueError: There is no such kind, or `ivf_pq` gets too few pictures to learn its codes from.
            ImportError: FAISS is not installed.
        """
        if kind not in NEIGHBOURS:
            raise ValueError(f"`kind` must be `exact`, {', '.join(f'`{name}`' for name in NEIGHBOURS)}, got {kind!r}.")
        structure = _structure(kind, embeddings)
        found = cls(kind, structure, np.empty(0, dtype=np.int64))
        found.add(embeddings)
        return found

    def add(self, embeddings: np.ndarray) -> None:
        """Adds rows `(M, D)`, normalised."""
        first = self.structure.ntotal
        for start in range(0, len(embeddings), _ROWS_AT_ONCE):
            self.structure.add(np.ascontiguousarray(embeddings[start : start + _ROWS_AT_ONCE]))
        self.keys = np.concatenate([self.keys, np.arange(first, first + len(embeddings), dtype=np.int64)])

    def remove(self, rows: Sequence[int], embeddings: np.ndarray) -> None:
        """Removes rows; `embeddings` are those of the index with them, for a structure that has to be built anew."""
        self.keys = np.delete(self.keys, rows)
        if len(self.keys) < (1 - _REBUILT_ABOVE) * self.structure.ntotal:
            self._rebuild(np.delete(embeddings, rows, axis=0))

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """
        Rows that are probably the nearest.

        Args:
            queries (`np.ndarray` of shape `(Q, D)`): float32.
            k (`int`): How many for each.

        Returns:
            `np.ndarray` of shape `(Q, k)`, int64: Rows of the index, in no order; -1 where fewer were reached.
        """
        removed = self.structure.ntotal - len(self.keys)
        wanted = min(self.structure.ntotal, k + min(removed, 4 * k))
        if self.kind == "hnsw":
            self.structure.hnsw.efSearch = max(_GRAPH_WIDTH, 2 * wanted)
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        _, keys = self.structure.search(np.ascontiguousarray(queries / np.maximum(lengths, 1e-12)), wanted)
        rows = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        rows[self.keys[rows] != keys] = -1
        order = np.argsort(rows < 0, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(rows, order, axis=1).astype(np.int64)

    def save(self, folder: Path) -> None:
        """Writes the structure, and the keys."""
        with whole_file(folder / _FILE) as file:
            _faiss().write_index(self.structure, str(file))
        with whole_file(folder / _KEYS) as file, file.open("wb") as stream:
            np.save(stream, self.keys)

    def _rebuild(self, embeddings: np.ndarray) -> None:
        rebuilt = Neighbours.build(self.kind, embeddings)
        self.structure, self.keys = rebuilt.structure, rebuilt.keys

    @classmethod
    def load(cls, kind: str, folder: Path, *, shape: tuple[int, int]) -> "Neighbours":
        """
        Reads what [`~Neighbours.save`] wrote.

        Args:
            kind (`str`): Of `NEIGHBOURS`.
            folder (`Path`): Where the index lies.
            shape (`tuple[int, int]`): Of its embeddings.

        Raises:
            ImportError: FAISS is not installed.
            ValueError: The file is damaged or of another index.
        """
        faiss = _faiss()
        try:
            structure = faiss.read_index(str(folder / _FILE))
            keys = np.load(folder / _KEYS, allow_pickle=False)
        except Exception as error:  # FAISS's own, of memory too where a length is wrong; numpy's of a header
            raise ValueError(
                f"`{_FILE}` or `{_KEYS}` in `{folder}` is damaged or missing ({error}). Make the index again."
            ) from error
        ascending = keys.ndim == 1 and keys.dtype == np.int64 and (np.diff(keys) > 0).all()
        fits = ascending and (len(keys), structure.d) == tuple(shape)
        if not fits or not 0 <= keys[0] <= keys[-1] < structure.ntotal:
            raise ValueError(
                f"`{_FILE}` and `{_KEYS}` in `{folder}` do not belong to the index of {shape[0]} pictures of "
                f"{shape[1]} dimensions: they hold {structure.ntotal} of {structure.d}, and {len(keys)} keys. Make it "
                f"again."
            )
        return cls(kind, structure, keys)


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Approximate neighbours need FAISS: `pip install faiss-cpu`.") from error
    return faiss


def _structure(kind: str, embeddings: np.ndarray):
    """An empty structure, its codes learnt from a sample."""
    faiss = _faiss()
    number, width = embeddings.shape
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    if kind == "hnsw":
        structure = faiss.IndexHNSWFlat(width, _GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
        structure.hnsw.efConstruction = _GRAPH_WIDTH_BUILT
        return structure
    if number < _LEAST_FOR_LISTS:
        raise ValueError(
            f"`ivf_pq` learns its codes from {_LEAST_FOR_LISTS:,} pictures at least, got {number:,}. Take `exact`: it "
            f"needs milliseconds for so few."
        )
    codes = next(codes for codes in range(max(1, width // _CODE_DIMENSIONS), 0, -1) if width % codes == 0)
    lists = min(4 * math.isqrt(number), number // 39)
    structure = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, codes, 8, faiss.METRIC_INNER_PRODUCT)
    structure.nprobe = max(1, lists // 16)
    rows = np.random.default_rng(0).permutation(number)[:_TRAINED_ON]
    structure.train(np.ascontiguousarray(embeddings[np.sort(rows)]))
    return structure
