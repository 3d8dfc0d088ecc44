"""The contract of layouts: other forms in which a text encoder is published, and how they are told apart."""

import copy
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..hub.encoders import backbone_of, has_adapters
from ..hub.export import PARTIAL_PREFIX
from ..hub.folders import prepare_output_dir
from ..registry import Registry
from ..weights import check_finite


LAYOUTS = Registry("layout", "LAYOUTS")


@dataclass(frozen=True)
class Parts:
    """
    What a layout may need beside the text encoder.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The text encoder's tokenizer.
        projection ([`ImageToWordProjection`], *optional*): What makes pseudo-words of images.
        base (`str` or `os.PathLike`, *optional*):
            The whole model that the text encoder belongs to: a folder or Hub id, or for the layouts that hold weights
            alone the file of such a model in that layout, whose text tower is replaced.
        revision (`str`, *optional*): The revision of `base` on the Hub.
    """

    tokenizer: Any = None
    projection: Any = None
    base: str | os.PathLike | None = None
    revision: str | None = None


@dataclass
class ImportReport:
    """
    What [`import_layout`] found in a file.

    Attributes:
        file (`str`): The file that was read.
        layout (`str`): Name in `LAYOUTS`.
        dropped (`tuple[str, ...]`): Entries of the file that are no part of the text encoder.
        notes (`tuple[str, ...]`): What the file does not say and was taken from elsewhere.
    """

    file: str
    layout: str
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        dropped = f"{len(self.dropped)} entries, such as {listed(self.dropped)}" if self.dropped else "nothing"
        return "\n  ".join(
            [f"`{self.file}`: {self.layout}", f"left out: {dropped}", *(f"note: {note}" for note in self.notes)]
        )


class Layout(ABC):
    """
    Base class of the layouts: a form in which others expect a text encoder.

    A layout is one file with a subclass; the decorator `@LAYOUTS.register(name)` enters it. All of them write into a
    folder that [`prepare_output_dir`] takes; those with `readable` can be read as well, see [`StateDictLayout`].

    Class attributes:
        summary (`str`): What it is for, in one line, for the help of scripts.
        readable (`bool`): Whether [`import_layout`] reads it.
        needs (`tuple[str, ...]`): Fields of [`Parts`] it cannot be written without.
        takes (`tuple[str, ...]`): Fields of [`Parts`] it uses where they are given.
        families (`tuple[str, ...]`): `model_type`s of the text encoders it can hold.
    """

    summary: ClassVar[str]
    readable: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    families: ClassVar[tuple[str, ...]] = ("clip_text_model",)

    @abstractmethod
    def write(self, encoder, folder: Path, parts: Parts) -> Path:
        """
        Writes a text encoder.

        Args:
            encoder: The text encoder as its stock class, in evaluation mode, its weights finite.
            folder (`Path`): A folder of ours.
            parts ([`Parts`]): What else there is; all of `needs` are.

        Returns:
            `Path`: What users of the layout name: a file, or the folder.

        Raises:
            ValueError: the layout cannot hold this encoder, or a part does not fit it.
        """


@dataclass
class Contents:
    """
    A file on its way to a text encoder.

    Args:
        file (`str`): Its name.
        state (`dict[str, torch.Tensor]`): The tensors in it, without the wrappings.
        facts (`dict[str, Any]`): What it says beside the tensors.
        dropped (`list[str]`): What was left out on the way.
        notes (`list[str]`): What was assumed.
    """

    file: str
    state: dict[str, torch.Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def export_layout(
    model,
    folder: str | os.PathLike,
    *,
    layout: str,
    tokenizer=None,
    projection=None,
    base: str | os.PathLike | None = None,
    revision: str | None = None,
) -> Path:
    """
    Writes a trained text encoder in a form that other software reads.

    Args:
        model ([`CLIPTextModelForRTD`], its stock class, or a `PeftModel` around one):
            The encoder. Adapters are merged on a copy.
        folder (`str` or `os.PathLike`): See [`prepare_output_dir`] for which folders are taken.
        layout (`str`): Name in `LAYOUTS`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The encoder's tokenizer.
        projection ([`ImageToWordProjection`], *optional*): The projection it was trained with.
        base (`str` or `os.PathLike`, *optional*): The whole model it belongs to, see [`Parts`].
        revision (`str`, *optional*): The revision of `base` on the Hub.

    Returns:
        `Path`: What users of the layout name: a file in `folder`, or the folder.

    Raises:
        RegistryError: there is no such layout.
        TypeError: `model` is not a text encoder with its projection.
        ValueError: a part is missing or not used, the encoder's weights are not finite, or the layout cannot hold it.
        FileExistsError, NotADirectoryError, PermissionError: see [`prepare_output_dir`].
    """
    chosen = LAYOUTS[layout]()
    parts = Parts(tokenizer, projection, base, revision)
    _check_parts(layout, chosen, parts)
    stock = stock_encoder(model)
    if stock.config.model_type not in chosen.families:
        raise ValueError(
            f"The layout `{layout}` holds {', '.join(map(repr, chosen.families))}, but `model` is a "
            f"{stock.config.model_type!r}. Publish it with `export_text_encoder`."
        )
    return chosen.write(stock, prepare_output_dir(folder), parts)


def _check_parts(name: str, layout: Layout, parts: Parts) -> None:
    given = {part for part in vars(parts) if getattr(parts, part) is not None}
    missing = [part for part in layout.needs if part not in given]
    if missing:
        raise ValueError(f"The layout `{name}` needs `{missing[0]}`, but got none. {layout.summary}")
    unused = sorted(given - {*layout.needs, *layout.takes})
    if unused:
        raise ValueError(f"The layout `{name}` has no place for `{unused[0]}`. Leave it out. {layout.summary}")


def stock_encoder(model) -> torch.nn.Module:
    """
    A text encoder as its stock class, in evaluation mode, adapters merged; weights are shared where there are none.

    Raises:
        TypeError: it is no text encoder with its projection.
        ValueError: a weight is not finite.
    """
    adapted = has_adapters(model)
    backbone_of(model.get_base_model() if adapted else model)
    merged = copy.deepcopy(model).merge_and_unload() if adapted else model
    stock = merged.to_stock() if hasattr(merged, "to_stock") else merged
    check_finite(stock.state_dict(), "model")
    return stock.eval() if stock is not model else stock


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """
    A temporary folder to write to, whose entries are moved into `folder` when all of them are complete.

    Args:
        folder (`Path`): A folder that exists; entries of the same names in it are replaced.

    Yields:
        `Path`: What to write to. It is removed in the end, also on an exception.
    """
    for abandoned in folder.glob(f"{PARTIAL_PREFIX}*"):  # left by a run that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=folder))
    try:
        yield partial
        for entry in sorted(partial.iterdir()):
            if entry.is_dir():
                shutil.rmtree(folder / entry.name, ignore_errors=True)
            os.replace(entry, folder / entry.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def listed(keys: Sequence[str], number: int = 3) -> str:
    """The first few names, for a message."""
    return ", ".join(f"`{str(key)[:80]}`" for key in keys[:number]) + (", ..." if len(keys) > number else "")


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight."""
    return {key: tuple(value.shape) for key, value in state.items()}
