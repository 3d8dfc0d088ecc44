"""Collator: rows of text triplets in, one batch of query rows and anchor rows out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .prompts import PromptTokenizer
from .texts import DEFAULT_TEMPLATE, clean_caption, clean_conditioning, text_id
from .triplets import resolve_triplet_columns


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    Rows are padded to the longest of the batch. Columns are found by [`resolve_triplet_columns`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the text encoder.
        template (`str`, *optional*, defaults to `"a photo of $ that {caption}"`): Template of the composed prompt.
        max_length (`int`, *optional*): Longest row in tokens; defaults to the tokenizer's maximum.
        refined_batch (`bool`, *optional*, defaults to `True`):
            Encode the bare prompts too, whose positives are the reference captions (the hard negatives of the paper).
        refined_concatenation (`bool`, *optional*, defaults to `True`):
            Put a placeholder for the pseudo-word into the prompt; otherwise the reference caption's own words, with
            `placeholder_mask` all false.

    Raises:
        ValueError: as [`PromptTokenizer`] raises.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: str = DEFAULT_TEMPLATE,
        *,
        max_length: int | None = None,
        refined_batch: bool = True,
        refined_concatenation: bool = True,
    ):
        self.tokenizer = tokenizer
        self.prompts = PromptTokenizer(tokenizer, template, max_length=max_length)
        self.refined_batch = refined_batch
        self.refined_concatenation = refined_concatenation
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

        if self.refined_concatenation:
            batch = self.prompts.compose(conditionings, bare=self.refined_batch)
        else:
            batch = self.prompts.literal(references, conditionings, bare=self.refined_batch)
        anchors = self.prompts.encode(targets + references)
        for name in ("input_ids", "attention_mask", "pooling_positions"):
            batch[f"anchor_{name}"] = anchors[name]
        batch["text_ids"] = torch.tensor([text_id(text) for text in targets + references], dtype=torch.int64)
        return batch

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
