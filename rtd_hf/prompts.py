"""Tokens of prompts and captions: templates with a placeholder filled in, cut, and laid out in rows."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from .packing import PackedRows, pack_rows
from .texts import (
    DEFAULT_TEMPLATE,
    PLACEHOLDER,
    bare_prompt,
    check_template,
    clean_caption,
    clean_conditioning,
    compose_prompt,
)
from .tokens import PLACE, TextTokenizer


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokenizers that state no maximum report an astronomically large one; such a number is not a length.
_CLIP_MAX_LENGTH = 77
_LARGEST_SENSIBLE_LENGTH = 1_000_000
PADDINGS = ("longest", "max_length")
# Words that are one token in every vocabulary of English, for tokenizers that delete or split the placeholder.
_STAND_INS = ("thing", "object", "it", "a")


class PromptTokenizer:
    """
    Turns captions into rows of token ids around a placeholder, padded to the longest row of the batch.

    What it has to know of the text encoder is its [`~PseudoWordMixin.prompt_options`]:
    `PromptTokenizer(tokenizer, template, **text_encoder.prompt_options())`. Every method returns the same keys, as
    tensors on the CPU for R rows of L tokens with P pooled positions each:

    - `input_ids` `(R, L)` int64, right-padded with the tokenizer's padding token;
    - `position_ids` `(R, L)` int64;
    - `attention_mask` `(R, L)` int64, 1 for tokens and 0 for padding;
    - `placeholder_mask` `(R, L)` bool, true where a pseudo-word is to be written;
    - `pooling_positions` `(R, P)` int64, the position of the EOS token of each prompt.

    With `packed=True` the one key is `packed_rows`, the same rows as [`PackedRows`]: no padding, shared prefixes
    stored once, every prompt a row of its own. The model takes either.

    With `padding="max_length"`, for towers that are not causal (SigLIP), every row is `max_length` long and pooled at
    its last position, and padding is attended to like any token: `attention_mask` is all ones. No row can then carry
    two prompts, and none can be packed.

    The template's placeholders, and nothing else, become placeholders, also where the tokenizer would delete a `$`
    (SigLIP's) or give it other tokens at the start of a text (SigLIP 2's): their tokens are put in by hand. A `$` in a
    caption is none, and a special token spelled out in a caption is ordinary text, so every prompt has exactly one
    EOS. Tokenizers keep state during a call, so use one `PromptTokenizer` per thread.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the text encoder.
        template (`str`, *optional*, defaults to `"a photo of $ that {caption}"`): See [`check_template`].
        max_length (`int`, *optional*):
            Longest row in tokens, BOS and EOS included. Defaults to the tokenizer's own maximum, or 77 (CLIP) where it
            states none. Longer text is cut but keeps its EOS.
        padding (`str`, *optional*, defaults to `"longest"`): `"longest"` of the batch, or `"max_length"`, see above.
        lower_case (`bool`, *optional*, defaults to `False`):
            Make all letters small, for an encoder trained so whose tokenizer does not do it.
        share_prefixes (`bool`, *optional*, defaults to `True`): See [`pack_rows`]; for packed rows only.

    Attributes:
        placeholder_id (`int`):
            Token id that stands at the placeholders: that of `$`, or of another word where `$` is no ordinary token.
            Its embedding is what pseudo-words overwrite.
        num_placeholders (`int`): Placeholders per prompt; the pseudo-words given to the model must be as many.
        bare_is_prefix (`bool`): Whether the bare prompt's tokens start the full prompt's: one row can carry both.
        num_truncated (`int`): How many texts were cut so far, all calls together.

    Raises:
        ValueError: the template is malformed, the tokenizer neither works word by word nor keeps `$` as one ordinary
            token in the template, it ends its rows with no EOS, `padding` is unknown, or `max_length` leaves no room
            for a caption.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: str = DEFAULT_TEMPLATE,
        *,
        max_length: int | None = None,
        padding: str = "longest",
        lower_case: bool = False,
        share_prefixes: bool = True,
    ):
        if padding not in PADDINGS:
            raise ValueError(f"`padding` must be one of {', '.join(map(repr, PADDINGS))}, but is {padding!r}.")
        self.tokenizer = tokenizer
        self.padding, self.share_prefixes = padding, share_prefixes
        self._tokenize = TextTokenizer(tokenizer, placeholder=PLACEHOLDER, lower_case=lower_case)
        self.template = check_template(template)
        if max_length is None:
            stated = getattr(tokenizer, "model_max_length", None)
            max_length = stated if stated and stated < _LARGEST_SENSIBLE_LENGTH else _CLIP_MAX_LENGTH
        self.max_length = int(max_length)
        self.num_truncated = 0
        self.eos_token_id = self._find_eos()
        self.pad_token_id = self.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.placeholder_id = self._find_placeholder()
        self.num_placeholders = self.template.count(PLACEHOLDER)
        self._check_layout()

    def compose(
        self, captions: Sequence[str], bare: bool = False, *, packed: bool = False
    ) -> dict[str, torch.Tensor | PackedRows]:
        """
        The composed prompts of a batch, with placeholders for the pseudo-words.

        With `bare=True` each row also carries its bare prompt, whose tokens are a prefix of the full prompt's, as
        `BOS a photo of $ EOS that ... EOS`: positions restart after the inner EOS, which the model hides from the
        later tokens. `pooling_positions` then has two columns, the full prompt's first. Such a row is one token
        longer, so text is cut one token earlier. Where the template has the caption before its last placeholder there
        is no common prefix, and the bare prompts follow as rows of their own: `2R` rows, all full prompts first.

        Args:
            captions (`Sequence[str]`): The R conditioning texts.
            bare (`bool`, *optional*, defaults to `False`): Also lay out the bare prompts.
            packed (`bool`, *optional*, defaults to `False`): Return packed rows.

        Returns:
            `dict[str, torch.Tensor | PackedRows]`: see the class.

        Raises:
            TypeError: `captions` is one string instead of a sequence of strings.
            ValueError: `captions` is empty.
        """
        return self._compose(captions, bare, packed)

    def compose_with_token(
        self, captions: Sequence[str], token_id: int, bare: bool = False, *, packed: bool = False
    ) -> dict[str, torch.Tensor | PackedRows]:
        """
        The prompts of [`~PromptTokenizer.compose`] with an ordinary token in place of every placeholder.

        What a projection with context reads: the prompt as the text encoder sees it before there is a pseudo-word.

        Args:
            captions (`Sequence[str]`): The R conditioning texts.
            token_id (`int`): The token.
            bare (`bool`, *optional*, defaults to `False`): Also lay out the bare prompts.
            packed (`bool`, *optional*, defaults to `False`): Return packed rows.

        Returns:
            `dict[str, torch.Tensor | PackedRows]`: see the class; `placeholder_mask` is all false.

        Raises:
            TypeError, ValueError: as [`~PromptTokenizer.compose`]; also where the tokenizer has no such token.
        """
        if not 0 <= token_id < len(self.tokenizer):
            raise ValueError(
                f"`token_id` must be a token of the tokenizer, 0 to {len(self.tokenizer) - 1}, but is {token_id}."
            )
        return self._compose(captions, bare, packed, token_id)

    def literal(
        self, references: Sequence[str], captions: Sequence[str], bare: bool = False, *, packed: bool = False
    ) -> dict[str, torch.Tensor | PackedRows]:
        """
        The prompts of [`~PromptTokenizer.compose`] with the reference captions' words in place of the placeholder.

        This is the ablation without refined concatenation: no pseudo-word is used and `placeholder_mask` is all false.

        Args:
            references (`Sequence[str]`): The R reference captions; cleaned here ([`clean_caption`]).
            captions (`Sequence[str]`): The R conditioning texts.
            bare (`bool`, *optional*, defaults to `False`): Also lay out the prompts without the conditioning text.
            packed (`bool`, *optional*, defaults to `False`): Return packed rows.

        Returns:
            `dict[str, torch.Tensor | PackedRows]`: see the class.

        Raises:
            TypeError, ValueError: as [`~PromptTokenizer.compose`]; also where the two differ in number.
        """
        references = [clean_caption(text) for text in self._check_texts(references, "references")]
        captions = self._check_texts(captions, "captions")
        if len(references) != len(captions):
            raise ValueError(
                f"`references` and `captions` must be equally many, but got {len(references)} and {len(captions)}."
            )
        pairs = list(zip(references, captions, strict=True))
        full = self._tokenize([compose_prompt(self.template, caption, reference=ref) for ref, caption in pairs])
        bare_rows = self._tokenize([bare_prompt(self.template, reference=ref) for ref in references]) if bare else None
        return self._lay_out(full, bare_rows, packed=packed)

    def encode(
        self, texts: Sequence[str], *, packed: bool = False, num_prompts: int = 1
    ) -> dict[str, torch.Tensor | PackedRows]:
        """
        Plain texts (the anchors): cleaned, one row each, no template and no placeholder.

        Args:
            texts (`Sequence[str]`): The R texts; cleaned here ([`clean_caption`]).
            packed (`bool`, *optional*, defaults to `False`): Return packed rows.
            num_prompts (`int`, *optional*, defaults to 1): P of the packed rows: the texts are P blocks of `R / P`.

        Returns:
            `dict[str, torch.Tensor | PackedRows]`: see the class, with P = 1.

        Raises:
            TypeError, ValueError: as [`~PromptTokenizer.compose`].
        """
        rows = self._tokenize([clean_caption(text) for text in self._check_texts(texts, "texts")])
        if packed:
            return self._pack([self._cut(row, self.max_length) for row in rows], num_prompts)
        return self._lay_out(rows, None)

    def mark(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """
        Texts in which every `$` standing alone is a placeholder, without the template: LinCIR's masked captions.

        Never give it a user's text as it came; this is the one method in which a `$` of the text counts.

        Args:
            texts (`Sequence[str]`): The R texts, each with any number of placeholders.

        Returns:
            `dict[str, torch.Tensor]`: see the class, with P = 1.

        Raises:
            TypeError: `texts` is one string instead of a sequence of strings.
            ValueError: `texts` is empty.
        """
        return self._lay_out(self._tokenize(self._check_texts(texts, "texts")), None)

    # Layout

    def _compose(
        self, captions: Sequence[str], bare: bool, packed: bool, token_id: int | None = None
    ) -> dict[str, torch.Tensor | PackedRows]:
        captions = self._check_texts(captions, "captions")
        full = self._tokenize([compose_prompt(self.template, caption) for caption in captions])
        if not self.bare_is_prefix:
            full = [self._shorten(row, caption) for row, caption in zip(full, captions, strict=True)]
        bare_rows = self._tokenize([bare_prompt(self.template)]) * len(full) if bare else None
        if token_id is not None:
            full, bare_rows = (
                rows and [[token_id if token == PLACE else token for token in row] for row in rows]
                for rows in (full, bare_rows)
            )
        return self._lay_out(full, bare_rows, packed=packed)

    def _lay_out(
        self, full: list[list[int]], bare: list[list[int]] | None, *, packed: bool = False
    ) -> dict[str, torch.Tensor | PackedRows]:
        two_in_one = bare is not None and self.bare_is_prefix
        limit = self.max_length - two_in_one
        full = [self._cut(row, limit) for row in full]
        bare = bare and [self._cut(row, limit) for row in bare]
        if packed:
            return self._pack(full + (bare or []), 2 if bare else 1)
        if bare is None:
            return self._pad(full, None)
        if not two_in_one:
            return self._pad(full + bare, None)
        inner = np.array([len(row) - 1 for row in bare])
        rows = [prefix + row[len(prefix) - 1 :] for prefix, row in zip(bare, full, strict=True)]
        return self._pad(rows, inner)

    def _pad(self, rows: list[list[int]], inner: np.ndarray | None) -> dict[str, torch.Tensor]:
        """`inner (R,)` holds the position of the bare prompt's EOS in each row."""
        input_ids, lengths, placeholder_mask = self._as_matrix(rows)
        columns = np.arange(input_ids.shape[1])
        filled = columns < lengths[:, None]
        if self.padding == "max_length":  # all of a row is read, and its last position is pooled
            filled[:], lengths[:] = True, self.max_length
        position_ids = np.broadcast_to(columns, filled.shape).copy()
        pooling_positions = (lengths - 1)[:, None]
        if inner is not None:
            position_ids -= columns > inner[:, None]
            pooling_positions = np.stack([lengths - 1, inner], axis=1)
        arrays = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "placeholder_mask": placeholder_mask,
            "pooling_positions": pooling_positions,
            "attention_mask": filled.astype(np.int64),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _pack(self, rows: list[list[int]], num_prompts: int) -> dict[str, PackedRows]:
        """`rows` are `num_prompts` blocks of equal size; the i-th rows of all blocks hold the same pseudo-words."""
        if self.padding == "max_length":
            raise ValueError(
                "`packed` rows hold no padding, but with `padding='max_length'` the text encoder reads it. Leave "
                "`packed` out."
            )
        input_ids, lengths, marked = self._as_matrix(rows)
        words = None
        if marked.any():
            first = np.arange(len(rows)) % (len(rows) // num_prompts) * self.num_placeholders
            words = np.where(marked, first[:, None] + marked.cumsum(axis=1) - 1, -1)
        packed = pack_rows(
            input_ids, lengths, words=words, num_prompts=num_prompts, share_prefixes=self.share_prefixes
        )
        return {"packed_rows": packed}

    def _as_matrix(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids `(R, L)`, padded, lengths `(R,)`, and where a pseudo-word is to be written `(R, L)`."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        width = self.max_length if self.padding == "max_length" else lengths.max()
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        filled = np.arange(width) < lengths[:, None]
        input_ids[filled] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        marked = input_ids == PLACE
        input_ids[marked] = self.placeholder_id
        return input_ids, lengths, marked

    def _cut(self, row: list[int], limit: int) -> list[int]:
        if len(row) <= limit:
            return row
        self.num_truncated += 1
        return row[: limit - 1] + [self.eos_token_id]

    def _shorten(self, row: list[int], caption: str) -> list[int]:
        """Drops words at the caption's end: where it precedes the placeholder, cutting the row would lose that."""
        if len(row) <= self.max_length:
            return row
        self.num_truncated += 1
        words = clean_conditioning(caption).split()[: self.max_length]  # a word is at least one token
        while len(row) > self.max_length:
            words.pop()
            row = self._tokenize([compose_prompt(self.template, " ".join(words))])[0]
        return row

    @staticmethod
    def _check_texts(texts: Sequence[str], name: str) -> list[str]:
        if isinstance(texts, str):
            raise TypeError(
                f"`{name}` must be a sequence of strings, but is the one string {texts!r}. Wrap it: [...]."
            )
        if len(texts) == 0:
            raise ValueError(f"`{name}` is empty. Give at least one text.")
        return list(texts)

    # Checks at construction

    def _find_eos(self) -> int:
        eos = self.tokenizer.eos_token_id
        row = self._tokenize(["a"])[0]
        if eos is None or row[-1] != eos:
            raise ValueError(
                f"`tokenizer` must end every row with its EOS token, where the text encoder is pooled, but its EOS id "
                f"is {eos} and the text 'a' became {row}. Use the tokenizer that was published with the text encoder."
            )
        return eos

    def _find_placeholder(self) -> int:
        """A token to stand at the placeholders; the model overwrites its embedding, so one is as good as another."""
        special = set(self.tokenizer.all_special_ids)
        for word in (PLACEHOLDER, *_STAND_INS):
            tokens = self._tokenize.tokens_of(word)
            if len(tokens) == 1 and tokens[0] not in special:
                return tokens[0]
        raise ValueError(
            f"`tokenizer` knows none of `{PLACEHOLDER}`, {', '.join(map(repr, _STAND_INS))} as one ordinary token, so "
            f"nothing can stand in the place of a pseudo-word. Use the tokenizer that was published with the text "
            f"encoder."
        )

    def _check_layout(self):
        bare = self._tokenize([bare_prompt(self.template)])[0]
        if bare.count(PLACE) != self.num_placeholders:
            spelled = self.tokenizer.convert_ids_to_tokens([t if t != PLACE else self.placeholder_id for t in bare])
            raise ValueError(
                f"`template` {self.template!r} holds {self.num_placeholders} placeholder(s), but `tokenizer` keeps "
                f"{bare.count(PLACE)} of them as a token of its own: {', '.join(map(repr, spelled))}. Reword the "
                f"template around `{PLACEHOLDER}`."
            )
        probe = self._tokenize([compose_prompt(self.template, "red")])[0]
        self.bare_is_prefix = self.padding == "longest" and probe[: len(bare) - 1] == bare[:-1]
        shortest = len(self._tokenize([compose_prompt(self.template, "")])[0])
        if self.max_length < shortest + 2:
            raise ValueError(
                f"`max_length` is {self.max_length}, but `template` {self.template!r} alone takes {shortest} tokens, "
                f"one more with both prompts in a row. Give at least {shortest + 2}."
            )
