"""The files of a benchmark: where they lie, what they must hold, and pictures that are opened by their ids."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from transformers.utils import logging

from .. import parsing
from ..images import ImageFolders, open_image
from .base import CIRBenchmark


logger = logging.get_logger(__name__)

Images = Literal["strict", "lenient", "unchecked"]
IMAGES = ("strict", "lenient", "unchecked")

SOURCES: dict[str, "DataSource"] = {}
"""What is known of the files of each benchmark that needs some, by its name."""


class AbsentError(FileNotFoundError):
    """None of the files of a benchmark's part is there, as opposed to one file among others."""


@dataclass(frozen=True)
class DataSource:
    """
    What the files of a benchmark look like from outside. Creating one enters it into `SOURCES`.

    Args:
        name (`str`): The benchmark's name.
        folders (`tuple[str, ...]`): What its folder is called in circulating trees; the root may be one level above.
        markers (`tuple[str, ...]`): Paths below that folder, any of which shows that it is the right one.
        layout (`str`): The tree to expect, for messages.
        how_to_get (`str`): Where the files come from. Nothing is ever fetched.
        counts (`Mapping`): Per split and, where there are several, gallery: the entries of a complete data set's
            protocol, such as `{"val": {"num_queries": 4181}}`.
        parts (`Mapping[str, Mapping]`): What is to be checked, by name: options of the loader.
        optional_parts (`Mapping[str, Mapping]`): What is checked where it is there, because pictures may belong to it.
        shared_pictures (`bool`): Whether its pictures are some of a larger collection, so that others are no surprise.
        hashes (`Mapping[str, str]`): SHA-256 of the official annotation files, by file name.
    """

    name: str
    folders: tuple[str, ...]
    markers: tuple[str, ...]
    layout: str
    how_to_get: str
    counts: Mapping[str, Mapping[str, object]]
    parts: Mapping[str, Mapping[str, object]]
    optional_parts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    shared_pictures: bool = False
    hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        SOURCES[self.name] = self

    def bases(self, root: str | os.PathLike | None) -> list[Path]:
        """The folders that may be the benchmark's own: the root, or one of its subfolders with a known name."""
        if root is None:
            raise ValueError(f"`root` must be the folder of `{self.name}`, got None.\n{self.advice}")
        root = Path(root).expanduser()
        return [base for base in (root, *(root / folder for folder in self.folders)) if base.is_dir()]

    def find(self, root: str | os.PathLike | None, places: Iterable[str], what: str) -> Path:
        """
        The first of some places that exists below the root.

        Args:
            root (`str` or `os.PathLike`): Where to look.
            places (`Iterable[str]`): Paths below the benchmark's folder, the preferred one first.
            what (`str`): What is looked for, for the message.

        Returns:
            `Path`

        Raises:
            AbsentError: If there is none; says what is there, what is expected, and where it comes from.
        """
        places = tuple(places)
        for base in self.bases(root):
            for place in places:
                if (base / place).exists():
                    return base / place
        raise AbsentError(f"{what} of `{self.name}` not found: {self._found(root)}\n{self.advice}")

    def annotation_files(self, root: str | os.PathLike) -> list[Path]:
        """The files below the root whose names have a known hash."""
        folders = {Path(marker).parent for marker in self.markers}
        folders |= {folder.parent / "image_splits" for folder in folders}
        places = (base / folder / name for base in self.bases(root) for folder in folders for name in self.hashes)
        return sorted({path.resolve() for path in places if path.is_file()})

    @property
    def advice(self) -> str:
        """The expected tree and the origin of the files."""
        return f"Expected below `root`:\n{self.layout.strip(chr(10))}\n{self.how_to_get} Nothing is downloaded here."

    def _found(self, root: str | os.PathLike) -> str:
        root = Path(root).expanduser()
        if not root.is_dir():
            return f"`root` {root} is {'a file' if root.exists() else 'not there'}."
        entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
        others = [
            source.name
            for source in SOURCES.values()
            if source.name != self.name
            and any((base / marker).exists() for base in source.bases(root) for marker in source.markers)
        ]
        looks = f" It looks like {' or '.join(f'`{name}`' for name in others)}." if others else ""
        return f"`root` {root} holds {', '.join(entries[:8]) or 'nothing'}{', ...' * (len(entries) > 8)}.{looks}"


