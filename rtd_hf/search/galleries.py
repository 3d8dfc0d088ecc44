"""Where the pictures of an index come from: a folder, or a data set; by id, and never from outside of the folder."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..images import as_picture


if TYPE_CHECKING:
    from PIL import Image


PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NAMED = 5  # of the files that a message is about


class Gallery(NamedTuple):
    """
    Pictures by id.

    Args:
        ids (`list[str]`): A different one for each.
        load (`Callable[[str], image]`): What opens one: a path or a PIL picture.
        name (`str`): What it is called.
    """

    ids: list[str]
    load: Callable[[str], Any]
    name: str

    def picture(self, name: str) -> "Image.Image":
        """One of them, as viewers show it; `OSError` where it cannot be read, or is none."""
        try:
            return as_picture(self.load(name))
        except (TypeError, ValueError) as error:
            raise OSError(str(error)) from error


def check_ids(ids: Sequence[str], name: str) -> None:
    """
    Refuses one id where a list of them is wanted: its letters would be taken for ids.

    Args:
        ids (`Sequence[str]`): What should be a list.
        name (`str`): Of the argument.

    Raises:
        TypeError: It is a text.
    """
    if isinstance(ids, str):
        raise TypeError(f"`{name}` must be a list of ids, got the one id {ids!r}. Put it in a list.")


def picture_path(folder: str | os.PathLike, name: str) -> Path:
    """
    The file of a picture by its id, which may come from a file or from a stranger.

    Args:
        folder (`str` or `os.PathLike`): The folder of the pictures.
        name (`str`): The id: the path within it.

    Returns:
        `Path`

    Raises:
        ValueError: The id leads out of the folder, by `..`, as an absolute path, or over a link.
    """
    root = Path(folder).resolve()
    try:
        path = (root / name).resolve()
        path.is_file()  # a name may be too long for the system
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero, a link to itself
        raise ValueError(f"{name[:200]!r} cannot be the name of a picture ({error}).") from error
    if not path.is_relative_to(root) or path == root:
        raise ValueError(f"The picture {name[:200]!r} lies outside of its folder, and is not opened.")
    return path


def folder_gallery(folder: str | os.PathLike, *, follow_links: bool = False) -> Gallery:
    """
    All pictures of a folder and of those in it; their ids are their paths within it, in order.

    Args:
        folder (`str` or `os.PathLike`): The folder. What begins with a dot is left out.
        follow_links (`bool`, *optional*, defaults to `False`): Take links that lead out of the folder too.

    Returns:
        [`Gallery`]

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        ValueError: It holds no pictures, or links that lead out of it.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"There is no folder `{root}`.")
    if not root.is_dir():
        raise NotADirectoryError(f"`{root}` is a file. To search among one picture makes no sense: give a folder.")
    ids, outside, other = [], [], 0
    seen: set[str] = set()  # a link to a folder above it would lead round and round
    for path, folders, files in os.walk(root, followlinks=follow_links):
        if os.path.realpath(path) in seen:
            folders[:] = []
            continue
        seen.add(os.path.realpath(path))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(name for name in files if not name.startswith(".")):
            if Path(file).suffix.lower() not in PICTURES:
                other += 1
                continue
            name = (Path(path) / file).relative_to(root).as_posix()
            leaves = not follow_links and not (Path(path) / file).resolve().is_relative_to(root.resolve())
            (outside if leaves else ids).append(name)
    if outside:
        raise ValueError(
            f"{len(outside)} pictures in `{root}` are links to files outside of it: {', '.join(outside[:_NAMED])}"
            f"{', ...' if len(outside) > _NAMED else ''}. `follow_links=True` takes them."
        )
    if not ids:
        raise ValueError(
            f"`{root}` and the folders in it hold no pictures ({', '.join(PICTURES)}), but {other} other files."
        )

    def load(name: str) -> Path:
        return root / name if follow_links else picture_path(root, name)

    return Gallery(ids, load, root.resolve().name)


def dataset_gallery(dataset, *, image_column: str | None = None, id_column: str | None = None) -> Gallery:
    """
    The pictures of a data set.

    Args:
        dataset (`datasets.Dataset`): With a column of pictures.
        image_column (`str`, *optional*): That column; the only one of pictures by default.
        id_column (`str`, *optional*): Column of the ids; the rows' numbers by default.

    Returns:
        [`Gallery`]

    Raises:
        TypeError: It is no data set with a length.
        ValueError: A column is missing, or ids come twice.
    """
    if not all(hasattr(dataset, name) for name in ("column_names", "features", "__len__", "__getitem__")):
        raise TypeError(
            f"`source` must be a folder, a `datasets.Dataset`, or embeddings as an array, got "
            f"{type(dataset).__name__}. Of a `DatasetDict` give one split; a stream has no rows to come back to; of "
            f"pictures in a list give `encode_images(pictures)` with `ids`."
        )
    columns = list(dataset.column_names)
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    if image_column is None:
        found = [name for name, kind in kinds.items() if kind == "Image"]
        if len(found) != 1:
            raise ValueError(
                f"`image_column` must name the column of pictures: the data set has {len(found)} of them "
                f"({', '.join(found) or 'none'}) among {', '.join(columns)}."
            )
        image_column = found[0]
    for option, name in (("image_column", image_column), ("id_column", id_column)):
        if name is not None and name not in columns:
            raise ValueError(f"`{option}` {name!r} is no column of the data set, which has {', '.join(columns)}.")
    ids = [str(name) for name in (dataset[id_column] if id_column else range(len(dataset)))]
    rows = {name: row for row, name in enumerate(ids)}
    if len(rows) < len(ids):
        raise ValueError(f"`id_column` {id_column!r} holds {len(ids) - len(rows)} ids twice.")
    if not ids:
        raise ValueError("The data set is empty.")
    return Gallery(ids, lambda name: dataset[rows[name]][image_column], "dataset")
