"""Captions and triplets in the shapes there are: RTD's, InstructPix2Pix's, CompoDiff's, LaSCo's, tables, the Hub."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .columns import TRIPLET_COLUMNS, resolve_triplet_columns
from .rows import Rows


CAPTION_COLUMNS = ("caption", "text", "reference_caption", "captions", "sentence", "description", "title", "prompt")
# LaSCo and LAION-CIR name pictures where triplets want captions.
_PICTURES = {"query-text": ("query-image", "target-image"), "relative_cap": ("ref_image_id", "tgt_image_id")}


class Captions:
    """
    Captions of a source, as they stand in it, `None` and blank ones too: a generator counts what it skips.

    Args:
        source (`str`, `os.PathLike` or `Iterable[Mapping]`): See [`Rows`]; also COCO's `captions_*.json`.
        column (`str`, *optional*): Column of the captions; one of the usual names by default.
        split (`str`, *optional*, defaults to `"train"`): Split of a data set of the Hub.
        limit (`int`, *optional*): Only the first so many.

    Raises:
        FileNotFoundError, ValueError: as [`Rows`]; also where the column is missing or holds no texts.
    """

    def __init__(
        self,
        source: str | os.PathLike | Iterable[Mapping],
        *,
        column: str | None = None,
        split: str = "train",
        limit: int | None = None,
    ):
        if limit is not None and limit < 1:
            raise ValueError(f"`limit` must be at least 1, got {limit}.")
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
                raise self._no_column(column, row, number)
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

    def _no_column(self, column: str | None, row: Mapping[str, Any], number: int) -> ValueError:
        near = difflib.get_close_matches(column, row, n=1) if column else []
        bytes_too = f" (`{'`, `'.join(self.rows.left_out)}`: bytes, not read)" if self.rows.left_out else ""
        wanted = f"`caption_column` `{column}` is not there" if column else "`caption_column` is needed"
        return ValueError(
            f"{wanted}: row {number} of {self.rows.source} has the columns "
            f"{', '.join(f'`{name}`' for name in row) or 'none'}{bytes_too}. "
            + (f"Did you mean `{near[0]}`?" if near else "Name the one that holds captions.")
        )


def read_triplets(
    source: str | os.PathLike | Iterable[Mapping],
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
        source (`str`, `os.PathLike` or `Iterable[Mapping]`): See [`Rows`].
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
    rows = Rows(source, split=split, argument="triplets")
    for number, row in enumerate(rows):
        pictures = next((name for name in _PICTURES if name in row), None)
        if pictures and not columns and not ({"reference_caption"} & row.keys()):
            if known is None:
                known = _captions_by_picture(captions, rows.source)
            row = _joined(row, pictures, known, f"Row {number} of {rows.source}")
        if found is None:
            try:
                found = _mapping(row, columns)
            except ValueError as error:
                raise ValueError(f"`triplets` {rows.source}: {error}") from error
        missing = [column for column in found.values() if column not in row]
        if missing:
            raise ValueError(
                f"Row {number} of {rows.source} lacks the column `{missing[0]}` that the rows before it have."
            )
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


def _joined(row: Mapping[str, Any], pictures: str, known: Mapping[str, str], place: str) -> dict[str, Any]:
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
            raise ValueError(f"{place}: `captions` holds none for the picture {name!r} in `{column}`.")
    rest = {name: value for name, value in row.items() if name not in (pictures, "tgt_cap", *_PICTURES[pictures])}
    return texts | rest