class PictureFiles:
    """
    Opens the pictures of a benchmark by their ids; picklable, so that workers can do it.

    Args:
        paths (`Mapping[str, Path | None]`): The file of each picture, `None` where there is none.
        folders (`Sequence[Path]`): Where was looked for them, for messages.
        views (`Mapping[str, tuple[str, Callable]]`, *optional*): Pictures made of others: by id the id of the file,
            and what makes the one of the other.
    """

    def __init__(
        self,
        paths: Mapping[str, Path | None],
        folders: Sequence[Path],
        views: Mapping[str, tuple[str, Callable]] | None = None,
    ):
        self.paths, self.folders, self.views = dict(paths), tuple(folders), dict(views or {})

    def __call__(self, image_id: str):
        """The picture, RGB."""
        file_id, view = self.views.get(image_id, (image_id, None))
        path = self.paths[file_id]
        if path is None:
            raise FileNotFoundError(self.message([file_id]))
        image = open_image(path)
        return image if view is None else view(image)

    @property
    def missing(self) -> list[str]:
        """The ids of files that are not there."""
        return [file_id for file_id, path in self.paths.items() if path is None]

    def ids_without_file(self) -> set[str]:
        """The ids of pictures that cannot be opened for want of their file."""
        missing = set(self.missing)
        return missing | {image_id for image_id, (file_id, _) in self.views.items() if file_id in missing}

    def message(self, missing: Sequence[str]) -> str:
        """Says which pictures are missing and where they were looked for."""
        count = f"{len(missing)} of {len(self.paths)} pictures are missing (first {', '.join(missing[:5])})"
        there = [folder for folder in self.folders if folder.is_dir()]
        if not there:
            tried = ", ".join(map(str, self.folders[:3])) + ", ..." * (len(self.folders) > 3)
            return f"{count}, as is their folder: none of {tried} exists."
        return f"{count}; looked for as .png, .jpg and .jpeg in {' or '.join(map(str, there))}."


def picture_files(
    names: Mapping[str, str], folders: Sequence[Path], views: Mapping[str, tuple[str, Callable]] | None = None
) -> PictureFiles:
    """
    Finds the files of pictures.

    Args:
        names (`Mapping[str, str]`): Per id the path without extension, relative to a folder.
        folders (`Sequence[Path]`): The folders it may be relative to.
        views (`Mapping`, *optional*): See [`PictureFiles`].

    Returns:
        [`PictureFiles`]
    """
    index = ImageFolders(folders)
    paths = {image_id: index.find(name) for image_id, name in names.items()}
    return PictureFiles(paths, folders, views)


def finish(benchmark: CIRBenchmark, source: DataSource, *, images: Images, expected: Mapping | None) -> CIRBenchmark:
    """
    The last steps of every loader: pictures that are missing, cut-offs that say nothing, counts that are not official.

    Args:
        benchmark ([`CIRBenchmark`]): With [`PictureFiles`] as its `load_image`.
        source ([`DataSource`]): Its files.
        images (`str`): `"strict"` refuses missing pictures, `"lenient"` leaves them out with a warning, `"unchecked"`
            leaves the error to whoever opens one and says nothing of numbers either: for checks and submissions.
        expected (`Mapping`, *optional*): What the protocol of a complete data set says, where that is known.

    Returns:
        [`CIRBenchmark`], whose protocol says whether it is complete.

    Raises:
        FileNotFoundError: If pictures are missing and `images="strict"`.
        ValueError: If a recall's K is not smaller than the gallery, or `images` is unknown.
    """
    check_choice("images", images, IMAGES)
    files = benchmark.load_image
    if images != "unchecked" and files.missing:
        if images == "strict":
            raise FileNotFoundError(
                f"`{source.name}`: {files.message(files.missing)} `images='lenient'` scores without them, on other "
                f"denominators.\n{source.advice}"
            )
        whole, benchmark = benchmark, benchmark.without_images(files.ids_without_file())
        logger.warning(
            f"`{source.name}`: {files.message(files.missing)} They are left out: {benchmark.protocol['num_queries']} "
            f"queries instead of {whole.protocol['num_queries']}, galleries of {benchmark.protocol['gallery_size']} "
            f"instead of {whole.protocol['gallery_size']}. The figures compare with no others."
        )
    if benchmark.empty_metrics:
        raise ValueError(
            f"{', '.join(benchmark.empty_metrics)} of `{source.name}` would be 100 whatever the ranking, because a "
            f"gallery holds no more images ({benchmark.describe()}). Take more of the data, or name smaller cut-offs "
            f"in `metrics`."
        )
    if expected is not None:
        differing = count_differences(benchmark, expected)
        if differing and images != "unchecked":
            logger.warning(
                f"`{source.name}` is not the whole benchmark ({'; '.join(differing)}): its figures compare with no "
                f"published ones."
            )
        benchmark = replace(benchmark, protocol={"complete": not differing, **benchmark.protocol})
    return benchmark


