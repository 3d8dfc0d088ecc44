"""Opening picture files: a damaged one is an error that names it, never a grey picture or a shorter list."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from PIL import Image


_SUFFIXES = (".png", ".jpg", ".jpeg")
# Pillow knows more kinds of files, by their contents and not by their names; one of them, EPS, is a program that it
# has Ghostscript run.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# How a whole file ends. Some programs append data of their own, so a file that ends otherwise is decoded to be sure.
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_TURNS = dict(
    enumerate("FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(), 2)
)


def open_image(source: str | os.PathLike | bytes, *, name: str | None = None, upright: bool = False) -> "Image.Image":
    """
    Reads a picture file to its last byte, as 8-bit RGB.

    `PIL.Image.open` reads the header only, so a file that was cut short would show up much later and without its name.

    Every kind of picture becomes RGB as in the loaders of the CIR benchmarks: grey is tripled, CMYK is converted, and
    transparency is dropped (what lies under it shows). Of 16-bit grey the high byte counts, where Pillow alone would
    turn all but the darkest pixels white. An EXIF orientation is **not** followed by default, because those loaders do
    not do it: the pixels stay as they are stored (of TIFF files alone Pillow turns them itself, there as here).

    Args:
        source (`str`, `os.PathLike` or `bytes`): The file, or what one holds.
        name (`str`, *optional*): What to call it in an error; the path by default.
        upright (`bool`, *optional*, defaults to `False`): Turn it as its EXIF orientation says, as viewers show it.

    Returns:
        `PIL.Image.Image` in RGB; the file is closed.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is cut short, damaged, no picture, has more pixels than Pillow's limit against decompression
            bombs (about 179 million), or holds numbers without a range that says what is white.
    """
    from PIL import Image

    if isinstance(source, bytes):
        name, size, file = name or "without a name", len(source), io.BytesIO(source)
    else:
        file = Path(source)
        name = name or str(file)
        if not file.is_file():
            raise FileNotFoundError(f"There is no picture at {name}. Check the folder, the name and its extension.")
        size = file.stat().st_size
    try:
        with Image.open(file, formats=_formats()) as image:
            return _turned(_as_rgb(image), image) if upright else _as_rgb(image)
    except Image.DecompressionBombError as error:
        raise OSError(
            f"The picture {name} ({size} bytes) is too large to be opened safely ({error}). Scale it down, or raise "
            f"`PIL.Image.MAX_IMAGE_PIXELS` if you trust it."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's formats each have their own
        raise OSError(
            f"The picture {name} ({size} bytes) is damaged, cut short, or no picture at all ({error}). "
            f"Copy or download it again."
        ) from error


def _formats() -> list[str]:
    """The kinds of pictures that are opened, those of them that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _as_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of mode {image.mode}, of which none is said to be white")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours as the straight way, without Pillow's warning
    return image.convert("RGB")


def _turned(rgb: "Image.Image", image: "Image.Image") -> "Image.Image":
    """The pixels as the orientation of the picture that they come from says."""
    from PIL import Image

    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except MemoryError:
        raise
    except Exception:  # an entry that cannot be read asks for nothing, and the pixels are whole
        return rgb
    if turn is None:
        return rgb
    turned = rgb.transpose(Image.Transpose[turn])
    turned.info = {}  # or whoever reads the orientation in it would turn it again
    return turned


def as_picture(image) -> "Image.Image":
    """
    What a user gives as a picture, as viewers show it: 8-bit RGB, turned as its EXIF orientation says.

    Args:
        image (path, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The picture. Of an array the numbers must be
            whole ones from 0 to 255, in the shape `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels, the
            fourth of which is dropped.

    Returns:
        `PIL.Image.Image` in RGB.

    Raises:
        TypeError: it is no such thing.
        ValueError: an array of another shape, or with other numbers.
        OSError: it cannot be read, as for [`open_image`].
    """
    from PIL import Image

    if isinstance(image, (str, os.PathLike)):
        return open_image(image, upright=True)
    if hasattr(image, "detach"):  # a tensor
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"A picture must be a path, a PIL picture or an array, got {type(image).__name__}.")
    try:
        return _turned(_as_rgb(image), image)
    except MemoryError:
        raise
    except Exception as error:
        raise OSError(f"The picture {image!r} cannot be read ({error}).") from error


