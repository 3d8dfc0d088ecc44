"""Anchors computed once and read in every epoch: the embeddings of all captions under the frozen text encoder."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from ..contexts import adapters_off, evaluating
from ..distributed import rank, world_size
from ..models import PseudoWordMixin
from ..prompts import PromptTokenizer
from ..texts import clean_caption, text_ids_of
from . import files
from .captions import TripletCaptions
from .fingerprints import base_encoder, check_same, encoder_fingerprint, hash_bytes, unwrapped


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)
T = TypeVar("T")

_TOKENIZED_AT_ONCE = 4_096


class AnchorStore:
    """
    Embeddings of captions under a frozen text encoder, memory-mapped and found by text.

    Made by [`precompute_anchors`]. Nothing is loaded until it is looked up, and processes on one machine share what
    the system caches. A store may be pickled, and used in forked and in spawned workers of a data loader: a worker
    maps the files itself.

    Args:
        folder (`str` or `os.PathLike`): The folder of the store.

    Attributes:
        folder (`Path`): The folder, absolute.
        fingerprint (`dict[str, str]`): What the anchors were made with; see [`encoder_fingerprint`].
        dim (`int`): D, the width of an embedding.

    Raises:
        FileNotFoundError, ValueError, NotImplementedError: as [`~AnchorStore.open`].
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).resolve()
        store = files.read_store(self.folder)
        self.fingerprint, self._text_ids, self._rows = store.fingerprint, store.text_ids, store.rows
        self._parts = [part.embeds for part in store.parts]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.dim = self._parts[0].shape[1]

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "AnchorStore":
        """
        Opens a store.

        Args:
            folder (`str` or `os.PathLike`): The folder of the store.

        Returns:
            `AnchorStore`: all files mapped, none read.

        Raises:
            FileNotFoundError: there is no store; the message shows the expected layout.
            ValueError: the store was not finished or is damaged; the message says where.
            NotImplementedError: another version of the library wrote it.
        """
        return cls(folder)

    def __len__(self) -> int:
        return len(self._text_ids)

    def check(self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", *, max_length: int | None = None) -> None:
        """
        Makes sure that the anchors are those of an encoder.

        Args:
            model ([`CLIPTextModelForRTD`]): The frozen encoder, or the model with adapters around it.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
            max_length (`int`, *optional*): Longest caption in tokens; as many as the encoder has positions by default.

        Raises:
            ValueError: they were made with something else; the message says with what.
        """
        check_same(self.folder, self.fingerprint, encoder_fingerprint(model, tokenizer, max_length=max_length))

    def lookup(self, texts: Sequence[str]) -> torch.Tensor:
        """
        The anchors of captions.

        Args:
            texts (`Sequence[str]`): The n captions as they stand in the data; cleaned here ([`clean_caption`]).

        Returns:
            `torch.Tensor` of shape `(n, D)`, float32, on the CPU, not normalised.

        Raises:
            TypeError: `texts` is one string.
            ValueError: captions are not in the store; the message counts them and shows the first.
        """
        if isinstance(texts, str):
            raise TypeError(f"`texts` must be a sequence of strings, but is the one string {texts!r}. Wrap it: [...].")
        return self._gather(text_ids_of([clean_caption(text) for text in texts]), lambda place: repr(texts[place]))

    def lookup_ids(self, text_ids: np.ndarray) -> torch.Tensor:
        """
        The anchors of captions given by their numbers, as a collator has them.

        Args:
            text_ids (`np.ndarray` of shape `(n,)`, int64): [`text_id`] of each cleaned caption.

        Returns:
            `torch.Tensor` of shape `(n, D)`, float32, on the CPU, not normalised.

        Raises:
            TypeError: `text_ids` is no row of int64.
            ValueError: captions are not in the store; the message counts them and shows the first.
        """
        if not isinstance(text_ids, np.ndarray) or text_ids.dtype != np.int64 or text_ids.ndim != 1:
            raise TypeError(
                f"`text_ids` must be a one-dimensional numpy array of int64, but is a {type(text_ids).__name__} of "
                f"{getattr(text_ids, 'dtype', 'no dtype')} with shape {getattr(text_ids, 'shape', 'unknown')}."
            )
        return self._gather(text_ids, lambda place: f"the one at place {place} (text id {text_ids[place]})")

    def _gather(self, text_ids: np.ndarray, describe: Callable[[int], str]) -> torch.Tensor:
        places = np.searchsorted(self._text_ids, text_ids)
        places[places == len(self._text_ids)] = 0
        missing = np.flatnonzero(self._text_ids[places] != text_ids)
        if len(missing):
            raise ValueError(
                f"{len(missing)} of {len(text_ids)} captions have no anchor in `{self.folder}`, first "
                f"{describe(int(missing[0]))}. Run `precompute_anchors` on this data set and with this folder: it "
                f"adds what is missing."
            )
        rows = self._rows[places]
        order = np.argsort(rows)
        ends = np.searchsorted(rows[order], self._starts)
        embeds = np.empty((len(rows), self.dim), dtype=np.float32)
        for number in np.flatnonzero(np.diff(ends)):
            here = order[ends[number] : ends[number + 1]]
            embeds[here] = self._parts[number][rows[here] - self._starts[number]]
        return torch.from_numpy(embeds)

    # A memory map does not travel: whoever unpickles a store opens it.

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "fingerprint": self.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        AnchorStore.__init__(self, state["folder"])
        check_same(self.folder, self.fingerprint, state["fingerprint"])


# Computing


def precompute_anchors(
    triplets: "Dataset | Sequence[Mapping[str, Any]]",
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    folder: str | os.PathLike,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 16_384,
    texts_per_part: int = 65_536,
    overwrite: bool = False,
) -> AnchorStore:
    """
    Embeds every target and reference caption of a data set once, and keeps the embeddings in a folder.

    The captions that the folder holds already are not computed again: a run that was interrupted goes on, at most one
    part for each process is lost, and a data set that has grown is completed. One run at a time may write to a folder.
    Where `torch.distributed` is initialised all processes call this, share the work, and need a common file system.

    Args:
        triplets ([`~datasets.Dataset`] or `Sequence[Mapping]`): Rows with the columns of [`resolve_triplet_columns`].
        model ([`CLIPTextModelForRTD`]): The frozen encoder, on the device to compute on. Adapters are switched off.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        folder (`str` or `os.PathLike`): Where the anchors are kept: 4 bytes for each dimension of each caption.
        max_length (`int`, *optional*): Longest caption in tokens; as many as the encoder has positions by default.
        tokens_per_batch (`int`, *optional*, defaults to 16384): Tokens in a batch, padding included.
        texts_per_part (`int`, *optional*, defaults to 65536): Captions in a file, and in memory, at once.
        overwrite (`bool`, *optional*, defaults to `False`): Remove what anchors the folder holds, and start anew.

    Returns:
        `AnchorStore`: the store, opened.

    Raises:
        TypeError: `triplets` has no random access, or `model` is no encoder of ours.
        ValueError: there are no rows, a column is missing, captions are blank, the folder holds the anchors of another
            encoder, adapters are merged into the weights, or the processes differ in what they were given.
        FloatingPointError: an embedding is not finite; the message names the caption.
    """
    folder = Path(folder).resolve()
    for name, value in (("tokens_per_batch", tokens_per_batch), ("texts_per_part", texts_per_part)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    encoder, captions = _checked(model), TripletCaptions(triplets)
    options = base_encoder(encoder).prompt_options(max_length)
    base_encoder(encoder).check_tokenizer(tokenizer)
    prompts = PromptTokenizer(tokenizer, **options)
    fingerprint = encoder_fingerprint(encoder, tokenizer, max_length=max_length)

    def plan() -> tuple[int, list[tuple[int, np.ndarray]], str]:
        text_ids, missing = captions.missing(_known_ids(folder))
        there = set(files.part_files(folder))
        free = (number for number in itertools.count() if files.part_name(number) not in there)
        # Which captions share a part, and a batch, depends neither on the number of processes nor on interruptions,
        # so their embeddings are the same to the last bit.
        starts = range(0, len(missing), texts_per_part)
        jobs = [(next(free), missing[start : start + texts_per_part]) for start in starts]
        return len(text_ids), jobs, hash_bytes(text_ids, missing)

    _together(lambda: _prepare(folder, fingerprint, overwrite), alone=True)
    distinct, jobs, digest = _together(plan)
    _check_agreement({"model, tokenizer or max_length": fingerprint, "triplets, their order, or folder": digest})
    own = jobs[rank() :: world_size()]

    def work() -> None:
        total = sum(len(positions) for _, positions in own)
        with tqdm(total=total, desc="Embedding captions", unit="caption", disable=not own or rank() > 0) as bar:
            for number, positions in own:
                texts = captions.at(positions)
                embeds = _embed_sorted(encoder, prompts, texts, tokens_per_batch, bar)
                files.write_part(folder, number, text_ids_of(texts), embeds, fingerprint)

    _together(work)
    _together(lambda: _finish(folder, [files.part_name(number) for number, _ in jobs]), alone=True)
    store = AnchorStore.open(folder)
    new = sum(len(positions) for _, positions in jobs)
    logger.info(
        f"{len(captions)} captions, {distinct} distinct: {distinct - new} were already in `{folder}`, {new} were "
        f"embedded now; it holds {len(store)}."
    )
    return store


def _embed(model: nn.Module, prompts: PromptTokenizer, texts: list[str]) -> torch.Tensor:
    """Embeddings `(n, D)` of cleaned captions under the model without its adapters, float32, on the CPU."""
    device = next(model.parameters()).device
    # 25,000 of COCO's captions are 336,000 tokens, of which 253,000 are distinct in such batches.
    batch = prompts.encode(texts, packed=True) if model.takes_packed_rows else prompts.encode(texts)
    names = ("packed_rows", "input_ids", "attention_mask", "pooling_positions")
    batch = {name: batch[name].to(device) for name in names if name in batch}
    with torch.inference_mode(), evaluating(model), adapters_off(model):
        return model(**batch).text_embeds.float().cpu()


def _embed_sorted(
    model: nn.Module, prompts: PromptTokenizer, texts: list[str], tokens_per_batch: int, bar: tqdm
) -> np.ndarray:
    """Embeddings `(n, D)` of a part's captions, in batches of captions about equally long."""
    pieces = [texts[start : start + _TOKENIZED_AT_ONCE] for start in range(0, len(texts), _TOKENIZED_AT_ONCE)]
    lengths = np.concatenate([prompts.encode(piece)["attention_mask"].sum(dim=1).numpy() for piece in pieces])
    embeds = None
    for rows in _batches(lengths, tokens_per_batch):
        found = _embed(model, prompts, [texts[row] for row in rows])
        broken = (~found.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise FloatingPointError(
                f"The anchors of {len(broken)} of {len(rows)} captions are not finite, first that of "
                f"{texts[rows[int(broken[0])]]!r}; nothing was written for this part. Check the weights of `model` "
                f"with `check_safetensors`, or load it in float32 or bfloat16 instead of float16."
            )
        if embeds is None:
            embeds = np.empty((len(texts), found.shape[1]), dtype=np.float32)
        embeds[rows] = found.numpy()
        bar.update(len(rows))
    return embeds


def _batches(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Rows in order of their lengths, cut where rows times longest row would exceed the number of tokens."""
    order, start = np.argsort(lengths, kind="stable"), 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > tokens_per_batch:
            yield order[start:end]
            start = end


def _checked(model: nn.Module) -> nn.Module:
    encoder = base_encoder(model)
    if not isinstance(encoder, PseudoWordMixin):
        raise TypeError(
            f"`model` must be a text encoder such as `CLIPTextModelForRTD`, or one with adapters, got "
            f"{type(encoder).__name__}. Load the same checkpoint with `AutoTextModelForRTD.from_pretrained`."
        )
    if any(getattr(module, "merged", False) is True for module in encoder.modules()):
        raise ValueError(
            "`model` has adapters merged into its weights, which cannot be switched off without a trace. Call "
            "`unmerge_adapter()` for the anchors of the base encoder, or `merge_and_unload()` for those of the merged."
        )
    return unwrapped(model)


# The folder, and the other processes


def _prepare(folder: Path, fingerprint: Mapping[str, str], overwrite: bool) -> None:
    """Leaves only whole parts of this encoder, and a manifest only where all it names is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        files.remove_store(folder)
    parts, damaged = files.read_parts(folder)
    for part in parts:
        check_same(folder, part.fingerprint, fingerprint)
    files.repair(folder, damaged)


def _known_ids(folder: Path) -> np.ndarray:
    """The text ids in all parts, sorted."""
    parts, _ = files.read_parts(folder)
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *(part.text_ids for part in parts)]))


def _finish(folder: Path, written: Sequence[str]) -> None:
    """Makes the parts a store."""
    there = files.part_files(folder)
    lost = sorted(set(written) - set(there))
    if lost:
        raise FileNotFoundError(
            f"{len(lost)} of {len(written)} parts are not in `{folder}`, first `{lost[0]}`. All processes must "
            f"write to one folder: give one on a file system that their machines share."
        )
    files.write_index(folder)


def _together(action: Callable[[], T], *, alone: bool = False) -> T | None:
    """
    Runs an action on every process, or on the first `alone`, and goes on when all are done.

    An error on one is raised on all, where the others would otherwise wait for it until they time out.
    """
    result, error = None, None
    try:
        if not alone or rank() == 0:
            result = action()
    except Exception as caught:
        if world_size() == 1:
            raise
        error = caught
    if world_size() > 1:
        outcomes = [None] * world_size()
        dist.all_gather_object(outcomes, None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = [(number, outcome) for number, outcome in enumerate(outcomes) if outcome is not None]
        if failed:
            raise RuntimeError(f"Process {failed[0][0]} could not go on. {failed[0][1]}")
    return result


def _check_agreement(given: Mapping[str, Any]) -> None:
    """Makes sure that all processes were given the same; raises on all of them otherwise."""
    if world_size() == 1:
        return
    everyone = [None] * world_size()
    dist.all_gather_object(everyone, given)
    for number, other in enumerate(everyone):
        different = [name for name in given if other[name] != everyone[0][name]]
        if different:
            raise ValueError(
                f"All processes must work on the same, but {different[0]} of process {number} differ from those of "
                f"process 0. Give every process the whole data set; the work is shared out here."
            )
