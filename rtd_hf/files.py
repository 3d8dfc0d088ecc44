"""Files that are whole or not there, and hashes by which their contents are told apart."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import numpy as np
    import torch

_HASHED_AT_ONCE = 1 << 26  # bytes


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    A temporary file to write to, which becomes `path` at once: no kill and no power cut leaves half of `path`.

    Args:
        path (`Path`): The file, in a folder that exists.

    Yields:
        `Path`: What to write to, `path` with `.tmp` behind it. It is removed on an exception.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        _sync(path.parent, os.O_RDONLY)


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
