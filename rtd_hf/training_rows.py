"""Pictures and captions to fit projections to: out of a folder, a file of captions, or a `datasets` data set."""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .data_files import room_for_cache
from .files import NoRoomError
from .images import leads_out
from .parsing import check_nesting
from .triplets import check_arrow, check_texts


IMAGE_COLUMNS = ("image", "file_name", "img", "picture", "jpg", "png", "image_path", "path", "filename")
CAPTION_COLUMNS = ("caption", "text", "prompt", "sentence", "description", "blip_caption")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TABLES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class CaptionLines(Dataset):
    """
    Captions alone.

    Args:
        captions (`Sequence[str]`): The captions, none of them blank.
        name (`str`, *optional*): Where they come from, for messages.

    Raises:
        ValueError: a caption is blank; the message counts them and names the first.
    """

    def __init__(self, captions: Sequence[str], *, name: str = ""):
        blank = [number for number, caption in enumerate(captions, start=1) if not caption.strip()]
        if blank:
            raise ValueError(
                f"{len(blank)} of {len(captions)} captions{name and f' of {name}'} are blank, the first in line "
                f"{blank[0]}. Remove them."
            )
        if not captions:
            raise ValueError(f"There are no captions{name and f' in {name}'}. Give one a line.")
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"caption": self.captions[index]}


class PictureFiles(Dataset):
    """
    The pictures of a folder and of those in it, each with the caption in the text file of the same name beside it.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        captions (`bool`): Whether captions are needed.

    Raises:
        ValueError: there are no pictures, or captions are missing or blank; the message counts them and names one.
    """

    def __init__(self, folder: str | os.PathLike, *, captions: bool):
        found = (path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        self.paths = sorted(path for path in found if path.is_file())
        if not self.paths:
            raise ValueError(
                f"`data` {folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}). Give a folder of pictures."
            )
        self.captions: list[str] | None = None
        if captions:
            beside = [path.with_suffix(".txt") for path in self.paths]
            texts = [_read_text(path).strip() if path.is_file() else "" for path in beside]
            without = [path for path, text in zip(self.paths, texts, strict=True) if not text]
            if without:
                raise ValueError(
                    f"{len(without)} of {len(texts)} pictures in {folder} have no caption, the first is {without[0]}. "
                    f"Write a text file beside each ({without[0].with_suffix('.txt').name}), or a metadata.csv with "
                    f"the columns `file_name` and `caption` into the folder."
                )
            self.captions = texts

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"image": str(self.paths[index])}
        return row if self.captions is None else {**row, "caption": self.captions[index]}


class TableRows(Dataset):
    """
    Rows of a `datasets` data set as objectives want them. Pictures are not decoded here but by who opens them.

    Args:
        table (`datasets.Dataset`): The data set.
        image_column (`str`, *optional*): The column of pictures: images, or paths.
        caption_column (`str`, *optional*): The column of captions.
        root (`Path`, *optional*): What paths are relative to.

    Raises:
        ValueError: there are no rows, captions are missing or blank, or the pictures are of an unknown kind.
    """

    def __init__(
        self,
        table: Any,
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
        root: Path | None = None,
    ):
        from datasets import Image, Value

        kept = [name for name in (image_column, caption_column) if name is not None]
        table = table.select_columns(kept)
        if len(table) == 0:
            raise ValueError("it holds no rows. Give at least one.")
        if caption_column is not None:
            check_texts(table, caption_column)
        if image_column is not None:
            kind = table.features[image_column]
            if isinstance(kind, Image):
                table = table.cast_column(image_column, Image(decode=False))
            elif not isinstance(kind, Value) or "string" not in kind.dtype:
                raise ValueError(
                    f"Column `{image_column}` must hold images or their paths, but holds {kind}. Give another as "
                    f"`image_column`, or cast it: `dataset.cast_column({image_column!r}, datasets.Image())`."
                )
        self.table, self.image_column, self.caption_column, self.root = table, image_column, caption_column, root

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.table[index]
        row: dict[str, Any] = {}
        if self.image_column is not None:
            image = source[self.image_column]
            if image is None:
                where = f" of {self.root}" if self.root else ""
                raise ValueError(
                    f"Row {index}{where} has no picture in column `{self.image_column}`. Remove such rows."
                )
            if isinstance(image, str):
                image = self._path_of(image, index)
            else:
                row["name"] = f"{image.get('path') or 'without a name'} in row {index}"
            row["image"] = image
        if self.caption_column is not None:
            row["caption"] = source[self.caption_column]
        return row

    def _path_of(self, image: str, index: int) -> str:
        """A path out of the table, which is not to say which other files of this machine are opened."""
        if self.root is None:
            raise ValueError(
                f"Row {index} names the file {image!r}, but a data set of the Hub has to bring its pictures along. "
                f"Download it, and give its folder as `data`."
            )
        path = self.root / image
        if leads_out(image) and not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(self.root)):
            raise ValueError(
                f"Row {index} names the picture {image!r}, which is not below {self.root}. Paths are relative to "
                f"the folder of the table: put the table above its pictures, or link them below it."
            )
        return str(path)


