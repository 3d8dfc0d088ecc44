"""
Pictures through a frozen image tower: every one once, read by workers, shared among processes, kept on disk.

Encoding pictures is nearly all that an evaluation costs (123,403 of them for CIRCO), and a picture that cannot be read
is what makes two results differ without a word. So a picture that fails is named, and all of them at once.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from .distributed import gather_objects, rank, world_size
from .feature_files import FeatureFolder, Features
from .files import hash_bytes, hash_weights


logger = logging.get_logger(__name__)

_PROBES = 16  # pictures of a kept gallery that are looked at again
_SAVED_AT_ONCE = 8192  # pictures encoded between two writes of an unfinished gallery


class UnreadableImagesError(OSError):
    """
    Pictures that cannot be read, all of them.

    Args:
        faults (`Mapping[str, str]`): By id, or by number, what is wrong with each.
        number (`int`): How many pictures there are.
        cure (`str`, *optional*): What to do, at the end of the message.
        rows (`Mapping[int, str]`, *optional*): The same by number.
    """

    def __init__(
        self, faults: Mapping[str, str], number: int, *, cure: str = "", rows: Mapping[int, str] | None = None
    ):
        self.faults, self.rows = dict(faults), dict(rows or {})
        lines = "\n".join(f"  {name}: {fault}" for name, fault in self.faults.items())
        super().__init__(f"{len(faults)} of {number} pictures cannot be read:\n{lines}{cure and chr(10) + cure}")


class GalleryFeatures(NamedTuple):
    """
    The pictures of a gallery that could be read.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): Their embeddings, float32, on the CPU, in the order asked for.
        unreadable (`dict[str, str]`): By id what is wrong with the others.
    """

    image_embeds: torch.Tensor
    unreadable: dict[str, str]


class Encoded(NamedTuple):
    """
    What came of the pictures asked for. The rows of those that cannot be read are left out of the arrays.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): float32, on the CPU.
        patch_embeds (`torch.Tensor` of shape `(N, 1 + patches, W)`, *optional*): The vision tokens.
        digests (`np.ndarray` of shape `(N, 16)`, uint8): Hashes of the pictures' pixels.
        faults (`dict[int, str]`): By number what is wrong with a picture.
    """

    image_embeds: torch.Tensor
    patch_embeds: torch.Tensor | None
    digests: np.ndarray
    faults: dict[int, str]


@dataclass(frozen=True)
class PictureEncoder:
    """
    Reads pictures and encodes them, in batches.

    Args:
        opened (`Callable[[image], PIL.Image.Image]`): Makes a picture of an array or a path.
        pixels (`Callable[[image], torch.Tensor]`): From a picture to what the tower reads, `(3, height, width)`.
        encode (`Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]`): From `(B, 3, height, width)` to image
            embeddings `(B, D)` and vision tokens.
        batch_size (`int`): Pictures encoded at once.
        num_workers (`int`, *optional*, defaults to 0): Processes that read ahead; 0 reads in this one.
        shared (`bool`, *optional*, defaults to `False`): Share the batches among the processes of
            `torch.distributed`, which then all have to make the same calls. A batch holds the same pictures whatever
            their number, so the embeddings are the same, too.
    """

    opened: Callable
    pixels: Callable
    encode: Callable
    batch_size: int
    num_workers: int = 0
    shared: bool = False

    def __call__(
        self,
        get: Callable[[int], object],
        number: int,
        *,
        patches: bool = False,
        strict: bool = True,
        known: "_Known | None" = None,
    ) -> Encoded:
        """Encodes the pictures `get(0)` to `get(number - 1)`.

        Args:
            get (`Callable[[int], image]`): Opens a picture.
            number (`int`): How many.
            patches (`bool`, *optional*): Also return the vision tokens.
            strict (`bool`, *optional*, defaults to `True`): Raise if one cannot be read. From the first one on the
                others are read, so as to name all that cannot be, and not encoded.
            known (*optional*): What need not be encoded again, by its digest.

        Returns:
            [`Encoded`]

        Raises:
            UnreadableImagesError: If pictures cannot be read, and `strict`.
            ValueError: If an embedding is not finite.
        """
        starts = range(0, number, self.batch_size)
        batches = [list(range(start, min(start + self.batch_size, number))) for start in starts]
        own = batches[rank() :: world_size()] if self.shared else batches
        parts = [self._own(get, own, patches=patches, strict=strict, known=known)]
        if self.shared:
            parts = [_Rows(*part) for part in gather_objects(tuple(parts[0]))]
        faults = {row: fault for part in parts for row, fault in part.faults.items()}
        if faults and strict:
            raise UnreadableImagesError({f"number {row}": faults[row] for row in sorted(faults)}, number, rows=faults)
        order = np.argsort(np.concatenate([np.asarray(part.rows, dtype=np.int64) for part in parts]), kind="stable")
        digests = np.frombuffer(b"".join(digest for part in parts for digest in part.digests), np.uint8)
        digests = digests.reshape(-1, 16)[order]
        embeds = torch.cat([embeds for part in parts for embeds in part.embeds] or [torch.empty(0, 0)])
        tokens = [tokens for part in parts for tokens in part.tokens]
        order = torch.from_numpy(order)
        embeds = _alike(embeds[order], digests)
        _check_finite(embeds)
        return Encoded(embeds, torch.cat(tokens)[order] if tokens else None, digests, dict(sorted(faults.items())))

    def _own(self, get, batches: list[list[int]], *, patches: bool, strict: bool, known: "_Known | None") -> "_Rows":
        found = _Rows([], [], [], [], {})
        number = sum(map(len, batches))
        shown = {"disable": True} if len(batches) < 4 or rank() > 0 else {}  # given, it would outdo `TQDM_DISABLE`
        with tqdm(total=number, desc="Encoding images", unit="image", leave=False, **shown) as bar:
            for rows, digests, pixels, faults in self._read(get, batches):
                found.faults.update(faults)
                bar.update(len(rows) + len(faults))
                if rows and not (found.faults and strict):
                    embeds, tokens = self._encode(digests, pixels, patches, known)
                    found.rows.extend(rows)
                    found.digests.extend(digests)
                    found.embeds.append(embeds)
                    found.tokens.extend([] if tokens is None else [tokens])
        return found

    def _read(self, get, batches: list[list[int]]) -> Iterator["_Batch"]:
        pictures = _Pictures(get, max((batch[-1] + 1 for batch in batches), default=0), self.opened, self.pixels)
        # A worker that cannot start is an error of its own, so there are none where there is nothing to read ahead.
        workers = min(self.num_workers, len(batches)) if len(batches) > 1 else 0
        # With a generator of its own it draws nothing from the one that trainings use.
        loader = DataLoader(
            pictures, batch_sampler=batches, num_workers=workers, collate_fn=_collate, generator=torch.Generator()
        )
        return iter(loader)

    @torch.inference_mode()
    def _encode(self, digests, pixels: torch.Tensor, patches: bool, known: "_Known | None"):
        if known is None:
            embeds, tokens = self.encode(pixels)
            return embeds.float().cpu(), tokens.float().cpu() if patches else None
        kept = [known.find(digest) for digest in digests]
        new = [place for place, embedding in enumerate(kept) if embedding is None]
        if new:
            embeds, _ = self.encode(pixels[new])
            for place, embedding in zip(new, embeds.float().cpu(), strict=True):
                kept[place] = embedding
            known.add([digests[place] for place in new], [kept[place] for place in new])
        return torch.stack(kept), None


class _Rows(NamedTuple):
    """One process's share: the numbers of the pictures, their digests, embeddings and tokens by batch, the faults."""

    rows: list[int]
    digests: list[bytes]
    embeds: list[torch.Tensor]
    tokens: list[torch.Tensor]
    faults: dict[int, str]


