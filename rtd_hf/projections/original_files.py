"""Opening the authors' checkpoint files: where they lie, what they look like, and never running what they hold.

A pickle is a program. The files here are opened by `torch.load(weights_only=True)` alone, torch's own interpreter
that calls nothing but what rebuilds tensors. Before that the names in the pickle are read without running it, and a
file that names anything a checkpoint does not need is refused. FTI4CIR's file is a whole pickled module; for it, the
names of its layers stand for inert objects that keep the state they are given and do nothing.
"""

import _compat_pickle
import os
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch


# What `torch.save` writes for state dicts; torch builds these for real.
_REAL = {
    "collections.OrderedDict",
    "builtins.set",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Byte")),
    *("torch.CharStorage", "torch.BoolStorage"),
    *(f"torch.{kind}" for kind in ("float32", "float16", "bfloat16", "float64", "int64")),
}
# What else the authors' files name: FTI4CIR's layers, and entries beside the weights that are dropped. All inert.
_INERT = re.compile(
    r"(\w+\.)*(i2t_model|MHTransformer)\.\w+|torch\.nn\.(modules|functional)\.[\w.]+|torch\._C\._nn\.\w+"
    r"|pathlib\.[\w.]+|argparse\.Namespace|numpy\.(_core|core)\.multiarray\.scalar|numpy\.dtype"
)
_MODULE = re.compile(r"(\w+\.)*(i2t_model|MHTransformer)\.\w+|torch\.nn\.modules\.[\w.]+")

# Weights lie outside the pickle: a whole CLIP with its optimizer needs some ten thousand operations.
_MAX_OPERATIONS = 1_000_000
_MAX_TUPLES = 20_000  # deeper nesting than the C stack can hash would end the process; a CLIP has some 3,000
_MAX_DEPTH, _MAX_MODULES = 32, 2_000

_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LOOKS = (
    (rb"version https://git-lfs", "is a git-lfs pointer, not the file itself", "Run `git lfs pull` in its repository"),
    (
        rb"(?i)\s*<",
        "is an HTML page, not a checkpoint (a log-in, an error or a virus-scan warning)",
        "Open the download link in a browser and save the file it leads to",
    ),
    (rb"\s*[\[{]", "is JSON text, not a checkpoint (an error message or a config)", "Download the weights themselves"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "is a packed archive", "Unpack it and give the file inside"),
    (
        rb"\x80",
        "is a plain pickle that `torch.save` did not write; opening it could run code, so it was not opened",
        "Give the authors' own file",
    ),
    (rb"\x00{64}", "holds zeros only: the download was reserved, but not filled", "Download it again"),
)
_HUB = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?[:/](?P<file>[^:\\]+)")


class InertObject:
    """Stands for an object of a pickled module: keeps the state that the file gives it, and does nothing.

    Attributes:
        state: What the file would have put into the object; `{}` where it holds none.
    """

    __slots__ = ("state",)

    def __new__(cls, *args: Any, **kwargs: Any):
        instance = object.__new__(cls)
        instance.state = {}
        return instance

    def __setstate__(self, state: Any):
        self.state = state


# ------------------------------------------------------------------------------------------------------ where it lies
def find_file(path: str | os.PathLike) -> Path:
    """
    A file on this machine, downloaded from the Hub where `path` names one there.

    Args:
        path (`str` or `os.PathLike`): A local file, `"repo_id:filename"`, or `"hf://repo_id/filename"`; the `repo_id`
            may carry a revision (`"user/repo@main:weights.pt"`).

    Returns:
        `Path`: The local file.

    Raises:
        FileNotFoundError: There is no such file, and the name is no Hub file either.
        IsADirectoryError: It is a folder.
        OSError: The Hub file could not be downloaded (offline, no such repository, no access).
    """
    name = os.fspath(path)
    file = Path(name).expanduser()
    if file.is_dir():
        remedy = "Name the file in it."
        if (file / "config.json").is_file():
            remedy = "It is already converted: load it with `ImageToWordProjection.from_pretrained`."
        raise IsADirectoryError(f"`path` must be a checkpoint file, but `{name}` is a folder. {remedy}")
    if file.is_file():
        return file
    hub = _HUB.fullmatch(name)
    if hub is None or not (name.startswith("hf://") or re.match(r"[^:]+/[^:]+:", name)):
        raise FileNotFoundError(
            f"`path` `{name}` does not exist. Give a checkpoint file, or a file on the Hub as `repo_id:filename`, "
            f"such as `navervision/zeroshot-cir-models:lincir_large.pt`."
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub["repo"], hub["file"], revision=hub["revision"]))
    except Exception as error:  # of many kinds: offline, gated, no such file, a name that cannot be, a broken line
        reason = str(error).strip().splitlines() or [""]
        raise OSError(
            f"`{hub['file']}` of `{hub['repo']}` could not be downloaded ({type(error).__name__}: {reason[0]}). "
            f"Without a connection, download the file elsewhere and give its `path`; `HF_HUB_OFFLINE=1` keeps "
            f"huggingface_hub from trying."
        ) from error


