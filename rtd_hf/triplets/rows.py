"""Rows out of files, folders, data sets and the Hub, in whatever shape they lie there, a few at a time."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..parsing import PACKING_ERRORS, check_nesting, open_text


_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".arrow")
_LAYOUTS = (
    "a JSON array or JSON Lines of rows, a CSV, TSV, Parquet or Arrow file, a text file with a caption a line, a "
    "folder of such files or one that `save_to_disk` wrote, or the Hub id of a data set"
)
_ROWS_AT_ONCE = 10_000
_READ, _LONGEST = 1 << 20, 1 << 26  # characters read at once of a JSON array, and of the longest element
_BLANK = re.compile(r"[ \t\r\n]*")


class Rows:
    """
    Rows of a file, a folder or a data set of the Hub, read as they are asked for, and as often as wanted.

    Memory holds a few rows: 10,000 of a Parquet file, one of the others. Only the object that COCO's files are, with
    the rows in one of its fields, is read whole. Columns of pictures and other bytes are left out, and never decoded.

    Args:
        source (`str`, `os.PathLike` or `Iterable[Mapping]`):
            A file (`.json`, `.jsonl`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.txt` with a caption a line; each also
            with `.gz` behind it, but for the binary ones), a folder written by `save_to_disk` or one with such files,
            or a Hub id, which is streamed; or a `datasets.Dataset`, `datasets.IterableDataset` or list of rows.
        split (`str`, *optional*, defaults to `"train"`): Split of a data set of the Hub.
        argument (`str`, *optional*, defaults to `"source"`): What errors call it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or no rows are in it; the message says where it breaks.
    """

    def __init__(
        self, source: str | os.PathLike | Iterable[Mapping], *, split: str = "train", argument: str = "source"
    ):
        self.split, self.argument = split, argument
        self.left_out: list[str] = []  # columns of bytes
        self.given = None if isinstance(source, str | os.PathLike) else source
        if self.given is not None:
            if iter(source) is source:
                raise TypeError(f"`{argument}` is read more than once, so it cannot be an iterator. Give a list.")
            self.source, self.path = f"the {type(source).__name__}", None
            return
        self.source, self.path = str(source), Path(source)
        self.suffix = Path(self.path.stem).suffix if self.path.suffix == ".gz" else self.path.suffix
        looks_like_file = self.suffix in _SUFFIXES or self.source.startswith((".", "/"))
        if looks_like_file and not self.path.exists():
            raise FileNotFoundError(f"`{argument}` {source} does not exist. Give {_LAYOUTS}.")
        if self.path.is_file():
            if self.path.stat().st_size == 0:
                raise ValueError(f"`{argument}` {source} is empty. Give {_LAYOUTS}.")
            if self.suffix not in _SUFFIXES:
                raise ValueError(f"`{argument}` {source} is of an unknown kind. Give {_LAYOUTS}.")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number, rows = 0, iter(self._rows())
        while True:
            try:
                row = next(rows)
            except StopIteration:
                break
            except RecursionError:
                raise self._damaged("it is nested too deeply") from None
            except PACKING_ERRORS as error:
                raise self._damaged(error) from error
            number += 1
            yield row
        if not number:
            raise ValueError(f"`{self.argument}` {self.source} holds no rows.")

    def _rows(self) -> Iterable[dict[str, Any]]:
        if self.given is not None:
            return self._checked(self._without_bytes(self.given))
        if not self.path.is_file():
            return self._of_datasets()
        if self.suffix in (".parquet", ".arrow"):
            return self._of_arrow()
        if self.suffix in (".csv", ".tsv"):
            return self._of_table()
        return self._of_lines() if self.suffix == ".txt" else self._of_json()

    def _open(self, **options: Any):
        return open_text(self.path, **options)

    def _damaged(self, what: object) -> ValueError:
        return ValueError(f"`{self.argument}` {self.source} is damaged or of another kind: {what}.")

    def _of_datasets(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._read_by_datasets()
        except Exception as error:
            # Its errors are of all kinds, and those of its workers name no file.
            if not self.path.is_dir() or self.source in str(error):
                raise
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _read_by_datasets(self) -> Iterator[dict[str, Any]]:
        from datasets import load_dataset, load_from_disk

        if self.path.is_dir() and any(self.path.glob("*.json")) and any(self.path.rglob("*.arrow")):
            rows = load_from_disk(self.source)
            if hasattr(rows, "keys"):
                if self.split not in rows:
                    raise ValueError(f"`split` {self.split!r} is not in {self.source}. There are: {', '.join(rows)}.")
                rows = rows[self.split]
            check_arrow(rows)
        else:
            if self.path.is_dir():
                check_nesting(self.path)
            try:
                rows = load_dataset(self.source, split=self.split, streaming=True)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"`{self.argument}` {self.source}: {error}. Give {_LAYOUTS}.") from error
        yield from self._without_bytes(rows)

    def _without_bytes(self, rows: Any) -> Any:
        """A data set without what would be decoded for nothing: pictures, sounds."""
        features = getattr(rows, "features", None)
        if features is None:
            return rows
        return rows.select_columns(self._texts_of(features.arrow_schema))

    def _texts_of(self, schema: Any) -> list[str]:
        """The columns without bytes."""
        if len(set(schema.names)) < len(schema.names):
            raise self._damaged(f"several columns have the same name, of {', '.join(schema.names)}")
        self.left_out = [field.name for field in schema if _holds_bytes(field.type)]
        return [name for name in schema.names if name not in self.left_out]

    def _of_arrow(self) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            if self.suffix == ".parquet":
                with parquet.ParquetFile(self.path) as file:
                    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=self._texts_of(file.schema_arrow)):
                        yield from batch.to_pylist()
            else:
                with pa.memory_map(self.source) as mapped, pa.ipc.open_stream(mapped) as stream:
                    columns = self._texts_of(stream.schema)
                    for batch in stream:
                        batch.validate(full=True)  # offsets that lead out of the file would end the process
                        yield from batch.select(columns).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error

    def _of_table(self) -> Iterator[dict[str, Any]]:
        with self._open(newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if self.suffix == ".tsv" else ",", strict=True)
            try:
                for row in reader:
                    if None in row or None in row.values():
                        raise self._damaged(f"line {reader.line_num} has another number of fields than the header")
                    yield row
            except (csv.Error, UnicodeDecodeError) as error:
                raise self._damaged(f"behind line {reader.line_num}: {error}") from error

    def _of_lines(self) -> Iterator[dict[str, Any]]:
        number = 0
        with self._open() as file:
            try:
                for line in file:
                    number += 1
                    yield {"caption": line.rstrip("\n")}
            except UnicodeDecodeError as error:
                raise self._damaged(f"behind line {number}: {error}") from error

    def _of_json(self) -> Iterator[dict[str, Any]]:
        with self._open() as file:
            try:
                first = file.read(1)
                while first.isspace():
                    first = file.read(1)
                file.seek(0)
                if first == "[":
                    yield from self._checked(self._elements(file))
                elif self.suffix == ".jsonl":
                    yield from self._of_json_lines(file)
                else:
                    yield from self._of_object(file)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise self._damaged(error) from error

    def _elements(self, file: Any) -> Iterator[Any]:
        """The elements of a JSON array, one by one: such a file may be larger than memory."""
        decoder, buffer, number = json.JSONDecoder(), file.read(_READ), 0
        place = _BLANK.match(buffer, buffer.index("[") + 1).end()
        while number or not buffer.startswith("]", place):
            try:
                element, end = decoder.raw_decode(buffer, place)
                end = _BLANK.match(buffer, end).end()
                fault = "the array does not end" if end == len(buffer) else None
            except json.JSONDecodeError as error:
                fault = error.msg
            except ValueError as error:  # a number of more digits than Python reads
                raise self._damaged(f"row {number + 1}: {error}") from error
            if fault:
                # What stands at the end may go on. Twice as much is read each time, or long ones would take for ever.
                held = buffer[place:]
                more = file.read(max(_READ, len(held))) if len(held) < _LONGEST else ""
                if not more:
                    raise self._damaged(f"row {number + 1}: {fault}")
                buffer = held + more
                place = _BLANK.match(buffer).end()
                continue
            yield element
            number += 1
            if buffer[end] == "]":
                break
            if buffer[end] != ",":
                raise self._damaged(f"row {number + 1}: no comma before it")
            place = _BLANK.match(buffer, end + 1).end()
        else:
            end = place
        if buffer[end + 1 :].strip() or file.read(_READ).strip():
            raise self._damaged("there is something behind the array")

    def _of_object(self, file: Any) -> Iterator[dict[str, Any]]:
        """One object a line, or one object that holds the rows."""
        first, second = file.readline(), file.readline()
        file.seek(0)
        try:
            alone = self._parsed(first)
        except json.JSONDecodeError:
            alone = None  # an object over several lines
        if isinstance(alone, dict) and (second.strip() or not any(isinstance(x, list | dict) for x in alone.values())):
            yield from self._of_json_lines(file)
        else:
            content = self._parsed(file.read())
            if not isinstance(content, dict):
                raise self._damaged(f"it holds a {type(content).__name__} and no rows")
            yield from self._checked(_rows_of_object(content))

    def _parsed(self, text: str) -> Any:
        """A JSON value; what is no JSON is told from a number of more digits than Python reads."""
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise self._damaged(error) from error

    def _of_json_lines(self, file: Any) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = self._parsed(line)
            except json.JSONDecodeError as error:
                raise self._damaged(f"line {number}: {error}") from error
            yield from self._checked([row], first=number)

    def _checked(self, rows: Iterable[Any], *, first: int = 1) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows, start=first):
            if isinstance(row, str) or row is None:
                row = {"caption": row}
            if not isinstance(row, dict):
                raise self._damaged(f"row {number} is a {type(row).__name__}, not an object")
            yield row


def check_arrow(dataset: Any) -> None:
    """
    Makes sure that the tables of a data set from the disk hold what they say.

    They are mapped as they are, and a wrong offset in them ends the process when its row is read. Looking at all of
    2.5 million triplets takes less than a second.

    Args:
        dataset (`datasets.Dataset`): The data set.

    Raises:
        ValueError: they do not (`pyarrow.ArrowInvalid`).
    """
    for batch in dataset.data.table.to_batches():
        batch.validate(full=True)


def _holds_bytes(kind: Any) -> bool:
    """Whether a column of this type of Arrow's holds bytes, in structures and lists too, as pictures are kept."""
    import pyarrow as pa

    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))
    return any(check(kind) for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))


def _rows_of_object(content: Mapping[str, Any]) -> Iterable[Any]:
    """Rows out of COCO's `annotations`, a lone record, a mapping from ids to records, or from columns to lists."""
    for name in ("annotations", "rows", "data", "triplets", "train"):
        if isinstance(content.get(name), list):
            return content[name]
    values = list(content.values())
    if values and all(isinstance(value, dict) for value in values):
        return [{"id": name, **value} for name, value in content.items()]
    if values and all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        return [dict(zip(content, row, strict=True)) for row in zip(*values, strict=True)]
    return [content]