class _Pictures(Dataset):
    """`(number, (digest, pixels))`, or `(number, fault)`: a worker that raised would hide all others' faults."""

    def __init__(self, get: Callable, number: int, opened: Callable, pixels: Callable):
        self.get, self.number, self.opened, self.pixels = get, number, opened, pixels

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, row: int) -> tuple[int, object]:
        try:
            image = self.opened(self.get(row))
        except OSError as error:
            return row, str(error)
        try:
            return row, (picture_digest(image), self.pixels(image))
        except ValueError as error:  # an image processor's, of a picture one pixel wide, say
            return row, f"It cannot be prepared for the image tower ({error})."


class _Batch(NamedTuple):
    """What a worker made of a batch: numbers, digests and pixels `(n, 3, height, width)`, and the faults of others."""

    rows: list[int]
    digests: list[bytes]
    pixels: torch.Tensor | None
    faults: dict[int, str]


def _collate(items: list[tuple[int, object]]) -> _Batch:
    # In the worker: each tensor on its own would cost this process a file descriptor, of which there are 1,024.
    good = [(row, *item) for row, item in items if not isinstance(item, str)]
    rows, digests, pixels = map(list, zip(*good, strict=True)) if good else ([], [], [])
    faults = {row: item for row, item in items if isinstance(item, str)}
    return _Batch(rows, digests, torch.stack(pixels) if good else None, faults)