def load_rows(
    data: str,
    *,
    images: bool,
    captions: bool,
    split: str = "train",
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Dataset:
    """
    Opens what `data` names.

    - A folder of pictures: with a `metadata.csv`, `.jsonl` or `.parquet` in it (column `file_name`, as in `datasets`'
      image folders), or with text files beside the pictures, or, where no captions are needed, without either.
    - A folder that `datasets`' `save_to_disk` wrote.
    - A file: `.txt` with a caption a line, or `.json`, `.jsonl`, `.csv`, `.parquet` with columns; paths of pictures in
      it are relative to its folder.
    - Else the Hub id of a data set.

    Args:
        data (`str`): One of these.
        images, captions (`bool`): What is needed.
        split (`str`, *optional*, defaults to `"train"`): The split of a data set that has several.
        image_column, caption_column (`str`, *optional*): Names of columns; found by their usual names by default.

    Returns:
        `Dataset`: rows with `"image"`, `"caption"` or both.

    Raises:
        FileNotFoundError: there is no such file, or split.
        ValueError: a column is not there, or holds something else than it should; the message says what there is.
    """
    path = Path(data)
    root = path if path.is_dir() else path.parent
    if path.is_dir():
        metadata = next((path / name for name in _METADATA if (path / name).is_file()), None)
        if metadata is not None:
            table = _read_table(metadata)
        elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            table = _saved_table(path, split)
        elif images:
            return PictureFiles(path, captions=captions)
        else:
            raise ValueError(
                f"`data` {path} holds neither a metadata file nor a saved data set. Give a file of captions."
            )
    elif path.is_file() and path.suffix == ".txt":
        if images:
            raise ValueError(f"`data` {path} holds captions alone, but this method looks at pictures.")
        return CaptionLines(_read_text(path).splitlines(), name=str(path))
    elif path.is_file() and path.suffix.lower() in _TABLES:
        table = _read_table(path)
    elif path.suffix.lower() in (*_TABLES, ".txt") or path.is_absolute() or data.startswith("."):
        raise FileNotFoundError(f"`data` {data} does not exist. Give a folder, a file, or the Hub id of a data set.")
    else:
        from datasets import load_dataset

        with room_for_cache():
            table, root = load_dataset(data, split=split), None
    names = table.column_names
    try:
        return TableRows(
            table,
            image_column=find_column(names, image_column, IMAGE_COLUMNS, "image_column") if images else None,
            caption_column=find_column(names, caption_column, CAPTION_COLUMNS, "caption_column") if captions else None,
            root=root,
        )
    except ValueError as error:
        raise ValueError(f"`data` {data}: {error}") from error


def find_column(names: Iterable[str], wanted: str | None, usual: Sequence[str], option: str) -> str:
    """
    Args:
        names (`Iterable[str]`): The columns there are.
        wanted (`str`, *optional*): The one asked for.
        usual (`Sequence[str]`): Usual names, in order of preference, where none was asked for.
        option (`str`): What the option is called, for the error.

    Returns:
        `str`: the column's name.

    Raises:
        ValueError: it is not there; the message lists the columns and proposes one.
    """
    names = list(names)
    found = [name for name in ((wanted,) if wanted else usual) if name in names]
    if found:
        return found[0]
    likely = difflib.get_close_matches(wanted, names, n=1) if wanted else []
    likely += [name for name in usual if name in names]
    likely += [name for name in names if difflib.get_close_matches(name.lower(), usual, n=1)]
    likely += [name for name in names if any(part in name.lower() for part in usual)]
    what = f"`{option}` {wanted!r} is not in the data" if wanted else f"No column of the data is known as `{option}`"
    hint = f" Did you mean `--{option} {likely[0]}`?" if likely else f" Say which one it is with `--{option}`."
    raise ValueError(f"{what}. Columns that came: {', '.join(f'`{name}`' for name in names) or 'none'}.{hint}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is no text in UTF-8 ({error}). Save it as such.") from error


def _read_table(path: Path) -> Any:
    return read_table(path, _TABLES[path.suffix.lower()])


def read_table(path: Path, kind: str) -> Any:
    """
    A file of rows as a data set that is mapped into memory.

    Args:
        path (`Path`): The file.
        kind (`str`): The builder of `datasets`: `"json"`, `"csv"` or `"parquet"`.

    Raises:
        ValueError: it is damaged, or of another kind; the message names it.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    if kind == "json":
        check_nesting(path)
    try:
        with room_for_cache():
            return load_dataset(kind, data_files=str(path), split="train")
    except (FileNotFoundError, NoRoomError):
        raise
    except (
        DatasetsError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        StopIteration,
    ) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [""])[0][:300]
        raise ValueError(
            f"`{path}` ({path.stat().st_size:,} bytes) cannot be read as {kind}: it is damaged, empty, or of another "
            f"kind ({type(cause).__name__}: {reason})."
        ) from error


def _saved_table(path: Path, split: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
        for table in saved.values() if isinstance(saved, DatasetDict) else [saved]:
            check_arrow(table)
    except Exception as error:  # whatever the first wrong value leads to
        if isinstance(error, OSError) and str(path) in str(error):
            raise
        raise ValueError(
            f"The data set in `{path}` is damaged ({type(error).__name__}: {error}). Save it again."
        ) from error
    if not isinstance(saved, DatasetDict):
        return saved
    if split not in saved:
        raise FileNotFoundError(f"`split` {split!r} is not in {path}, which holds {', '.join(saved)}.")
    return saved[split]
