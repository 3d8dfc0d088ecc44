"""The files that a training reads while it runs, mapped into memory, and what happens to them meanwhile."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .files import room_for


logger = logging.get_logger(__name__)


class DataFiles:
    """
    Looks after the files behind data sets and anchors.

    A file that is cut off while it is mapped into memory kills whoever reads beyond its end, without a message
    (SIGBUS). One that is deleted stays readable for who has it open, but no later run will find it.

    Args:
        sources (`Iterable`): Data sets (`datasets.Dataset`, or mappings of them), [`AnchorStore`]s; anything else has
            no files.
    """

    def __init__(self, sources: Iterable[Any]):
        self._known: dict[Path, os.stat_result] = {}
        self._told: set[Path] = set()
        for path in (path for source in sources for path in files_of(source)):
            if path.is_file():
                self._known[path] = path.stat()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(self._known)

    def check(self) -> None:
        """
        Makes sure that all files can still be read; takes microseconds a file.

        Raises:
            OSError: One is shorter than it was; the message names it.
        """
        fault = self.fault()
        if fault:
            raise OSError(fault)

    def fault(self) -> str:
        """What is wrong with the first file that is shorter than it was; empty where none is."""
        for path, known in self._known.items():
            try:
                now = os.stat(path)
            except FileNotFoundError:
                self._say_once(path, "was deleted")
                continue
            if now.st_ino != known.st_ino:
                self._say_once(path, "was replaced")
            elif now.st_size < known.st_size:
                return (
                    f"`{path}`, which this training reads, was cut off: it has {now.st_size:,} bytes, and had "
                    f"{known.st_size:,} when the training began. Whoever did that writes to it still, or copied over "
                    f"it. Restore it (or delete it, if it is a cache that is made anew), and go on."
                )
        return ""

    def _say_once(self, path: Path, what: str) -> None:
        if path not in self._told:
            self._told.add(path)
            logger.warning(
                f"`{path}`, which this training reads, {what}. This run goes on with what it has open; one that "
                f"resumes needs the file as it was. Put it back."
            )


def files_of(source: Any) -> list[Path]:
    """The files that something reads from.

    Args:
        source: A `datasets.Dataset`, a wrapper around one (its `dataset` or `table`), a mapping of data sets, or an
            anchor store.
    """
    if source is None:
        return []
    if isinstance(source, Mapping):
        return [path for part in source.values() for path in files_of(part)]
    if hasattr(source, "cache_files"):
        return [Path(entry["filename"]) for entry in source.cache_files]
    if hasattr(source, "fingerprint") and isinstance(getattr(source, "folder", None), Path):
        return sorted(source.folder.glob("*.arrow"))
    return [path for name in ("dataset", "table") for path in files_of(getattr(source, name, None))]


@contextmanager
def room_for_cache() -> Iterator[None]:
    """
    Says where the cache of `datasets` lies, if there is no room for what is read into it.

    Raises:
        NoRoomError: The disk is full.
    """
    from datasets import config

    advice = "there, or set `HF_DATASETS_CACHE` to a folder on another disk, and run the same again"
    with room_for("The cache of `datasets`", Path(config.HF_DATASETS_CACHE), advice=advice):
        yield