# ------------------------------------------------------------------------------------------------- what it looks like
def read_checkpoint(file: Path, *, wanted: str = "an image-to-word projection") -> Any:
    """
    Reads a checkpoint without running anything in it.

    Args:
        file (`Path`): A file of `torch.save`, of today's or of the old format, or a safetensors file.
        wanted (`str`, *optional*): What it is a checkpoint of, for messages.

    Returns:
        What was saved, tensors on the CPU (some may still be mapped from the file); a pickled module comes as an
        [`InertObject`].

    Raises:
        ValueError: The file is no checkpoint, is cut short or damaged, or names something no checkpoint needs.
    """
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(_ZIP):
        return _load(file, _names_in_zip(file, wanted), new_format=True)
    if head.startswith(_LEGACY):
        return _load(file, _names_in_legacy(file), new_format=False)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100 * 2**20:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise _cut_short(file, error) from error
    raise _no_checkpoint(file, head)


def _no_checkpoint(file: Path, head: bytes) -> ValueError:
    size = file.stat().st_size
    if not size:
        what, remedy = "is empty", "Download it again"
    elif len(head) >= 262 and head[257:262] == b"ustar":
        what, remedy = "is a tar archive", "Unpack it and give the file inside"
    else:
        begins = (f"begins with {head[:8]!r}, as no checkpoint does", "Give the authors' `.pt` or a safetensors file")
        looks = ((what, remedy) for pattern, what, remedy in _LOOKS if re.match(pattern, head))
        what, remedy = next(looks, begins)
    return ValueError(f"`{file}` ({size:,} bytes) {what}. {remedy}.")


def _cut_short(file: Path, reason: object) -> ValueError:
    return ValueError(
        f"`{file}` ({file.stat().st_size:,} bytes) is cut short or damaged ({reason}). Delete it and download it "
        f"again."
    )


