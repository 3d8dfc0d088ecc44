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
