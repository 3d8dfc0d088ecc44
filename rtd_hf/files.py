"""Files that are whole or not there, and hashes by which their contents are told apart."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import numpy as np
    import torch

_HASHED_AT_ONCE = 1 << 26  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What is no OSError: safetensors' own error, and those of torch's writer, which notices only that bytes are missing.
_SAYS_NO_ROOM = re.compile(
    rf"os error (?:{'|'.join(map(str, _NO_ROOM))})\b"
    r"|unexpected pos \d+ vs \d+|PytorchStreamWriter failed|iostream error"
)


class NoRoomError(OSError):
    """A disk, or what its user may take of it, is full. The message says what could not be written, and what to do."""

    def __init__(self, message: str):
        super().__init__(message)
        self.errno = errno.ENOSPC  # not handed to OSError, which would put it in front of the message


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    A temporary file to write to, which becomes `path` at once: no kill and no power cut leaves half of `path`.

    Args:
        path (`Path`): The file, in a folder that exists.

    Yields:
        `Path`: What to write to, `path` with `.tmp` behind it. It is removed on an exception.

    Raises:
        NoRoomError: The disk is full; the message says how much is free.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    written = 0
    with room_for(f"`{path}`", path.parent, needed=lambda: written):
        try:
            yield temporary
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, path)
        except BaseException:
            written = temporary.stat().st_size if temporary.is_file() else 0
            temporary.unlink(missing_ok=True)
            raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        _sync(path.parent, os.O_RDONLY)


@contextmanager
def room_for(
    what: str, folder: Path, *, needed: int | Callable[[], int] = 0, advice: str = "and run the same again"
) -> Iterator[None]:
    """
    Says in plain words that a disk is full, where libraries have many words for it.

    Args:
        what (`str`): What is written.
        folder (`Path`): Where.
        needed (`int` or `Callable[[], int]`, *optional*): Bytes it takes, at least; not said where it is 0.
        advice (`str`, *optional*): What to do besides making room.

    Raises:
        NoRoomError: instead of an error that says so, which is its cause.
    """
    try:
        yield
    except NoRoomError:
        raise
    except Exception as error:
        if not lacks_room(error):
            raise
        size = needed() if callable(needed) else needed
        takes = f" It takes more than {readable_bytes(size)}." if size else ""
        raise NoRoomError(
            f"{what} could not be written: the disk of `{folder}` is full, or a quota or a limit on the size of files "
            f"is used up ({first_line(error)}).{takes} {readable_bytes(free_bytes(folder))} are free there now; "
            f"nothing half-written was kept. Make room {advice}."
        ) from error


def lacks_room(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that a disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in _NO_ROOM) or _SAYS_NO_ROOM.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def free_bytes(folder: Path) -> int:
    """What can be written to the disk of a folder, which need not be there yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def readable_bytes(size: int) -> str:
    """`1234567` -> `1.2 MB`."""
    for bound, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= bound:
            return f"{size / bound:.1f} {unit}"
    return f"{size} bytes"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_bytes(*contents: "bytes | np.ndarray") -> str:
    """128 bits of blake2b over bytes and arrays, as 32 letters."""
    state = hashlib.blake2b(digest_size=16)
    for content in contents:
        state.update(content)
    return state.hexdigest()


def hash_weights(weights: "Mapping[str, torch.Tensor]") -> str:
    """128 bits of blake2b over names, shapes, dtypes and bytes of tensors, in the order of their names."""
    import torch

    state = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        weight = weights[name].detach()
        state.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        # A piece at a time, so that the weights on a GPU are never all on the CPU as well.
        for piece in weight.reshape(-1).view(torch.uint8).split(_HASHED_AT_ONCE):
            state.update(piece.cpu().numpy())
    return state.hexdigest()
