"""The files of an `AnchorStore`, parts, index and manifest: written whole or not at all, and checked when read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from transformers.utils import logging

from ..files import whole_file
from ..parsing import parse_json, read_object


logger = logging.get_logger(__name__)

FORMAT = "1"
MANIFEST = "anchors.json"
LAYOUT = (
    f"`{MANIFEST}` (what is in it), `index-*.arrow` (which caption is where) and `part-00000.arrow`, ... (the "
    f"embeddings), as `precompute_anchors` writes them"
)
_METADATA = b"rtd_hf_anchors"
_OURS = re.compile(r"(anchors\.json|(part|index)-\d{5,}\.arrow)(\.tmp)?")
_PART = re.compile(r"part-(\d{5,})\.arrow")


class Part(NamedTuple):
    """One file of embeddings, memory-mapped: `text_ids` `(rows,)` int64 and `embeds` `(rows, D)` float32."""

    file: str
    text_ids: np.ndarray
    embeds: np.ndarray
    fingerprint: dict[str, str]


class Store(NamedTuple):
    """What a folder holds: `text_ids` `(N,)` int64, sorted, `rows` `(N,)` int64 counted over all parts, the parts."""

    fingerprint: dict[str, str]
    text_ids: np.ndarray
    rows: np.ndarray
    parts: list[Part]


def part_name(number: int) -> str:
    """The file of a part: `part-00000.arrow`."""
    return f"part-{number:05d}.arrow"


def part_number(file: str) -> int:
    """The number in a part's file name."""
    return int(_PART.fullmatch(file)[1])


def part_files(folder: Path) -> list[str]:
    """The parts there are, complete ones by construction, in the order of their numbers."""
    return sorted((entry.name for entry in folder.iterdir() if _PART.fullmatch(entry.name)), key=part_number)


# Writing


def _write_arrow(path: Path, columns: Mapping[str, pa.Array], metadata: Mapping) -> None:
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    schema = pa.schema(fields, metadata={_METADATA: json.dumps(metadata, sort_keys=True)})
    with (
        whole_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        # One batch and no compression: the columns are then arrays in the mapped file.
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))


def write_part(
    folder: Path, number: int, text_ids: np.ndarray, embeds: np.ndarray, fingerprint: Mapping[str, str]
) -> None:
    """
    Writes one part.

    Args:
        folder (`Path`): The store.
        number (`int`): The number in the file's name.
        text_ids (`np.ndarray` of shape `(rows,)`, int64): See [`text_id`].
        embeds (`np.ndarray` of shape `(rows, D)`, float32): Their embeddings.
        fingerprint (`Mapping[str, str]`): What they were made with; kept in every part, so that no two are mixed.
    """
    flat = pa.array(np.ascontiguousarray(embeds).reshape(-1))
    columns = {"text_id": pa.array(text_ids), "embedding": pa.FixedSizeListArray.from_arrays(flat, embeds.shape[1])}
    _write_arrow(folder / part_name(number), columns, {"format": FORMAT, "fingerprint": dict(fingerprint)})


def write_index(folder: Path) -> None:
    """
    Writes the index over all parts, and then the manifest, with which they become the store; if there are new ones.

    The index has a name of its own for every number of parts, so that the manifest always fits the index it names.
    """
    parts = [read_part(folder, file) for file in part_files(folder)]
    if (folder / MANIFEST).is_file() and len(read_store(folder).parts) == len(parts):
        return
    text_ids, rows = np.unique(np.concatenate([part.text_ids for part in parts]), return_index=True)
    index = folder / f"index-{len(parts):05d}.arrow"
    _write_arrow(index, {"text_id": pa.array(text_ids), "row": pa.array(rows.astype(np.int64))}, {"format": FORMAT})
    manifest = {
        "format": FORMAT,
        "captions": len(text_ids),
        "dim": parts[0].embeds.shape[1],
        "fingerprint": parts[0].fingerprint,
        "index": {"file": index.name, "bytes": index.stat().st_size},
        "parts": [
            {"file": part.file, "rows": len(part.text_ids), "bytes": (folder / part.file).stat().st_size}
            for part in parts
        ],
    }
    with whole_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for entry in folder.glob("index-*.arrow"):
        if entry != index:
            entry.unlink()


# Reading


def _check_format(path: Path, found: object) -> None:
    if found != FORMAT:
        # No ValueError, which is damage, and damage may be repaired.
        raise NotImplementedError(
            f"`{path}` has format {found!r}, but this version of rtd_hf reads {FORMAT!r}. Use the version it was made "
            f"with, or make the anchors anew with `precompute_anchors(..., overwrite=True)`."
        )