def _of_array(array: np.ndarray) -> "Image.Image":
    from PIL import Image

    wanted = "whole numbers from 0 to 255 as (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels"
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[2] not in channels and array.shape[0] in channels:
        array = array.transpose(1, 2, 0)
    if 0 in array.shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in channels):
        raise ValueError(f"An array that is a picture must hold {wanted}, got the shape {array.shape}.")
    whole = array.dtype.kind in "ui"
    if not whole or array.min() < 0 or array.max() > 255:
        found = f"{array.dtype}" + (f" from {array.min()} to {array.max()}" if whole else "")
        raise ValueError(
            f"An array that is a picture must hold {wanted}, got {found}. Scale it to that range, and round: nothing "
            f"says which number is white."
        )
    array = np.ascontiguousarray(array, dtype=np.uint8)
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).convert("RGB")


def image_fault(path: str | os.PathLike, *, deep: bool = False) -> str | None:
    """
    Says what is wrong with a picture file.

    Args:
        path (`str` or `os.PathLike`): The file.
        deep (`bool`, *optional*, defaults to `False`):
            Decode every pixel. Otherwise the header is read and the file's end is looked at, which finds files that
            are empty, of another kind or cut short.

    Returns:
        `str`, *optional*: the fault with the file's name, or `None`.
    """
    from PIL import Image

    try:
        if not deep:
            with Image.open(path, formats=_formats()) as image, open(path, "rb") as file:
                end = _LAST_BYTES.get(image.format)
                file.seek(-min(len(end or b""), os.path.getsize(path)), os.SEEK_END)
                deep = end is None or file.read() != end
    except MemoryError:
        raise
    except Exception:
        deep = True  # `open_image` has the words for it
    if deep:
        try:
            open_image(path)
        except OSError as error:
            return str(error)
    return None


def leads_out(path: str) -> bool:
    """Whether a path that stands in a file is absolute or goes up (`..`), on whatever system."""
    pieces = path.replace("\\", "/").split("/")
    return path.startswith(("/", "\\")) or ".." in pieces or path[1:2] == ":"


class ImageFolders:
    """
    Finds picture files by their names without extension; each folder is listed once.

    Args:
        folders (`Sequence[Path]`): Where to look; the first that has a picture wins, one that does not exist has none.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = tuple(Path(folder) for folder in folders)
        self._listings: dict[Path, dict[str, Path]] = {}

    def find(self, name: str) -> Path | None:
        """
        The file `name.png`, `.jpg` or `.jpeg` (in this order, in any case) of a relative path, or `None`.

        Raises:
            ValueError: the path leads out of the folders.
        """
        if leads_out(name):
            raise ValueError(
                f"The picture {name!r} does not lie below {' or '.join(map(str, self.folders)) or 'any folder'}. Its "
                f"list names it by a path that leads elsewhere; such files are not opened."
            )
        folder, _, stem = name.rpartition("/")
        for base in self.folders:
            path = self.listing(base / folder if folder else base).get(stem)
            if path is not None:
                return path
        return None

    def listing(self, folder: Path) -> dict[str, Path]:
        """The pictures that lie in a folder itself, by their names without extension."""
        if folder not in self._listings:
            found: dict[str, Path] = {}
            for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
                stem, suffix = os.path.splitext(name)
                rank = _rank(suffix)
                if rank is not None and (stem not in found or rank < _rank(found[stem].suffix)):
                    found[stem] = folder / name
            self._listings[folder] = found
        return self._listings[folder]


def _rank(suffix: str) -> int | None:
    return _SUFFIXES.index(suffix.lower()) if suffix.lower() in _SUFFIXES else None


def pad_to_ratio(image: "Image.Image", ratio: float = 1.25) -> "Image.Image":
    """
    Pads the short side of a long picture with black, so that its sides are at most as 1 to `ratio`.

    The preprocessing `"targetpad"` of SEARLE and FTI4CIR, before CLIP's own (Baldrati et al., CVPRW 2022,
    "Conditioned and composed image retrieval combining and partially fine-tuning CLIP-based features"): less of a long
    picture is lost to the centre crop.

    Args:
        image (`PIL.Image.Image`): The picture.
        ratio (`float`, *optional*, defaults to 1.25): Longer side over shorter side, at most.

    Returns:
        `PIL.Image.Image`: padded evenly on both sides by whole pixels, or the picture as it came.
    """
    from PIL import ImageOps

    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    side = max(width, height) / ratio
    across, down = (int(max((side - length) / 2, 0)) for length in (width, height))
    return ImageOps.expand(image, (across, down, across, down), fill=0)
