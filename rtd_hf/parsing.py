"""Files that others wrote, as plain values: nothing in them runs, and none fills the memory or the stack."""

import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


# Annotations and captions shrink five to twenty times. What shrinks more than this is nothing but a filled memory.
_MOST_TIMES = 200
_ALWAYS_FINE = 1 << 26  # bytes
_AT_ONCE = 1 << 20
PACKING_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
_DEEPEST = 1_000
_STRING = re.compile(rb'"[^"\\\r\n]*+(?:\\[^\r\n][^"\\\r\n]*+)*+"?')
_NO_MARKS = bytes(set(range(256)) - set(b"[]{}"))
_JSON_FILE = re.compile(r"\.(json|jsonl|ndjson)(\.gz)?$", re.IGNORECASE)  # as `datasets` knows them
_MOST_VALUES = 100_000  # of a YAML text, in which one line may stand for millions


class Unpacked(gzip.GzipFile):
    """
    A `.gz` file that is not unpacked any further once it proves to hold next to nothing but repetition.

    Args:
        path (`str` or `os.PathLike`): The file.

    Raises:
        gzip.BadGzipFile: while reading, at more than 64 MiB that are more than 200 times the file's size.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path, "rb")
        self._most = max(_ALWAYS_FINE, _MOST_TIMES * os.path.getsize(path))

    def read1(self, size: int = -1) -> bytes:
        """See `gzip.GzipFile`."""
        data = super().read1(_AT_ONCE if size < 0 else size)
        if self.tell() > self._most:
            raise gzip.BadGzipFile(f"it unpacks to more than {self._most:,} bytes, {_MOST_TIMES} times its size")
        return data

    def read(self, size: int | None = -1) -> bytes:
        """See `gzip.GzipFile`."""
        pieces, wanted = [], -1 if size is None else size
        while wanted and (piece := self.read1(wanted)):
            pieces.append(piece)
            wanted -= len(piece) if wanted > 0 else 0
        return b"".join(pieces)


def read_bytes(path: Path) -> bytes:
    """
    All of a file; `.gz` is unpacked.

    Raises:
        ValueError: it is packed and damaged, or unpacks to no end; the message does not name it.
        OSError: it cannot be read.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    with errors_of_packing(), Unpacked(path) as file:
        return file.read()


def open_text(path: Path, *, newline: str | None = None) -> io.TextIOBase:
    """A text file in UTF-8, with or without a byte order mark; `.gz` is unpacked. Read it in [`errors_of_packing`]."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(Unpacked(path), encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


@contextmanager
def errors_of_packing() -> Iterator[None]:
    """Errors of a damaged `.gz` file as `ValueError`."""
    try:
        yield
    except PACKING_ERRORS as error:
        raise ValueError(f"{error}") from error


def parse_json(content: str | bytes, *, unique_keys: bool = False) -> Any:
    """
    JSON text as values.

    Args:
        content (`str` or `bytes`): The text; bytes in UTF-8, with or without a byte order mark, 16 or 32.
        unique_keys (`bool`, *optional*, defaults to `False`): Refuse a key that stands twice in an object, of which
            JSON readers silently keep the last.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or holds a key twice; the message names no file.
    """
    try:
        if isinstance(content, str):
            content = content.removeprefix("\ufeff")
        return json.loads(content, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{len(repeated)} keys stand twice in it (first {repeated[0]!r})")
    return dict(pairs)


def read_json(path: Path, *, unique_keys: bool = False) -> Any:
    """[`parse_json`] of a file; `.gz` is unpacked. Raises `ValueError` without the file's name, and `OSError`."""
    return parse_json(read_bytes(path), unique_keys=unique_keys)


def parse_yaml(text: str) -> Any:
    """
    YAML text as plain values; its tags make no objects.

    Args:
        text (`str`): The text.

    Raises:
        ValueError: it is no YAML, is nested too deeply, or stands for more values than options can be, as texts do
            that multiply what they refer to; the message names no file.
    """
    import yaml

    try:
        values = yaml.safe_load(text)
        _count_values(values)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{error}") from error
    # PyYAML's own values, such as a date or a truth, fail in their own ways.
    except (yaml.YAMLError, AttributeError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(f"it is not valid YAML: {error}") from error
    return values


def _count_values(values: Any) -> None:
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"it stands for more than {_MOST_VALUES:,} values")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | set | tuple):
            waiting += value


def read_object(path: Path, *, remedy: str = "Write or download it again.") -> dict[str, Any]:
    """
    A JSON file that holds an object.

    Args:
        path (`Path`): The file; `.gz` is unpacked.
        remedy (`str`, *optional*): What to do about a damaged one.

    Raises:
        ValueError: it is damaged, or holds something else; the message names it.
        OSError: it cannot be read.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"`{path}` ({path.stat().st_size:,} bytes) cannot be read: {error}. {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a JSON object, but holds a {type(content).__name__}. {remedy}")
    return content


def check_nesting(path: Path) -> None:
    """
    Makes sure that JSON is not nested so deeply that a reader in C++ runs out of its stack, which ends the process.

    Args:
        path (`Path`): A file of one JSON value, or of one a line, or a folder with such files, packed as `.gz` or not.
            Flat rows are told by their ends: half a gigabyte of them takes three seconds.

    Raises:
        ValueError: it is, or it is packed and damaged; the message names the file.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if _JSON_FILE.search(file.name) and file.is_file():
                check_nesting(file)
        return
    deepest = depth = 0
    try:
        with errors_of_packing(), Unpacked(path) if path.suffix == ".gz" else path.open("rb") as file:
            while deepest <= _DEEPEST and (lines := file.readlines(_AT_ONCE)):
                deepest, depth = _depths(b"".join(line for line in lines if not _is_flat(line)), depth)
    except ValueError as error:
        raise ValueError(f"`{path}` cannot be unpacked: {error}.") from error
    if deepest > _DEEPEST:
        raise ValueError(f"`{path}` is nested too deeply for a table.")


def _is_flat(line: bytes) -> bool:
    """Whether an object begins and ends a line and is all in it. No string of JSON goes on over the end of a line."""
    return line[:1] == b"{" and line[-2:] == b"}\n" and line.count(b"{") == line.count(b"}") == 1 and b"[" not in line


def _depths(lines: bytes, depth: int) -> tuple[int, int]:
    """How deep lines that begin at a depth get, and where they end."""
    import numpy as np

    marks = np.frombuffer(_STRING.sub(b"", lines).translate(None, _NO_MARKS), np.uint8)
    if not len(marks):
        return depth, depth
    steps = np.where((marks == ord("[")) | (marks == ord("{")), np.int8(1), np.int8(-1))
    depths = depth + np.cumsum(steps, dtype=np.int32)
    # Readers begin anew in the middle of a file, so what closes more than was open leaves no credit.
    depths -= np.minimum(np.minimum.accumulate(depths), 0)
    return int(depths.max()), int(depths[-1])
