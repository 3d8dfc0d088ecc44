"""Triplets on disk: made block by block, by several processes, resumed after a kill, and written whole."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as parquet
from tqdm.auto import tqdm

from ..files import hash_bytes, whole_file
from .base import PROVENANCE, TripletGenerator
from .columns import TRIPLET_COLUMNS
from .processes import mapped


if TYPE_CHECKING:
    from .filters import TripletFilter

SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in TRIPLET_COLUMNS]
    + [pa.field(name, pa.int64() if kind is int else pa.string(), nullable=False) for name, kind in PROVENANCE.items()]
)
FORMATS = (".parquet", ".jsonl")
_SKIPPED = b"rtd_hf_skipped"
_MANIFEST = "run.json"
_BATCH = 500  # captions a process makes at once


class Made(NamedTuple):
    """What a run made: the file, its rows, and captions and rows that were left out, counted by reason."""

    path: Path
    rows: int
    captions: int
    skipped: Counter[str]


def check_output(path: str | os.PathLike) -> Path:
    """
    The output file, refused before any work where it cannot be written.

    Raises:
        ValueError: it is neither Parquet nor JSON Lines.
        FileExistsError: it exists.
        OSError: its folder cannot be written to.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"`output` {path} must end in {' or '.join(FORMATS)}.")
    if path.exists():
        raise FileExistsError(f"`output` {path} exists. Remove it, or give another name; nothing was changed.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"`output` {path} cannot be written: its folder is read-only.")
    return path


def generate_triplets(
    generator: TripletGenerator,
    captions: Iterable[str | None],
    output: str | os.PathLike,
    *,
    workers: int = 1,
    filter: "TripletFilter | None" = None,  # noqa: A002
    block_size: int = 20_000,
) -> Made:
    """
    Has triplets made of captions and writes them, in the order of the captions.

    The file depends on captions, options and seed, and neither on `workers` nor on interruptions: finished blocks of
    captions lie in `<output>.parts` until the file is complete, and a run with the same arguments goes on behind them.
    Memory holds one block, for each process the vocabulary, and 8 bytes a row for finding duplicates (about 2 kB a
    row where near ones are looked for); neither captions nor rows are kept.

    Args:
        generator ([`TripletGenerator`]): Makes the triplets.
        captions (`Iterable[str | None]`): Read twice, so no iterator: a list, [`Captions`], a column of a data set.
        output (`str` or `os.PathLike`): New file, `.parquet` or `.jsonl`.
        workers (`int`, *optional*, defaults to 1): Processes; more than one for generators that are `parallel`.
        filter ([`TripletFilter`], *optional*): Leaves rows out.
        block_size (`int`, *optional*, defaults to 20000): Captions a block.

    Returns:
        `Made`.

    Raises:
        ValueError: nothing was made, or an unfinished run with other arguments lies there.
        TypeError: `captions` can be read only once.
        FileExistsError, OSError: the file exists or cannot be written.
    """
    if iter(captions) is captions:
        raise TypeError("`captions` is read twice, so it cannot be an iterator. Give a list, or `Captions(source)`.")
    if workers < 1 or block_size < 1:
        raise ValueError(f"`workers` and `block_size` must be at least 1, got {workers} and {block_size}.")
    output = check_output(output)
    folder = _open_run(output, generator, captions, block_size=block_size, filter=filter)
    generator.prepare(captions, folder=folder, workers=workers)
    kept, number, blocks = 0, 0, 0
    skipped: Counter[str] = Counter()
    with mapped(partial(_make_batch, generator), workers if generator.parallel else 1) as made:
        for texts in tqdm(_blocks(captions, block_size), desc="Making triplets", unit="block", leave=False):
            part = folder / f"part-{blocks:06d}.parquet"
            if part.is_file():
                table, left_out = _read_part(part)
                if filter is not None:
                    filter.remember(table.to_pylist())
            else:
                rows, left_out = _make(generator, texts, number, made)
                if filter is not None:
                    rows, dropped = filter.apply(rows)
                    left_out += dropped
                table = pa.Table.from_pylist(rows, schema=SCHEMA)
                _write_part(part, table, left_out)
            skipped += left_out
            kept, number, blocks = kept + len(table), number + len(texts), blocks + 1
    if not kept:
        why = ", ".join(f"{reason}: {times}" for reason, times in skipped.most_common()) or "there are none"
        raise ValueError(f"No triplet could be made of {number} captions ({why}).")
    _merge([folder / f"part-{block:06d}.parquet" for block in range(blocks)], output)
    shutil.rmtree(folder)
    return Made(output, kept, number, skipped)


def _open_run(
    output: Path,
    generator: TripletGenerator,
    captions: Iterable[str | None],
    *,
    block_size: int,
    filter: Any,  # noqa: A002
) -> Path:
    """The folder of the unfinished run, which must be one with the same arguments."""
    folder = output.with_name(f"{output.name}.parts")
    begin = json.dumps(list(islice(iter(captions), _BATCH)))
    facts = {
        "captions": f"begin with {hash_bytes(begin.encode())[:8]}",
        "generator": generator.name,
        "seed": generator.seed,
        "options": generator.settings,
        "block_size": block_size,
        "filter": None if filter is None else asdict(filter.options),
    }
    stated = hash_bytes(json.dumps(facts, sort_keys=True, default=str).encode())
    manifest = folder / _MANIFEST
    found = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else None
    if found and found["hash"] != stated and not any(folder.glob("part-*.parquet")):
        shutil.rmtree(folder)  # it ended before anything was made
        found = None
    folder.mkdir(exist_ok=True)
    if found:
        if found["hash"] != stated:
            raise ValueError(
                f"{folder} holds an unfinished run with other arguments: {json.dumps(found['facts'])}. Give the same "
                f"ones to go on, another `output`, or remove that folder to start anew."
            )
    else:
        with whole_file(manifest) as temporary:
            temporary.write_text(json.dumps({"hash": stated, "facts": facts}, default=str), encoding="utf-8")
    return folder


def _blocks(captions: Iterable[str | None], size: int) -> Iterator[list[str | None]]:
    stream = iter(captions)
    while block := list(islice(stream, size)):
        yield block


def _make(
    generator: TripletGenerator, texts: Sequence[str | None], first: int, made: Callable[[Iterable], Iterator]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of one block, in order, and the captions without any, counted by reason."""
    size = _BATCH if generator.parallel else len(texts)
    rows, left_out = [], Counter()
    for some, skipped in made((first + start, texts[start : start + size]) for start in range(0, len(texts), size)):
        rows += some
        left_out += skipped
    return rows, left_out


def _make_batch(
    generator: TripletGenerator, batch: tuple[int, Sequence[str | None]]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    first, texts = batch
    generator.skipped = Counter()
    rows = list(generator.generate(enumerate(texts, start=first)))
    return rows, Counter(generator.skipped)


def _write_part(path: Path, table: pa.Table, skipped: Counter[str]) -> None:
    with whole_file(path) as temporary:
        parquet.write_table(table.replace_schema_metadata({_SKIPPED: json.dumps(skipped)}), temporary)


def _read_part(path: Path) -> tuple[pa.Table, Counter[str]]:
    table = parquet.read_table(path)
    return table, Counter(json.loads(table.schema.metadata[_SKIPPED]))


def _merge(parts: Sequence[Path], output: Path) -> None:
    tables = (parquet.read_table(part).replace_schema_metadata(None) for part in parts)
    write_triplets((row for table in tables for row in table.to_pylist()), output, schema=SCHEMA)


def write_triplets(
    rows: Iterable[Mapping[str, Any]], output: str | os.PathLike, *, schema: pa.Schema | None = None
) -> int:
    """
    Writes triplets, as Parquet or as JSON Lines by the file's name; the file is whole or not there.

    Args:
        rows (`Iterable[Mapping]`): Rows with the three texts and any further columns; a stream is written as it comes.
        output (`str` or `os.PathLike`): New file, `.parquet` or `.jsonl`.
        schema (`pyarrow.Schema`, *optional*): Of the columns; that of the first 10,000 rows by default.

    Returns:
        `int`: rows that were written.

    Raises:
        ValueError: the name ends in something else, or there are no rows.
        FileExistsError, OSError: the file exists or cannot be written.
    """
    output, number = check_output(output), 0
    stream = iter(rows)
    with whole_file(output) as temporary:
        if output.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                for row in stream:
                    file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
                    number += 1
        else:
            writer = None
            while batch := list(islice(stream, 10_000)):
                table = pa.Table.from_pylist([dict(row) for row in batch], schema=schema)
                schema = table.schema
                writer = writer or parquet.ParquetWriter(temporary, schema)
                writer.write_table(table)
                number += len(batch)
            if writer:
                writer.close()
        if not number:
            raise ValueError("There are no triplets to write.")
    return number
