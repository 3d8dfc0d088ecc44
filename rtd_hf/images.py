"""Opening picture files: a damaged one is an error that names it, never a grey picture or a shorter list."""

import os
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL import Image


def open_image(path: str | os.PathLike) -> "Image.Image":
    """
    Reads a picture file to its last byte.

    `PIL.Image.open` reads the header only, so a file that was cut short would show up much later and without its name.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `PIL.Image.Image` in RGB; the file is closed.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is cut short, damaged, or no picture.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no picture at {path}. Check the folder, the name and its extension.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's formats each have their own
        raise OSError(
            f"The picture {path} ({path.stat().st_size} bytes) is damaged, cut short, or no picture at all ({error}). "
            f"Copy or download it again."
        ) from error


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
