"""The checkpoint of a run with a language model: every answer that was paid for, one line each, on disk at once."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...parsing import parse_json
from .limits import Usage


logger = logging.get_logger(__name__)

_KIND = "answers of a language model to captions, rtd_hf"


class Journal:
    """
    A file of JSON lines, appended to only, each line synced to disk before it counts.

    The first line holds the settings that an answer depends on. A line that was cut off by a kill or a full disk is
    noticed and removed; one that is damaged elsewhere is an error. Two runs cannot write to the same file.

    Args:
        path (`Path`): The file; its folder is made.
        settings (`dict[str, Any]`): What an answer depends on; never a key or a password.

    Attributes:
        spent ([`Usage`]): What the answers cost.

    Raises:
        ValueError: the file was made with other settings, is damaged, or is something else.
        OSError: another run writes to it, or it cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = Path(path)
        self.spent = Usage()
        self._places: dict[int, int] = {}  # key of a caption, as a number -> where its line begins
        self._lock = threading.Lock()
        self._last: tuple[int, dict] = (-1, {})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115
        try:
            self._keep_others_out()
            self._read(settings)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Closes the file, and lets other runs have it."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Captions that have an answer."""
        return len(self._places)

    def append(self, record: dict[str, Any]) -> None:
        """
        Adds a line and waits until it is on disk.

        Args:
            record (`dict`): `usage` as of [`Usage`], and `captions`: a list of `{key, row, ...}`; more as it likes.

        Raises:
            OSError: it cannot be written, as on a full disk. What was written of it is removed.
        """
        line = (json.dumps(record) + "\n").encode()
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                self._abandon(start)
                raise OSError(
                    error.errno,
                    f"An answer could not be written to the checkpoint ({error.strerror}). Make room and run again: "
                    f"what the file holds is not asked again",
                    str(self.path),
                ) from error
            self._note(record, start)

    def _abandon(self, start: int) -> None:
        """Empties the write buffer without writing it, and cuts off what reached the file."""
        path, raw = self.path, self._file.detach()
        raw.close()
        os.truncate(path, start)
        self._file = open(path, "a+b")  # noqa: SIM115
        self._keep_others_out()

    def caption(self, key: str) -> dict[str, Any] | None:
        """What the file says about the caption with this key; the last word, where it was asked again."""
        with self._lock:
            wanted = int(key, 16)
            place = self._places.get(wanted)
            if place is None:
                return None
            if self._last[0] != place:  # the captions of a request come one after the other
                self._file.seek(place)
                self._last = (place, json.loads(self._file.readline()))
            return next(each for each in self._last[1]["captions"] if int(each["key"], 16) == wanted)

    def _keep_others_out(self) -> None:
        if os.name != "posix":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(
                error.errno,
                "Another run writes to this `checkpoint`. Wait for it, or give this run another file",
                str(self.path),
            ) from error

    def _read(self, settings: dict[str, Any]) -> None:
        for number, start, record in _whole_lines(self._file, self.path):
            if number == 1:
                self._check_head(record, settings)
            else:
                self._note(record, start)
        end = self._file.tell()
        size = self._file.seek(0, os.SEEK_END)
        if size > end:
            logger.warning(
                f"The last line of the checkpoint {self.path} was cut off ({size - end} bytes): it is removed, and "
                f"its captions are asked again."
            )
            self._file.truncate(end)
        if end == 0:
            self._file.write((json.dumps({"kind": _KIND, "version": 1, "settings": settings}) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def _check_head(self, record: dict, settings: dict[str, Any]) -> None:
        if record.get("kind") != _KIND or record.get("version") != 1:
            raise ValueError(f"`checkpoint` {self.path} is no checkpoint of this generator. Give another path.")
        made = record.get("settings")
        if not isinstance(made, dict):
            raise ValueError(f"`checkpoint` {self.path} states no settings in its first line. Give another path.")
        differ = sorted(name for name in {*made, *settings} if made.get(name) != settings.get(name))
        if differ:
            changes = ", ".join(f"`{name}` was {made.get(name)!r} and is {settings.get(name)!r}" for name in differ)
            raise ValueError(
                f"`checkpoint` {self.path} holds answers to other settings: {changes}. Keep the settings to go on, "
                f"or give another path to begin anew."
            )

    def _note(self, record: dict[str, Any], start: int) -> None:
        try:
            self.spent += Usage(**record["usage"])
            for each in record["captions"]:
                if not isinstance(each.get("rejected", []), list):
                    raise TypeError("`rejected` is no list")
                self._places[int(each["key"], 16)] = start
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`checkpoint` {self.path} holds a line of another kind ({error}) at byte {start}. Remove it."
            ) from error


def _whole_lines(file: Any, path: Path) -> Iterator[tuple[int, int, dict]]:
    """Lines with their number and place; leaves the file where the last whole one ends."""
    file.seek(0)
    number = start = 0
    for number, line in enumerate(iter(file.readline, b""), start=1):
        following = file.tell()
        try:
            record = parse_json(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            last = not file.read(1)
            if not last:
                raise ValueError(
                    f"`checkpoint` {path} is damaged in line {number}: {line[:80]!r}. Remove that line to ask its "
                    f"captions again."
                )
            break
        yield number, start, record
        start = following
        file.seek(start)
    file.seek(start)


def read_rejected(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """
    The answers that were refused, out of a checkpoint.

    Args:
        path (`str` or `os.PathLike`): The checkpoint.

    Yields:
        `dict`: `row` and `caption`, the `reason` ([`REASONS`]), `detail`, and what was `said`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint` {path} does not exist.")
    with path.open("rb") as file:
        for number, _, record in _whole_lines(file, path):
            try:
                for each in record.get("captions", ()) if number > 1 else ():
                    for refusal in each["rejected"]:
                        yield {"row": each["row"], "caption": each["caption"], **refusal}
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"`checkpoint` {path} holds something else in line {number} ({error!r}). Remove that line."
                ) from error


def count_rejected(path: str | os.PathLike) -> Counter[str]:
    """How many answers of a checkpoint were refused, by reason."""
    return Counter(str(refusal.get("reason")) for refusal in read_rejected(path))