def picture_digest(image) -> bytes:
    """16 bytes that tell pictures apart, of a PIL picture or an array: its kind, size and pixels."""
    if isinstance(image, np.ndarray):
        return bytes.fromhex(hash_bytes(f"{image.dtype} {image.shape}".encode(), np.ascontiguousarray(image)))
    return bytes.fromhex(hash_bytes(f"{image.mode} {image.size}".encode(), image.tobytes()))


def _alike(embeds: torch.Tensor, digests: np.ndarray) -> torch.Tensor:
    """Gives copies of a picture the embedding of the first: the place in a batch shows in the last bits otherwise."""
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return embeds if len(first) == len(embeds) else embeds[torch.from_numpy(first[inverse.reshape(-1)])]


def _check_finite(embeds: torch.Tensor) -> None:
    bad = ~embeds.isfinite().all(dim=1)
    if bad.any():
        raise ValueError(
            f"The image tower gave NaN or infinity for {int(bad.sum())} of {len(bad)} pictures (the first is number "
            f"{int(bad.int().argmax())}). Look for a damaged `vision_model`, or half precision that overflowed."
        )


# What is kept on disk


def image_fingerprint(vision_model: torch.nn.Module, image_processor, before: str) -> dict[str, str]:
    """
    What image embeddings depend on besides the pictures.

    Args:
        vision_model (`PreTrainedModel`): The image tower.
        image_processor: Its image processor.
        before (`str`): What is done to a picture before that, such as `"targetpad"`.

    Returns:
        `dict[str, str]`: `weights`, `architecture` and `preprocessing`.
    """
    told = ("_name_or_path", "transformers_version")  # where it was loaded from plays no part
    config = {name: value for name, value in vision_model.config.to_dict().items() if name not in told}
    steps = {name: value for name, value in image_processor.to_dict().items() if name not in told and name[0] != "_"}
    steps |= {"class": type(image_processor).__name__, "before": before}
    return {
        "weights": hash_weights(vision_model.state_dict()),
        "architecture": json.dumps(config, sort_keys=True, default=str),
        "preprocessing": json.dumps(steps, sort_keys=True, default=str),
    }