def count_differences(benchmark: CIRBenchmark, expected: Mapping) -> list[str]:
    """Where the numbers of a benchmark's protocol are not the expected ones, in words."""
    found = []
    for name, wanted in expected.items():
        value = benchmark.protocol[name]
        for group, number in wanted.items() if isinstance(wanted, Mapping) else [("", wanted)]:
            have = value.get(group) if isinstance(value, Mapping) else value
            if have != number:
                found.append(f"{name}{group and f' of {group}'} is {0 if have is None else have}, expected {number}")
    return found


def check_choice(name: str, value: object, choices: Sequence) -> None:
    """Refuses (`ValueError`) a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_choices(name: str, values: Sequence[str] | None, choices: Sequence[str]) -> tuple[str, ...]:
    """Some of the choices, all of them for `None`; refuses (`ValueError`) others, none, and one twice."""
    if values is None:
        return tuple(choices)
    values = (values,) if isinstance(values, str) else tuple(values)
    for value in values:
        check_choice(name, value, choices)
    if not values or len(set(values)) < len(values):
        raise ValueError(
            f"`{name}` must name at least one of {', '.join(map(repr, choices))}, each once; got {values}."
        )
    return values


def read_json(path: Path, *, unique_keys: bool = False):
    """
    Reads a JSON file.

    Args:
        path (`Path`): The file; `.gz` is unpacked.
        unique_keys (`bool`, *optional*, defaults to `False`): Refuse a key that stands twice, of which JSON readers
            silently keep the last.

    Returns:
        What it holds.

    Raises:
        ValueError: If it is no JSON, perhaps cut short, or holds a key twice; names the file.
    """

    try:
        return parsing.read_json(path, unique_keys=unique_keys)
    except ValueError as error:
        raise ValueError(f"{path} ({path.stat().st_size} bytes) cannot be read: {error}. Get it anew.") from error


def read_records(path: Path, keys: Mapping[str, type | tuple[type, ...]]) -> list[dict]:
    """
    Reads a JSON file that is a list of objects with certain entries.

    Args:
        path (`Path`): The file.
        keys (`Mapping[str, type]`): The entries that every object must have, and of which kind each is.

    Returns:
        `list[dict]`

    Raises:
        ValueError: If it is no such list, is empty, or entries are missing or of another kind; names file and record.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} must hold a list of records, got {type(records).__name__} {str(records)[:60]!r}.")
    faults = [
        f"record {number} has {key!r} {record[key]!r}" if key in record else f"record {number} has no {key!r}"
        for number, record in enumerate(records)
        for key, kind in keys.items()
        if not isinstance(record.get(key), kind)
    ]
    if faults:
        raise ValueError(
            f"{path}: {len(faults)} entries are missing or of another kind than expected: {'; '.join(faults[:5])}. "
            f"Every record must have {', '.join(map(repr, keys))}. Is it a file of another version or split?"
        )
    return records
