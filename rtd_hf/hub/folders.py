"""The folder that a run writes into: nobody else's files are touched."""

import errno
import json
import os
from pathlib import Path


OWNER_FILE = ".rtd_hf.json"


def prepare_output_dir(folder: str | os.PathLike) -> Path:
    """Makes sure `folder` can take our files, before any work is done, and marks it as ours.

    A folder is taken when it does not exist yet, is empty, or carries the marker file `.rtd_hf.json` that this
    function leaves in it; so running the same command twice just works, and nobody else's files are overwritten.
    Several processes may call it at the same time.

    Args:
        folder (`str` or `os.PathLike`): The folder, made with its parents where it is missing.

    Returns:
        `Path`: The folder.

    Raises:
        FileExistsError: The folder holds files that were not written by `rtd_hf`.
        NotADirectoryError: The path, or a part of it, is a file.
        PermissionError: The folder cannot be made or written.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"The output folder `{folder}` cannot be made: it, or a part of its path, is a file. "
            "Choose another output folder."
        ) from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, PermissionError(errno.EACCES, "Permission denied"))
    # Listed first, asked for the marker second: another process that starts at the same time can only add the marker.
    entries = sorted(entry.name for entry in folder.iterdir())
    marker = folder / OWNER_FILE
    if entries and not marker.is_file():
        shown = ", ".join(f"`{name}`" for name in entries[:5]) + (", ..." if len(entries) > 5 else "")
        raise FileExistsError(
            f"The output folder `{folder}` holds {len(entries)} entries that rtd_hf did not write: {shown}. "
            "Nothing was changed. Choose an empty or a new folder, such as a sub-folder of this one."
        )
    try:
        marker.write_text(ownership(), encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def ownership() -> str:
    """What stands in the marker file, in a folder and in a repository on the Hub."""
    from .. import __version__

    return json.dumps({"written_by": "rtd_hf", "version": __version__}) + "\n"


def _unwritable(folder: Path, error: OSError) -> OSError:
    """`error` as one that names the folder and the remedy; anything else (a full disk, say) stays as it is."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return error
    return PermissionError(
        f"The output folder `{folder}` cannot be written ({error.strerror}). Nothing was changed. "
        "Give yourself write access to it, or choose another output folder."
    )
