"""Collator: rows of text triplets in, one batch of query rows and anchor rows out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .packing import PackedRows
from .prompts import PromptTokenizer
from .texts import DEFAULT_TEMPLATE, clean_caption, clean_conditioning, text_ids_of
from .triplets import resolve_triplet_columns


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .anchors import AnchorStore


# What an encoder takes of rows without pseudo-words.
_PLAIN = ("input_ids", "attention_mask", "pooling_positions")


class DataCollatorForRTD:
    """
    Turns rows of text triplets into the tensors of one RTD training step.

    The returned dictionary, for B triplets:

    - the keys of [`PromptTokenizer`] (`input_ids`, `position_ids`, `placeholder_mask`, `pooling_positions`,
      `attention_mask`) for the queries: one row per triplet, which carries the composed prompt and, with
      `refined_batch`, the bare prompt too (two columns in `pooling_positions`). Templates without a common prefix give
      2B rows instead, all composed prompts first;
    - `anchor_input_ids`, `anchor_attention_mask` `(2B, L')` and `anchor_pooling_positions` `(2B, 1)`: the target
      captions, then the reference captions. The references are there without `refined_batch` too, as they are what the
      projection turns into pseudo-words;
    - `text_ids` `(2B,)` int64: a hash of each cleaned anchor caption, equal for equal captions, the same in every
      process; a loss uses it to leave out false negatives.

    Rows are padded to the longest of the batch, or all to `max_length` for text encoders that read the padding; these
    have 2B rows of queries, as no row can carry two prompts. Columns are found by [`resolve_triplet_columns`].

    With `packing` the batch holds the same rows as [`PackedRows`], `packed_rows` and `anchor_packed_rows`, in the
    place of all entries named above but `text_ids`: lists of one, or with `mini_batch_size` of one for every
    mini-batch. With `anchors` it holds the anchors' embeddings, `anchors` `(2B, D)`, in the place of their tokens.
    With `context_token` it holds the composed prompts once more, with that token at the placeholder: the same entries
    named `context_*`, which a frozen encoder reads for a projection with context.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the text encoder.
        template (`str`, *optional*, defaults to `"a photo of $ that {caption}"`): Template of the composed prompt.
        max_length (`int`, *optional*): Longest row in tokens; defaults to the tokenizer's maximum.
        padding, lower_case (*optional*): See [`PromptTokenizer`]; with `max_length` the text encoder's
            [`~PseudoWordMixin.prompt_options`].
        refined_batch (`bool`, *optional*, defaults to `True`):
            Encode the bare prompts too, whose positives are the reference captions (the hard negatives of the paper).
        refined_concatenation (`bool`, *optional*, defaults to `True`):
            Put a placeholder for the pseudo-word into the prompt; otherwise the reference caption's own words, with
            `placeholder_mask` all false.
        packing (`bool`, *optional*, defaults to `False`): Return [`PackedRows`] instead of padded rows.
        share_prefixes (`bool`, *optional*, defaults to `True`): See [`pack_rows`].
        mini_batch_size (`int`, *optional*): Triplets packed together; all of the batch by default.
        anchors ([`AnchorStore`], *optional*): Anchors computed ahead, looked up here.
        context_token (`int`, *optional*): Token at the placeholder of context prompts; by default there are none.
        anchor_tokens (`bool`, *optional*): Also return the anchors' tokens; by default where `anchors` is not given.

    Raises:
        ValueError: as [`PromptTokenizer`] raises, or `mini_batch_size` is given without `packing` or is not positive.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: str = DEFAULT_TEMPLATE,
        *,
        max_length: int | None = None,
        padding: str = "longest",
        lower_case: bool = False,
        refined_batch: bool = True,
        refined_concatenation: bool = True,
        packing: bool = False,
        share_prefixes: bool = True,
        mini_batch_size: int | None = None,
        anchors: "AnchorStore | None" = None,
        context_token: int | None = None,
        anchor_tokens: bool | None = None,
    ):
        if mini_batch_size is not None and (mini_batch_size < 1 or not packing):
            raise ValueError(f"`mini_batch_size` must be positive and needs `packing`, got {mini_batch_size}.")
        self.tokenizer = tokenizer
        layout = {"max_length": max_length, "padding": padding, "lower_case": lower_case}
        self.prompts = PromptTokenizer(tokenizer, template, share_prefixes=share_prefixes, **layout)
        self.refined_batch = refined_batch
        self.refined_concatenation = refined_concatenation
        self.packing, self.mini_batch_size = packing, mini_batch_size
        self.anchors, self.context_token = anchors, context_token
        self.anchor_tokens = anchors is None if anchor_tokens is None else anchor_tokens
        self._columns: dict[tuple[str, ...], dict[str, str]] = {}

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Collates one batch.

        Args:
            features (`Sequence[Mapping[str, Any]]`): B rows with the three captions; other columns are ignored.

        Returns:
            `dict[str, torch.Tensor]`: see the class.

        Raises:
            ValueError: there are no rows, a column is missing, or a caption is missing or blank.
            TypeError: a caption is not a string.
        """
        if len(features) == 0:
            raise ValueError("`features` is empty. Give at least one row.")
        names = tuple(features[0])
        if names not in self._columns:
            self._columns[names] = resolve_triplet_columns(names)
        columns = self._columns[names]
        references = self._read(features, columns["reference_caption"], clean_caption)
        conditionings = self._read(features, columns["conditioning_caption"], clean_conditioning)
        targets = self._read(features, columns["target_caption"], clean_caption)

        batch = (self._pack if self.packing else self._pad)(references, conditionings, targets)
        text_ids = text_ids_of(targets + references)
        batch["text_ids"] = torch.from_numpy(text_ids)
        if self.anchors is not None:
            batch["anchors"] = self.anchors.lookup_ids(text_ids)
        return batch

    def _pad(self, references: list[str], conditionings: list[str], targets: list[str]) -> dict[str, torch.Tensor]:
        batch = self._prompts(references, conditionings)
        if self.anchor_tokens:
            anchors = self.prompts.encode(targets + references)
            batch |= {f"anchor_{name}": anchors[name] for name in _PLAIN}
        if self.context_token is not None:
            contexts = self.prompts.compose_with_token(conditionings, self.context_token)
            batch |= {f"context_{name}": contexts[name] for name in _PLAIN}
        return batch

    def _pack(
        self, references: list[str], conditionings: list[str], targets: list[str]
    ) -> dict[str, list[PackedRows]]:
        size = self.mini_batch_size or len(targets)
        batch: dict[str, list[PackedRows]] = defaultdict(list)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            batch["packed_rows"].append(self._prompts(references[part], conditionings[part])["packed_rows"])
            if self.anchor_tokens:
                anchors = self.prompts.encode(targets[part] + references[part], packed=True, num_prompts=2)
                batch["anchor_packed_rows"].append(anchors["packed_rows"])
            if self.context_token is not None:
                contexts = self.prompts.compose_with_token(conditionings[part], self.context_token, packed=True)
                batch["context_packed_rows"].append(contexts["packed_rows"])
        return dict(batch)

    def _prompts(self, references: list[str], conditionings: list[str]) -> dict[str, torch.Tensor | PackedRows]:
        options = {"bare": self.refined_batch, "packed": self.packing}
        if self.refined_concatenation:
            return self.prompts.compose(conditionings, **options)
        return self.prompts.literal(references, conditionings, **options)

    @staticmethod
    def _read(features: Sequence[Mapping[str, Any]], column: str, clean: Any) -> list[str]:
        texts = []
        for index, row in enumerate(features):
            text = row.get(column)
            if text is not None and not isinstance(text, str):
                raise TypeError(
                    f"Column `{column}` must hold strings, but row {index} of the batch holds a "
                    f"{type(text).__name__}: {dict(row)!r}. Convert the column to text."
                )
            cleaned = clean(text) if text is not None else ""
            if not cleaned:
                raise ValueError(
                    f"Column `{column}` holds no text in row {index} of the batch: {dict(row)!r}. Remove such rows "
                    f"before training, for example with `dataset.filter`."
                )
            texts.append(cleaned)
        return texts
