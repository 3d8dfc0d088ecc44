"""The pictures that are searched: their embeddings with names, on disk and in memory, exactly or by neighbours."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..files import whole_file
from ..similarity import check_k, top_k
from .galleries import check_ids
from .neighbours import NEIGHBOURS, Neighbours


FORMAT = "rtd_hf image index 1"
_ABOUT, _EMBEDDINGS, _IDS = "index.json", "embeddings.npy", "ids.json"
_ROWS_AT_ONCE = 65536
_CANDIDATES = 10  # of approximate neighbours are scored exactly for each picture that is asked for


class Hit(NamedTuple):
    """
    A picture that was found.

    Args:
        id (`str`): Its id in the index.
        score (`float`): Cosine of query and picture.
    """

    id: str
    score: float


class ImageIndex:
    """
    Image embeddings with their ids, to be searched, added to, and kept.

    Scores are exact whatever the kind: approximate neighbours only propose the candidates.

    Args:
        embeddings (`np.ndarray` or `torch.Tensor` of shape `(N, D)`):
            Image embeddings of the original CLIP (RTD leaves the image tower alone); they are normalised.
        ids (`Sequence[str]`): A different one for each.
        encoder (`Mapping[str, str]`, *optional*):
            What the embeddings depend on besides the pictures: `weights`, `architecture`, `preprocessing`, and what is
            to be read by people, such as `model` and `revision`. None where it is not known.
        kind (`str`, *optional*, defaults to `"exact"`):
            `"exact"` multiplies all (PyTorch); `"flat"`, `"hnsw"` and `"ivf_pq"` are FAISS's (`pip install
            faiss-cpu`): all again, a graph (fast, adds at any time), and compressed lists (a 48th of the memory).
        normalized (`bool`, *optional*, defaults to `False`): They are already; checked, and not copied.

    Raises:
        ValueError: Shapes that do not fit, no pictures, an id twice, values that are not finite, or no such kind.
        ImportError: `kind` needs FAISS, which is not installed.
    """

    def __init__(
        self,
        embeddings: np.ndarray | torch.Tensor,
        ids: Sequence[str],
        *,
        encoder: Mapping[str, str] | None = None,
        kind: str = "exact",
        normalized: bool = False,
    ):
        self.embeddings = _checked(embeddings, normalized=normalized)
        self.ids = _checked_ids(ids, len(self.embeddings))
        self.encoder = None if encoder is None else dict(encoder)
        self.kind = kind
        self.neighbours = None if kind == "exact" else Neighbours.build(kind, self.embeddings)
        self._places: dict[str, int] | None = None
        self._verified = True

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ImageIndex({len(self):,} pictures, {self.embeddings.shape[1]} dimensions, {self.kind})"

    def __contains__(self, name: str) -> bool:
        return name in self._positions

    @property
    def _positions(self) -> dict[str, int]:
        if self._places is None:  # most searches need none
            self._places = {name: place for place, name in enumerate(self.ids)}
        return self._places

    def positions(self, ids: Sequence[str]) -> list[int]:
        """
        Rows of pictures in `embeddings`.

        Args:
            ids (`Sequence[str]`): Pictures of the index.

        Returns:
            `list[int]`

        Raises:
            TypeError: `ids` is one id.
            KeyError: A picture is not in the index; the message names it.
        """
        check_ids(ids, "ids")
        missing = [name for name in ids if name not in self._positions]
        if missing:
            raise KeyError(
                f"{len(missing)} of {len(ids)} pictures are not in the index, first {missing[0]!r}. Its ids are as "
                f"{self.ids[0]!r}."
            )
        return [self._positions[name] for name in ids]

    # Change

    def add(self, embeddings: np.ndarray | torch.Tensor, ids: Sequence[str], *, normalized: bool = False) -> None:
        """
        Adds pictures. The embeddings are copied once, so add many at a time.

        Args:
            embeddings (`np.ndarray` or `torch.Tensor` of shape `(M, D)`): Their embeddings.
            ids (`Sequence[str]`): Their ids, none of which is there yet.
            normalized (`bool`, *optional*, defaults to `False`): As for [`ImageIndex`].

        Raises:
            ValueError: As for [`ImageIndex`], or an id is there; nothing is added then.
        """
        new = _checked(embeddings, normalized=normalized)
        if new.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"`embeddings` must be {self.embeddings.shape[1]} wide like those of the index, got {new.shape[1]}. "
                f"They are of another CLIP."
            )
        names = _checked_ids(ids, len(new))
        there = [name for name in names if name in self._positions]
        if there:
            raise ValueError(
                f"`ids` must be new, but {len(there)} of {len(names)} are in the index, first {there[0]!r}. Remove "
                f"them first to take other embeddings."
            )
        if self.neighbours is not None:
            self.neighbours.add(new)
        self.embeddings = np.concatenate([self.embeddings, new])
        self.ids = [*self.ids, *names]
        self._places = None

    def remove(self, ids: Sequence[str]) -> None:
        """
        Removes pictures.

        Args:
            ids (`Sequence[str]`): Pictures of the index.

        Raises:
            KeyError: A picture is not in the index; nothing is removed then.
            ValueError: No picture would be left.
        """
        rows = sorted(set(self.positions(ids)))
        if len(rows) == len(self):
            raise ValueError(f"All {len(self)} pictures would be removed, and an index holds one at least.")
        if self.neighbours is not None:
            self.neighbours.remove(rows, self.embeddings)
        self.embeddings = np.delete(self.embeddings, rows, axis=0)
        gone = set(rows)
        self.ids = [name for place, name in enumerate(self.ids) if place not in gone]
        self._places = None

    # Search

    def search(
        self,
        queries: np.ndarray | torch.Tensor,
        k: int = 10,
        *,
        exclude: Sequence[Sequence[str]] | None = None,
    ) -> list[list[Hit]]:
        """
        The best pictures of each query, best first; of equals the one that was added first.

        Args:
            queries (`np.ndarray` or `torch.Tensor` of shape `(Q, D)`): Composed queries.
            k (`int`, *optional*, defaults to 10): How many; all, where the index has no more.
            exclude (`Sequence[Sequence[str]]`, *optional*): For each query the pictures that it must not find.

        Returns:
            `list[list[Hit]]`: For each query up to `k` pictures; fewer than `k` only where there are no more.

        Raises:
            ValueError: Queries of another width, not finite, or `k` below 1.
            KeyError: `exclude` names a picture that is not in the index.
        """
        lists = zip(*self.rank(queries, k, exclude=exclude), strict=True)
        return [[Hit(self.ids[row], score) for row, score in zip(*pair, strict=True)] for pair in lists]

    def rank(
        self,
        queries: np.ndarray | torch.Tensor,
        k: int = 10,
        *,
        exclude: Sequence[Sequence[str]] | None = None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """
        [`~ImageIndex.search`] in numbers: rows of `embeddings`, and scores.

        Args:
            queries, k, exclude: As for [`~ImageIndex.search`].

        Returns:
            `tuple[list[list[int]], list[list[float]]]`

        Raises:
            ValueError, KeyError: As [`~ImageIndex.search`].
        """
        check_k(k)
        queries = torch.as_tensor(np.asarray(queries, dtype=np.float32))
        gallery = _as_tensor(self.embeddings)
        if queries.dim() != 2 or queries.shape[1] != gallery.shape[1]:
            raise ValueError(
                f"`queries` must be of shape (Q, {gallery.shape[1]}), got {tuple(queries.shape)}. Queries and index "
                f"must come from the same CLIP."
            )
        hidden = self._hidden(exclude, len(queries))
        most = 0 if hidden is None else int((hidden >= 0).sum(1).max())
        length = min(k, len(self) - most)
        if length < 1:
            return [[] for _ in queries], [[] for _ in queries]
        candidates = None
        if self.neighbours is not None:
            wanted = min(len(self), max(_CANDIDATES * length, 100) + most)
            candidates = torch.from_numpy(self.neighbours.search(queries.numpy(), wanted))
            enough = ((candidates >= 0).sum(1) - most >= length).all()
            candidates = candidates if enough else None  # a graph may reach too few: then all are looked at
        if candidates is None and not self._verified:
            _checked(self.embeddings, normalized=True)
            self._verified = True
        unit = torch.ones(len(self))
        found = top_k(queries, gallery, length, exclude=hidden, candidates=candidates, gallery_norms=unit)
        return found.indices.tolist(), found.scores.tolist()

    def _hidden(self, exclude: Sequence[Sequence[str]] | None, queries: int) -> torch.Tensor | None:
        if exclude is None:
            return None
        if len(exclude) != queries:
            raise ValueError(f"`exclude` must hold one list for each of {queries} queries, got {len(exclude)}.")
        rows = [self.positions(names) for names in exclude]
        width = max((len(row) for row in rows), default=0)
        return torch.tensor([row + [-1] * (width - len(row)) for row in rows]) if width else None

    # Files

    def save(self, folder: str | os.PathLike) -> None:
        """
        Writes the index: `embeddings.npy`, `ids.json`, FAISS's own file, and `index.json`, last.

        Args:
            folder (`str` or `os.PathLike`): Made where it is missing; an index in it is replaced.

        Raises:
            OSError: It cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _ABOUT).unlink(missing_ok=True)  # from here to the end there is no index
        with whole_file(folder / _EMBEDDINGS) as file, file.open("wb") as stream:
            np.save(stream, self.embeddings)
        with whole_file(folder / _IDS) as file:
            file.write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")
        if self.neighbours is not None:
            self.neighbours.save(folder)
        about = {
            "format": FORMAT,
            "pictures": len(self),
            "dimensions": int(self.embeddings.shape[1]),
            "kind": self.kind,
            "encoder": self.encoder,
        }
        with whole_file(folder / _ABOUT) as file:
            file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike, *, in_memory: bool = False) -> "ImageIndex":
        """
        Reads what [`~ImageIndex.save`] wrote. Nothing in the files is executed.

        Args:
            folder (`str` or `os.PathLike`): The folder.
            in_memory (`bool`, *optional*, defaults to `False`):
                Read the embeddings now; by default they are mapped, and read as they are searched.

        Returns:
            [`ImageIndex`]

        Raises:
            FileNotFoundError: There is no index.
            ValueError: A file is damaged, is something else, or does not belong to the others.
            ImportError: It needs FAISS, which is not installed.
        """
        folder = Path(folder)
        about = _read_json(folder, _ABOUT, dict)
        if about.get("format") != FORMAT or about.get("kind") not in ("exact", *NEIGHBOURS):
            raise ValueError(
                f"`{folder / _ABOUT}` is no index of this version: `format` is {about.get('format')!r} (wanted: "
                f"{FORMAT!r}), `kind` is {about.get('kind')!r}. Make the index again."
            )
        try:
            embeddings = np.load(folder / _EMBEDDINGS, mmap_mode=None if in_memory else "r", allow_pickle=False)
        except Exception as error:  # numpy reads a header as Python's own text
            raise ValueError(f"`{folder / _EMBEDDINGS}` is damaged or missing ({error}). Make it again.") from error
        ids = _read_json(folder, _IDS, list)
        shape = (about.get("pictures"), about.get("dimensions"))
        if embeddings.dtype != np.float32 or embeddings.shape != shape or len(ids) != len(embeddings):
            raise ValueError(
                f"The files in `{folder}` do not belong together: `{_ABOUT}` tells of {shape}, `{_EMBEDDINGS}` holds "
                f"{embeddings.shape} of {embeddings.dtype}, `{_IDS}` {len(ids)} ids. Make the index again."
            )
        index = cls.__new__(cls)
        try:
            index.embeddings, index.ids = embeddings, _checked_ids(ids, len(ids))
        except ValueError as error:
            raise ValueError(f"`{folder / _IDS}` is damaged: {error} Make the index again.") from error
        index.encoder, index.kind, index._places = about.get("encoder"), about["kind"], None
        if not isinstance(index.encoder, (dict, type(None))):
            raise ValueError(f"`{folder / _ABOUT}` is damaged: `encoder` is {index.encoder!r}. Make the index again.")
        index._verified = False  # the first search that reads all of them looks
        exact = index.kind == "exact"
        index.neighbours = None if exact else Neighbours.load(index.kind, folder, shape=embeddings.shape)
        return index


def _as_tensor(embeddings: np.ndarray) -> torch.Tensor:
    """A view: mapped files are read-only, of which PyTorch warns although nothing writes here."""
    if embeddings.flags.writeable:
        return torch.from_numpy(embeddings)
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(embeddings)


def _checked(embeddings: Any, *, normalized: bool) -> np.ndarray:
    """Embeddings as normalised float32 of shape `(N, D)`."""
    if isinstance(embeddings, torch.Tensor):
        embeddings = embeddings.detach().cpu().float().numpy()
    array = np.asarray(embeddings)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind != "f":
        raise ValueError(
            f"`embeddings` must be floating point numbers of shape (N, D), at least one row, got {array.dtype} of "
            f"shape {array.shape}."
        )
    array = array.astype(np.float32, copy=False)
    out = array if normalized else np.empty_like(array)
    for first in range(0, len(array), _ROWS_AT_ONCE):
        block = array[first : first + _ROWS_AT_ONCE]
        norms = np.linalg.norm(block, axis=1)
        wrong = ~np.isfinite(norms) | (norms < 1e-12) | (normalized & (np.abs(norms - 1) > 1e-3))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"`embeddings` must be finite and not zero{', of length 1' if normalized else ''}, but row "
                f"{first + row} has the length {norms[row]:g} ({int(wrong.sum())} such rows in a block of "
                f"{len(block)})."
            )
        if not normalized:
            np.divide(block, norms[:, None], out=out[first : first + _ROWS_AT_ONCE])
    return out


def _checked_ids(ids: Sequence[str], number: int) -> list[str]:
    if isinstance(ids, str) or not all(isinstance(name, str) for name in ids):
        other = ids if isinstance(ids, str) else next(name for name in ids if not isinstance(name, str))
        raise ValueError(f"`ids` must be a list of strings, one for each picture, got {other!r}.")
    names = list(ids)
    if len(names) != number:
        raise ValueError(f"`ids` must hold one id for each of {number} embeddings, got {len(names)}.")
    if len(set(names)) < number:
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise ValueError(f"`ids` must be different, but {twice!r} comes twice.")
    return names


def _read_json(folder: Path, name: str, kind: type) -> Any:
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no index in `{folder}` (`{name}` is missing). `ImageIndex.save` writes one."
        ) from error
    except (ValueError, RecursionError) as error:  # also undecodable text
        raise ValueError(f"`{folder / name}` is damaged ({error}). Make the index again.") from error
    if not isinstance(values, kind):
        raise ValueError(f"`{folder / name}` must hold a {kind.__name__}, got {type(values).__name__}.")
    return values