# ------------------------------------------------------------------------------------------ what its pickle would call
def _names_in_zip(file: Path, wanted: str) -> set[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
                raise ValueError(
                    f"`{file}` is a TorchScript archive, such as OpenAI's CLIP itself, and holds code. Give the "
                    f"checkpoint of {wanted}: weights alone, saved with `torch.save(model.state_dict(), ...)`."
                )
            pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError(
                    f"`{file}` is a zip archive of {len(names)} file(s), such as {names[:3]}, but no checkpoint of "
                    f"`torch.save`. Unpack it and give the file inside."
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or len(set(names)) < len(names):
                raise ValueError(
                    f"`{file}` was not written by `torch.save`: its entries are compressed or have the same names. "
                    f"It was not opened. Give the authors' own file."
                )
            with archive.open(pickles[0]) as stream:
                return _names_in_pickle(stream, file)
    # Names that are no text, a password, ways to pack that are not known: none is of `torch.save`.
    except (zipfile.BadZipFile, EOFError, OSError, UnicodeDecodeError, RuntimeError) as error:
        raise _cut_short(file, error) from error


def _names_in_legacy(file: Path) -> set[str]:
    if tarfile.is_tarfile(file):  # old torch versions unpickle such a file without the safe interpreter
        raise ValueError(f"`{file}` is a tar archive in disguise. It was not opened. Give the authors' own file.")
    names: set[str] = set()
    with file.open("rb") as stream:
        for _ in ("magic number", "protocol", "system", "content"):
            names |= _names_in_pickle(stream, file)
    if any(_MODULE.fullmatch(name) for name in names):
        raise ValueError(
            f"`{file}` is a whole module in torch's format from before version 1.6, which cannot be opened without "
            f"running its code. Where you trust it, load it and save its `state_dict()` with a current torch."
        )
    return names


def _names_in_pickle(stream: BinaryIO, file: Path) -> set[str]:
    """The names that a pickle imports, read without running it; refuses what no checkpoint needs."""
    names, tuples = set(), 0
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            tuples += operation.name.startswith("TUPLE")
            if count > _MAX_OPERATIONS or tuples > _MAX_TUPLES:
                raise RecursionError
            if operation.name == "GLOBAL":
                names.add(_todays_name(*argument.split(" ", 1)))
            elif operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                names.add(f"the operation {operation.name}")
    except ValueError as error:  # also what is no UTF-8
        raise _cut_short(file, error) from error
    except (RecursionError, MemoryError):  # the second where a length is stated that the file does not have
        raise ValueError(
            f"The structure of `{file}` is too large or too deep for a checkpoint. It was not opened. Give the "
            f"authors' own file."
        ) from None
    strange = sorted(name for name in names if name not in _REAL and not _INERT.fullmatch(name))
    if strange:
        shown = ", ".join(f"`{name[:80]}`" for name in strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise ValueError(
            f"`{file}` would import {shown}, which no checkpoint needs: it may be malicious. Nothing "
            f"of it was run. If you trust it, save its state dict alone with `torch.save` or safetensors."
        )
    return names


def _todays_name(module: str, name: str) -> str:
    """As torch reads names of Python 2, in which `torch.save` writes them."""
    renamed = _compat_pickle.NAME_MAPPING.get((module, name))
    return ".".join(renamed or (_compat_pickle.IMPORT_MAPPING.get(module, module), name))


def _load(file: Path, names: Iterable[str], *, new_format: bool) -> Any:
    inert = []
    for name in sorted(set(names) - _REAL):
        module, _, kind = name.rpartition(".")
        inert.append(type(kind, (InertObject,), {"__slots__": (), "__module__": module, "__qualname__": kind}))
    try:
        with torch.serialization.safe_globals(inert):
            # A mapped file costs no memory for the CLIP and the optimizer that some checkpoints carry along.
            return torch.load(str(file), map_location="cpu", weights_only=True, mmap=new_format)
    except Exception as error:  # damaged files end in errors of every kind
        reason = str(error).strip().splitlines() or [""]
        raise _cut_short(file, f"{type(error).__name__}: {reason[0][:200]}") from error


# --------------------------------------------------------------------------------------------------- a pickled module
def flatten_module(module: InertObject) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The state dict of a pickled module, collected from inert objects.

    Args:
        module ([`InertObject`]): What [`read_checkpoint`] returned.

    Returns:
        `tuple[dict, dict]`: The state dict as `module.state_dict()` would be, and the module's plain attributes
        (numbers, booleans and texts).

    Raises:
        ValueError: It is no module, or its structure is not a tree of modules.
    """
    state: dict[str, Any] = {}
    waiting, seen = [("", module, 0)], 0
    while waiting:
        prefix, part, depth = waiting.pop()
        seen += 1
        fields = part.state if isinstance(part, InertObject) else None
        groups = [_group(fields, name) for name in ("_parameters", "_buffers", "_modules")]
        if any(group is None for group in groups) or depth > _MAX_DEPTH or seen > _MAX_MODULES:
            where = f"`{prefix[:80].removesuffix('.')}`" if prefix else "it"
            raise ValueError(f"The file holds a pickled object, but {where} is no module. Give the authors' own file.")
        hidden = fields.get("_non_persistent_buffers_set") or ()
        for group in groups[:2]:
            kept = {name: value for name, value in group.items() if value is not None and name not in hidden}
            state.update((f"{prefix}{name}", value) for name, value in kept.items())
        children = [(f"{prefix}{name}.", child, depth + 1) for name, child in groups[2].items() if child is not None]
        waiting += reversed(children)
    return state, {
        name: value
        for name, value in module.state.items()
        if isinstance(value, int | float | str) and name != "training"
    }


def _group(fields: Any, name: str) -> Mapping[str, Any] | None:
    group = fields.get(name) if isinstance(fields, Mapping) else None
    return group if isinstance(group, Mapping) and all(isinstance(key, str) for key in group) else None