def _read_arrow(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The columns of a file as arrays over its memory map, and its metadata."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = dict(parse_json(reader.schema.metadata[_METADATA]))
        batch = reader.get_batch(0)
        batch.validate()
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`{path}` is damaged or no file of anchors ({error}).") from error
    _check_format(path, metadata.get("format"))
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_fixed_size_list(column.type):
            columns[name] = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
        else:
            columns[name] = column.to_numpy(zero_copy_only=True)
    return columns, metadata


def read_part(folder: Path, file: str) -> Part:
    """
    Opens one part.

    Raises:
        ValueError: the file is damaged.
        NotImplementedError: it has the format of another version.
    """
    columns, metadata = _read_arrow(folder / file)
    return Part(file, columns["text_id"], columns["embedding"], metadata["fingerprint"])


def _check_size(folder: Path, entry: Mapping) -> None:
    if not _OURS.fullmatch(str(entry["file"])):
        raise ValueError(f"`{MANIFEST}` names {entry['file']!r}, which is no file of a store.")
    path = folder / entry["file"]
    if not path.is_file():
        raise ValueError(f"`{MANIFEST}` names `{entry['file']}`, but there is no such file.")
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(
            f"`{entry['file']}` has {path.stat().st_size} bytes, but had {entry['bytes']} when it was written."
        )


def read_store(folder: Path) -> Store:
    """
    Opens a store, and makes sure that its manifest, index and parts agree.

    Args:
        folder (`Path`): The folder of the store.

    Returns:
        `Store`: everything memory-mapped.

    Raises:
        FileNotFoundError: there is no store; the message shows the expected layout.
        ValueError: the store was not finished, or is damaged; the message says where.
        NotImplementedError: it has the format of another version.
    """
    if not folder.is_dir() or not any(_OURS.fullmatch(entry.name) for entry in folder.iterdir()):
        raise FileNotFoundError(f"There are no anchors in `{folder}`. Expected in this folder: {LAYOUT}.")
    cure = "Run `precompute_anchors` on it again with the same arguments: it keeps what is whole and makes the rest."
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"The anchors in `{folder}` are not finished: {len(part_files(folder))} parts, but no `{MANIFEST}`. {cure}"
        )
    try:
        return _read_checked(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The anchors in `{folder}` are damaged. {error} {cure}") from error


def _read_checked(folder: Path) -> Store:
    manifest = read_object(folder / MANIFEST)
    _check_format(folder / MANIFEST, manifest["format"])
    for entry in (manifest["index"], *manifest["parts"]):
        _check_size(folder, entry)
    parts = [read_part(folder, entry["file"]) for entry in manifest["parts"]]
    index, _ = _read_arrow(folder / manifest["index"]["file"])
    found = (len(index["text_id"]), [(len(part.text_ids), part.embeds.shape[1]) for part in parts])
    stated = (manifest["captions"], [(entry["rows"], manifest["dim"]) for entry in manifest["parts"]])
    if found != stated:
        raise ValueError(
            f"`{MANIFEST}` states {stated} (captions; rows and dim of parts), but the files hold {found}."
        )
    mixed = [part.file for part in parts if part.fingerprint != manifest["fingerprint"]]
    if mixed:
        raise ValueError(f"`{mixed[0]}` was made with another encoder than `{MANIFEST}` says.")
    return Store(manifest["fingerprint"], index["text_id"], index["row"], parts)


def read_parts(folder: Path) -> tuple[list[Part], dict[str, str]]:
    """The parts of a folder, also of an unfinished store, and the names of damaged ones with what is wrong."""
    parts, damaged = [], {}
    for file in part_files(folder):
        try:
            parts.append(read_part(folder, file))
        except ValueError as error:
            damaged[file] = str(error)
    return parts, damaged


# Removing


def remove_store(folder: Path) -> None:
    """Removes all files of a store, the manifest first; what else is in the folder stays."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for entry in list(folder.iterdir()):
        if _OURS.fullmatch(entry.name):
            entry.unlink()


def repair(folder: Path, damaged: Mapping[str, str]) -> None:
    """
    Removes damaged parts, what an interrupted run left half-written, and a manifest that no longer fits the parts.

    Args:
        folder (`Path`): The folder, which may hold an unfinished store or none.
        damaged (`Mapping[str, str]`): As [`read_parts`] returns them.
    """
    if (folder / MANIFEST).is_file():
        try:
            read_store(folder)
        except ValueError as error:
            logger.warning(f"{error} This is done now.")
            (folder / MANIFEST).unlink()
    for file, fault in damaged.items():
        logger.warning(f"{fault} It is removed, and its captions are embedded anew.")
        (folder / file).unlink()
    for entry in folder.glob("*.tmp"):
        if _OURS.fullmatch(entry.name):
            entry.unlink()
