"""The three columns of a text triplet: found among the columns of a data set, and checked before any work."""

import difflib
from collections.abc import Iterable
from typing import Any


# Our column names (those of RTD's published file) with the names InstructPix2Pix uses, in order of preference.
TRIPLET_COLUMNS = {
    "reference_caption": ("reference_caption", "input", "caption", "original_prompt"),
    "conditioning_caption": ("conditioning_caption", "edit", "edit_prompt"),
    "target_caption": ("target_caption", "output", "edited_prompt"),
}

_CHECKED_AT_ONCE = 50_000  # rows


def resolve_triplet_columns(column_names: Iterable[str]) -> dict[str, str]:
    """
    Finds the three columns of a text triplet among the columns of a data set.

    Args:
        column_names (`Iterable[str]`): The columns there are; further ones are ignored.

    Returns:
        `dict[str, str]`: `reference_caption`, `conditioning_caption` and `target_caption`, each with the name of the
        column that holds it. Our own names win over aliases (`input`, `edit`, `output`, ...).

    Raises:
        ValueError: a column is missing; the message names the accepted names, the columns that came and the one that
            looks like a misspelling.
    """
    names = list(column_names)
    found = {}
    for role, accepted in TRIPLET_COLUMNS.items():
        present = [name for name in accepted if name in names]
        if present:
            found[role] = present[0]
    missing = [role for role in TRIPLET_COLUMNS if role not in found]
    if not missing:
        return found
    unused = [name for name in names if name not in found.values()]
    complaints = []
    for role in missing:
        accepted = TRIPLET_COLUMNS[role]
        complaint = f"`{role}` is missing (also accepted: {', '.join(f'`{name}`' for name in accepted[1:])})"
        near = [(name, close[0]) for name in unused if (close := difflib.get_close_matches(name, accepted, n=1))]
        if near:
            complaint += f"; did you mean `{near[0][1]}` where the data says `{near[0][0]}`?"
        complaints.append(complaint)
    raise ValueError(
        f"The rows are no text triplets: {'; '.join(complaints)}. Columns that came: "
        f"{', '.join(f'`{name}`' for name in names) or 'none'}. Rename them, "
        f"for example with `dataset.rename_column(old, new)`."
    )


def string_column(table: Any, column: str) -> Any:
    """
    A column of texts.

    Args:
        table (`pyarrow.Table`): Rows.
        column (`str`): The column's name.

    Returns:
        `pyarrow.ChunkedArray`: of strings; a column that is empty throughout counts as one.

    Raises:
        ValueError: the column holds something else.
    """
    texts = table.column(column)
    if "string" not in str(texts.type) and str(texts.type) != "null":
        raise ValueError(f"Column `{column}` must hold strings, but holds {texts.type}. Convert it to text.")
    return texts.cast("string")


def check_triplets(dataset: Any) -> dict[str, str]:
    """
    Checks a data set of text triplets before any work is done: its columns, and that every caption holds text.

    Args:
        dataset (`datasets.Dataset`): The triplets. A data set without random access is checked by its columns alone;
            the collator then checks each batch.

    Returns:
        `dict[str, str]`: the columns as [`resolve_triplet_columns`] finds them.

    Raises:
        ValueError: a column is missing, or captions are missing or blank; the message counts them and shows the first.
    """
    columns = resolve_triplet_columns(dataset.column_names)
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "__len__"):
        return columns
    for column in columns.values():
        check_texts(dataset, column)
    return columns


def check_texts(dataset: Any, column: str) -> None:
    """
    Makes sure that a column holds a text in every row.

    Args:
        dataset (`datasets.Dataset`): The rows.
        column (`str`): The column's name.

    Raises:
        ValueError: texts are missing or blank; the message counts them and shows the first.
    """
    import pyarrow.compute as compute

    rows = dataset.with_format("arrow").select_columns([column])
    number, first = 0, None
    for start in range(0, len(dataset), _CHECKED_AT_ONCE):
        texts = string_column(rows[start : start + _CHECKED_AT_ONCE], column)
        blank = compute.fill_null(compute.equal(compute.utf8_trim_whitespace(texts), ""), True)
        found = compute.sum(blank).as_py() or 0
        if found and first is None:
            first = start + compute.index(blank, True).as_py()
        number += found
    if number:
        raise ValueError(
            f"Column `{column}` holds no text in {number} of {len(dataset)} rows, first in row {first}: "
            f"{dataset[first]!r}. Remove such rows, for example with "
            f"`dataset.filter(lambda row: (row[{column!r}] or '').strip())`."
        )