@dataclass
class _Known:
    """Embeddings by digest: of other galleries, of earlier and unfinished runs; what is new is written in between."""

    folder: FeatureFolder
    number: int = 0
    digests: list[bytes] = field(default_factory=list)
    embeds: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self):
        self._kept = self.folder.known()

    def find(self, digest: bytes) -> torch.Tensor | None:
        """The embedding of a picture, if there is one."""
        return self._kept.get(digest)

    def add(self, digests: Sequence[bytes], embeds: Sequence[torch.Tensor]) -> None:
        """Takes what was encoded, and writes it once it is enough to be missed."""
        self._kept.update(zip(digests, embeds, strict=True))
        self.digests += digests
        self.embeds += embeds
        if len(self.digests) >= _SAVED_AT_ONCE:
            embeds = torch.stack(self.embeds)
            if embeds.isfinite().all():  # else the run ends with an error that says so, and leaves nothing behind
                self.folder.write_part(self.number, Features(embeds, _array(self.digests)))
                self.number += 1
            self.digests, self.embeds = [], []


def _array(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def encode_gallery(
    encoder: PictureEncoder,
    ids: Sequence[str],
    load: Callable[[str], object],
    *,
    name: str,
    folder: str | Path | None = None,
    fingerprint: Mapping[str, str] | None = None,
    strict: bool = True,
) -> GalleryFeatures:
    """
    The embeddings of a gallery's pictures, from disk where they are there.

    Args:
        encoder ([`PictureEncoder`]): Reads and encodes.
        ids (`Sequence[str]`): The pictures, each once.
        load (`Callable[[str], image]`): Opens one by its id.
        name (`str`): What the gallery is called in file names.
        folder (`str` or `Path`, *optional*): Where features are kept; nowhere by default.
        fingerprint (`Mapping[str, str]`, *optional*): What the embeddings depend on besides the pictures. Required
            with `folder`.
        strict (`bool`, *optional*, defaults to `True`): Raise if pictures cannot be read; else they are left out.

    Returns:
        [`GalleryFeatures`]

    Raises:
        UnreadableImagesError: If pictures cannot be read, and `strict`, or none can.
        ValueError: If an embedding is not finite, or a file in `folder` under the name that is needed is not ours.
    """
    kept = FeatureFolder(Path(folder).expanduser(), name, ids, fingerprint) if folder is not None else None
    found = _kept_features(kept, encoder, ids, load) if kept else None
    # Processes may see different disks; what one of them lacks is made by all of them.
    if all(gather_objects(found is not None)) if encoder.shared else found is not None:
        return GalleryFeatures(found.image_embeds, {})
    known = _Known(kept) if kept else None
    try:
        made = encoder(lambda row: load(ids[row]), len(ids), strict=strict, known=known)
    except UnreadableImagesError as error:
        cure = "Nothing is scored without them. Get them, or leave them out knowingly in the lenient mode."
        named = {ids[row]: error.rows[row] for row in sorted(error.rows)}
        raise UnreadableImagesError(named, len(ids), cure=cure) from error
    unreadable = {ids[row]: fault for row, fault in made.faults.items()}
    if len(unreadable) == len(ids):
        raise UnreadableImagesError(unreadable, len(ids), cure="There is nothing left to score.")
    if kept and rank() == 0:
        readable = [image_id for image_id in ids if image_id not in unreadable]
        kept.write(readable, Features(made.image_embeds, made.digests))
    return GalleryFeatures(made.image_embeds, unreadable)


def _kept_features(folder: FeatureFolder, encoder: PictureEncoder, ids, load) -> Features | None:
    """What is on disk, if the pictures there are still the ones it was made of."""
    found = folder.read()
    if found is None:
        return None
    rows = sorted({round(place) for place in np.linspace(0, len(ids) - 1, min(_PROBES, len(ids)))})
    for row in rows:
        try:
            same = picture_digest(encoder.opened(load(ids[row]))) == found.digests[row].tobytes()
        except OSError:
            same = False  # the whole gallery is read again, which names all that is wrong
        if not same:
            logger.warning(
                f"The features in `{folder.path}` are stale: the picture {ids[row]!r} is no longer the one they were "
                f"made of. They are made anew where pictures differ."
            )
            return None
    return found
