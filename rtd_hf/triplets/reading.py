"""Captions and triplets in the shapes there are: RTD's, InstructPix2Pix's, CompoDiff's, LaSCo's, tables, the Hub."""

import csv
import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .columns import TRIPLET_COLUMNS, resolve_triplet_columns


CAPTION_COLUMNS = ("caption", "text", "reference_caption", "sentence", "description", "title", "prompt")
_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".arrow")
_LAYOUTS = (
    "a JSON array or JSON Lines of rows, a CSV, TSV, Parquet or Arrow file, a folder `save_to_disk` wrote, or the Hub "
    "id of a data set"
)
_ROWS_AT_ONCE = 10_000
# LaSCo and LAION-CIR name pictures where triplets want captions.
_PICTURES = {"query-text": ("query-image", "target-image"), "relative_cap": ("ref_image_id", "tgt_image_id")}


class Rows:
    """
    Rows of a file, a folder or a data set of the Hub, read as they are asked for, and as often as wanted.

    Args:
        source (`str` or `os.PathLike`):
            A file (`.json`, `.jsonl`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.txt` with a caption a line; each also
            with `.gz` behind it, but for the binary ones), a folder written by `save_to_disk`, or a Hub id.
        split (`str`, *optional*, defaults to `"train"`): Split of a data set of the Hub.
        argument (`str`, *optional*, defaults to `"source"`): What errors call it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or no rows are in it; the message says where it breaks.
    """

    def __init__(self, source: str | os.PathLike, *, split: str = "train", argument: str = "source"):
        self.source, self.split, self.argument = str(source), split, argument
        self.path = Path(source)
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
        number = 0
        for row in self._rows():
            number += 1
            yield row
        if not number:
            raise ValueError(f"`{self.argument}` {self.source} holds no rows.")

    def _rows(self) -> Iterable[dict[str, Any]]:
        if not self.path.is_file():
            return self._of_datasets()
        if self.suffix in (".parquet", ".arrow"):
            return self._of_arrow()
        if self.suffix in (".csv", ".tsv"):
            return self._of_table()
        return self._of_lines() if self.suffix == ".txt" else self._of_json()

    def _open(self, **options: Any):
        if self.path.suffix == ".gz":
            return gzip.open(self.path, "rt", encoding="utf-8-sig", **options)
        return self.path.open(encoding="utf-8-sig", **options)

    def _damaged(self, what: object) -> ValueError:
        return ValueError(f"`{self.argument}` {self.source} is damaged or of another kind: {what}.")

    def _of_datasets(self) -> Iterator[dict[str, Any]]:
        from datasets import load_dataset, load_from_disk

        if self.path.is_dir() and any(self.path.glob("*.json")) and any(self.path.rglob("*.arrow")):
            rows = load_from_disk(self.source)
            yield from rows[self.split] if hasattr(rows, "keys") else rows
        else:
            yield from load_dataset(self.source, split=self.split, streaming=True)

    def _of_arrow(self) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            if self.suffix == ".parquet":
                with parquet.ParquetFile(self.path) as file:
                    for batch in file.iter_batches(_ROWS_AT_ONCE):
                        yield from batch.to_pylist()
            else:
                with pa.memory_map(self.source) as mapped:
                    for batch in pa.ipc.open_stream(mapped):
                        yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
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
                raise self._damaged(f"line {reader.line_num}: {error}") from error

    def _of_lines(self) -> Iterator[dict[str, Any]]:
        with self._open() as file:
            for line in file:
                yield {"caption": line.rstrip("\n")}

    def _of_json(self) -> Iterator[dict[str, Any]]:
        with self._open() as file:
            try:
                first = file.read(1)
                while first.isspace():
                    first = file.read(1)
                file.seek(0)
                if first == "[":
                    yield from self._checked(json.load(file))
                elif self.suffix == ".jsonl":
                    yield from self._of_json_lines(file)
                else:
                    yield from self._of_object(file)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise self._damaged(error) from error

    def _of_object(self, file: Any) -> Iterator[dict[str, Any]]:
        """One object a line, or one object that holds the rows."""
        first, second = file.readline(), file.readline()
        file.seek(0)
        try:
            alone = json.loads(first)
        except json.JSONDecodeError:
            alone = None  # an object over several lines
        if isinstance(alone, dict) and (second.strip() or not any(isinstance(x, list | dict) for x in alone.values())):
            yield from self._of_json_lines(file)
        else:
            yield from self._checked(_rows_of_object(json.load(file)))

    def _of_json_lines(self, file: Any) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
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


class Captions:
    """
    Captions of a source, as they stand in it, `None` and blank ones too: a generator counts what it skips.

    Args:
        source (`str` or `os.PathLike`): See [`Rows`]; also COCO's `captions_*.json`.
        column (`str`, *optional*): Column of the captions; one of the usual names by default.
        split (`str`, *optional*, defaults to `"train"`): Split of a data set of the Hub.
        limit (`int`, *optional*): Only the first so many.

    Raises:
        FileNotFoundError, ValueError: as [`Rows`]; also where the column is missing or holds no texts.
    """

    def __init__(
        self, source: str | os.PathLike, *, column: str | None = None, split: str = "train", limit: int | None = None
    ):
        self.rows = Rows(source, split=split, argument="captions")
        self.column, self.limit = column, limit

    def __iter__(self) -> Iterator[str | None]:
        column = self.column
        for number, row in enumerate(self.rows):
            if number == self.limit:
                return
            if column is None:
                column = next((name for name in CAPTION_COLUMNS if name in row), None)
            if column is None or column not in row:
                raise ValueError(
                    f"`caption_column` {column or 'is missing'}: row {number} of {self.rows.source} has the columns "
                    f"{', '.join(f'`{name}`' for name in row) or 'none'}. Name the one that holds captions."
                )
            text = row[column]
            # Data sets with several captions a picture keep them in a list; the first one stands for the row.
            if isinstance(text, list):
                text = text[0] if text else None
            if text is not None and not isinstance(text, str):
                raise ValueError(
                    f"`caption_column` `{column}` of {self.rows.source} must hold texts, but row {number} holds the "
                    f"{type(text).__name__} {text!r}."
                )
            yield text


