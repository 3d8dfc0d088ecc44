"""The files in which image features are kept: written whole, checked when read, told apart by what they depend on."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from .distributed import rank
from .files import hash_bytes, whole_file
from .parsing import parse_json


logger = logging.get_logger(__name__)

FORMAT = "rtd_hf image features 1"


class Features(NamedTuple):
    """
    Features of some pictures.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): float32.
        digests (`np.ndarray` of shape `(N, 16)`, uint8): Hashes of the pictures' pixels.
    """

    image_embeds: torch.Tensor
    digests: np.ndarray


class FeatureFolder:
    """
    The files of one gallery in a folder that many galleries and encoders share.

    A file is named `GALLERY.IDS.ENCODER.safetensors`, with hashes of the ids and of the fingerprint; what an
    unfinished run has done lies in `GALLERY.IDS.ENCODER.part-00000.safetensors` and so on. Files of the same encoder
    lend each other embeddings of the same pictures, whatever these are called.

    Args:
        folder (`Path`): Made where it is missing.
        name (`str`): The gallery's name.
        ids (`Sequence[str]`): Its pictures.
        fingerprint (`Mapping[str, str]`): What the embeddings depend on besides the pictures.
    """

    def __init__(self, folder: Path, name: str, ids: Sequence[str], fingerprint: Mapping[str, str] | None):
        if not fingerprint:
            raise ValueError("`fingerprint` must say what the features depend on where they are kept on disk.")
        self.folder, self.fingerprint = folder, dict(fingerprint)
        self.name = re.sub(r"[^\w-]", "_", name) or "gallery"
        self.encoder = hash_bytes(json.dumps(self.fingerprint, sort_keys=True).encode())[:12]
        self.path = self._path(ids)
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, ids: Sequence[str]) -> Path:
        named = hash_bytes(json.dumps(list(ids)).encode())[:12]
        return self.folder / f"{self.name}.{named}.{self.encoder}.safetensors"

    def read(self) -> Features | None:
        """
        The features of the gallery.

        Returns:
            [`Features`], or `None` if there are none that can be used; a warning says why, unless there is no file.

        Raises:
            ValueError: There is a file of this name that is not ours.
        """
        return self._read(self.path) if self.path.is_file() else None

    def _read(self, path: Path) -> Features | None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()} if "format" in metadata else {}
        except SafetensorError as error:
            logger.warning(
                f"The features in `{path}` ({path.stat().st_size:,} bytes) are damaged or half-written ({error}). "
                f"They are made anew."
            )
            return None
        if metadata.get("format") != FORMAT or {"image_embeds", "digests"} - tensors.keys():
            raise ValueError(
                f"`{path}` stands where features are kept, but is something else (format {metadata.get('format')!r}, "
                f"not {FORMAT!r}). Nothing was changed. Move it away, or choose another folder."
            )
        try:
            fingerprint = parse_json(metadata.get("fingerprint", ""))
        except ValueError:
            fingerprint = None
        if fingerprint != self.fingerprint:
            logger.warning(f"The features in `{path}` are of another encoder than its name says. They are made anew.")
            return None
        embeds, digests = tensors["image_embeds"], tensors["digests"].numpy()
        if metadata.get("checksum") != _checksum(embeds, digests) or len(embeds) != len(digests):
            logger.warning(f"The features in `{path}` are damaged: their checksum differs. They are made anew.")
            return None
        return Features(embeds, digests)

    def known(self) -> dict[bytes, torch.Tensor]:
        """The embeddings by digest of all pictures that this encoder has seen, in whatever gallery."""
        found: dict[bytes, torch.Tensor] = {}
        for path in sorted(self.folder.glob(f"*.{self.encoder}.*safetensors")):
            features = self._read(path)
            if features is not None:
                keys = (digest.tobytes() for digest in features.digests)
                found.update(zip(keys, features.image_embeds, strict=True))
        return found

    def write(self, ids: Sequence[str], features: Features) -> None:
        """
        Writes the features of a gallery that is finished, and removes what lay there of unfinished runs.

        Args:
            ids (`Sequence[str]`): The pictures there are features of.
            features ([`Features`]): In the same order.
        """
        self._write(self._path(ids), features)
        for part in self.folder.glob(f"{self._stem}.part-*.safetensors"):
            part.unlink(missing_ok=True)

    def write_part(self, number: int, features: Features) -> None:
        """Writes some features of a gallery that is not finished; a name that is taken is of an earlier run."""
        path = self.folder / f"{self._stem}.part-{rank():03d}-{number:05d}.safetensors"
        while path.exists():
            number += 1
            path = self.folder / f"{self._stem}.part-{rank():03d}-{number:05d}.safetensors"
        self._write(path, features)

    @property
    def _stem(self) -> str:
        return self.path.name.removesuffix(".safetensors")

    def _write(self, path: Path, features: Features) -> None:
        embeds = features.image_embeds.contiguous()
        metadata = {
            "format": FORMAT,
            "gallery": self.name,
            "fingerprint": json.dumps(self.fingerprint, sort_keys=True),
            "checksum": _checksum(embeds, features.digests),
        }
        tensors = {"image_embeds": embeds, "digests": torch.from_numpy(np.array(features.digests))}
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)


def _checksum(embeds: torch.Tensor, digests: np.ndarray) -> str:
    return hash_bytes(embeds.numpy(), np.ascontiguousarray(digests))