def read_triplets(
    source: str | os.PathLike,
    *,
    columns: Mapping[str, str] | None = None,
    captions: str | os.PathLike | None = None,
    split: str = "train",
) -> Iterator[dict[str, Any]]:
    """
    Reads text triplets in any of the published shapes, row by row.

    RTD's `reference_caption, conditioning_caption, target_caption`; InstructPix2Pix's `input, edit, output`, `caption,
    edit, output` and `original_prompt, edit_prompt, edited_prompt`, of which CompoDiff's texts have the last; LaSCo's
    records and LAION-CIR's, which name pictures, with the pictures' captions beside them; or whatever `columns` says.

    Args:
        source (`str` or `os.PathLike`): See [`Rows`].
        columns (`Mapping[str, str]`, *optional*):
            For `reference_caption`, `conditioning_caption` and `target_caption` the column that holds it, where the
            data uses other names.
        captions (`str` or `os.PathLike`, *optional*):
            For triplets of pictures: COCO's `captions_*.json`, or rows with `id` or `image_id` and `caption`.
        split (`str`, *optional*, defaults to `"train"`): Split of a data set of the Hub.

    Yields:
        `dict`: the three texts under our names, `None` where the data has it, and all further columns.

    Raises:
        FileNotFoundError, ValueError: as [`Rows`]; also where a column is missing, or a picture has no caption.
    """
    found: dict[str, str] | None = None
    known: dict[str, str] | None = None
    for number, row in enumerate(Rows(source, split=split, argument="triplets")):
        pictures = next((name for name in _PICTURES if name in row), None)
        if pictures and not columns and not ({"reference_caption"} & row.keys()):
            if known is None:
                known = _captions_by_picture(captions, source)
            row = _joined(row, pictures, known, number)
        if found is None:
            found = _mapping(row, columns)
        missing = [column for column in found.values() if column not in row]
        if missing:
            raise ValueError(f"Row {number} of {source} lacks the column `{missing[0]}` that the rows before it have.")
        texts = {role: row[column] for role, column in found.items()}
        rest = {name: value for name, value in row.items() if name not in {*found.values(), *texts}}
        yield texts | rest


def _mapping(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, str]:
    if not columns:
        return resolve_triplet_columns(row)
    unknown = sorted(set(columns) - set(TRIPLET_COLUMNS))
    if unknown:
        raise ValueError(f"`columns` names `{unknown[0]}`, but the roles are {', '.join(map(repr, TRIPLET_COLUMNS))}.")
    absent = sorted(name for name in columns.values() if name not in row)
    if absent:
        raise ValueError(
            f"`columns` names the column `{absent[0]}`, which the data has not. It has: {', '.join(sorted(row))}."
        )
    rest = [name for name in row if name not in columns.values()]
    return resolve_triplet_columns([*rest, *columns]) | dict(columns)


def _captions_by_picture(captions: str | os.PathLike | None, source: object) -> dict[str, str]:
    if captions is None:
        raise ValueError(
            f"The triplets of {source} name pictures and not captions. Give their captions with `captions`: COCO's "
            f"`captions_*.json`, or rows with `image_id` and `caption`."
        )
    known: dict[str, str] = {}
    for row in Rows(captions, argument="captions"):
        name = row["image_id"] if "image_id" in row else row.get("id")
        known.setdefault(_picture_id(name), row.get("caption"))
    return known


def _picture_id(name: object) -> str:
    """`9` for `9`, `"000000000009"` and `"COCO_val2014_000000000009.jpg"`."""
    stem = str(name).rsplit("/", 1)[-1].split(".")[0]
    last = stem.rsplit("_", 1)[-1] if stem.startswith("COCO_") else stem
    return last.lstrip("0") or "0" if last.isdigit() else last


def _joined(row: Mapping[str, Any], pictures: str, known: Mapping[str, str], number: int) -> dict[str, Any]:
    """A triplet of pictures as one of texts. LaSCo writes a picture as `[id, path]`."""
    texts = {"conditioning_caption": row[pictures]}
    sides = zip(("reference_caption", "target_caption"), _PICTURES[pictures], strict=True)
    for role, column in sides:
        name = row.get(column, row.get("id") if role == "reference_caption" else None)
        name = _picture_id(name[0] if isinstance(name, list) and name else name)
        if role == "target_caption" and "tgt_cap" in row:
            texts[role] = row["tgt_cap"]
        elif name in known:
            texts[role] = known[name]
        else:
            raise ValueError(f"Row {number}: `captions` holds none for the picture {name!r} in `{column}`.")
    rest = {name: value for name, value in row.items() if name not in (pictures, "tgt_cap", *_PICTURES[pictures])}
    return texts | rest
