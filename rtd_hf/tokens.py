"""Texts to token ids, with BOS and EOS: word by word from memory where the tokenizer allows it."""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE = -1  # no token's id: stands in a row where a pseudo-word is to be written

# Texts with everything that could join tokens across a space, or change under a normaliser that sees the neighbours.
_PROBES = (
    "",
    "a photo of $ that is red , isn't it ?",
    "$ , $ with $ $ but $ . $ ; and ( $ )",
    "A Café NAÏVE e\u0301 \u0301 o\u0308 ﬁne Straße İstanbul",
    "the dogs' 2nd 100,000 things -- don't 's 've I'll",
    "<|endoftext|> <|startoftext|> < | endoftext | > </s> [CLS] [SEP]",
    "\u4e2d\u6587 \u65e5\u672c \ud55c\uad6d \u0e44\u0e17 \u0905 \U0001f600 \U0001f468\u200d\U0001f469 \u200d",
    "x\u00ad y \ufeff z _ __ #hash @at a/b c\\d",
)
# White space for Python, but not for Unicode, nor for tokenizers: a word goes on behind them.
_NO_SPACES = "\x1c\x1d\x1e\x1f"
_SPACES = re.compile(rf"[^\S{_NO_SPACES}]+")
_FILLER = "a"  # what stands before a word to see it in the middle of a text
_MOST_WORDS = 500_000  # a bound on memory; the 25,000 captions of COCO val2017 hold 10,000


def _split(text: str) -> list[str]:
    return [word for word in _SPACES.split(text) if word]


def load_tokenizer(name: str | os.PathLike, **options: Any) -> "PreTrainedTokenizerBase":
    """
    Loads a tokenizer, never code that lies beside it.

    Args:
        name (`str` or `os.PathLike`): Folder or Hub id.
        options: As `AutoTokenizer.from_pretrained` takes them, such as `revision` and `token`.

    Returns:
        `PreTrainedTokenizerBase`

    Raises:
        ValueError: a file of it is damaged, or it needs code of its own.
        OSError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **{**options, "trust_remote_code": False})
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # the tokenizers library raises the bare class
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise ValueError(
            f"The tokenizer of `{os.fspath(name)}` cannot be loaded ({type(error).__name__}: {reason}). Its files are "
            f"damaged, or it needs code of its own, which is not run. Download it again, or take another."
        ) from error
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float):
        raise ValueError(
            f"The tokenizer of `{os.fspath(name)}` states a `model_max_length` that is no number: {longest!r:.80}. "
            f"Correct its `tokenizer_config.json`, or download it again."
        )
    return tokenizer


class TextTokenizer:
    """
    Token ids of texts, special tokens of the tokenizer around them, nothing cut and nothing padded.

    Byte-pair encodings of CLIP's kind work on one word at a time, so a word's tokens can be remembered: captions share
    a small vocabulary, and 27 thousand texts a second become 760 thousand (24,000 of COCO's captions met before,
    CLIP's vocabulary, one core of an AMD EPYC). So do SigLIP's, and SigLIP 2's, for which a word that begins a text
    has other tokens than one within it. Whether a tokenizer is of that kind is found out by tokenizing texts whole and
    by words; the others are asked each time.

    A special token spelled out in a text is ordinary text, as a second EOS would end the prompt early.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The text encoder's tokenizer.
        placeholder (`str`, *optional*):
            A word that becomes the one id `PLACE` (-1) wherever it stands alone, whatever the tokenizer makes of it.
        lower_case (`bool`, *optional*, defaults to `False`):
            Make all letters small first, for an encoder trained so whose tokenizer does not do it.

    Attributes:
        by_words (`bool`): Whether words are remembered.

    Raises:
        ValueError: the tokenizer does not work by words, and the placeholder is not one ordinary token of it.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", *, placeholder: str | None = None, lower_case: bool = False
    ):
        self.tokenizer, self.lower_case = tokenizer, lower_case
        self._first: dict[str, list[int]] = {}  # tokens of words that begin a text
        self._words: dict[str, list[int]] = self._first  # of the others; the same, unless they differ
        self._start, self._end = self._frame()
        self.by_words = self._added_are_words() and (self._joins() or self._joins_apart())
        self._placeholder = placeholder
        self._placeholder_id = None
        if placeholder is not None and not self.by_words:
            self._placeholder_id = self._ordinary(placeholder)
        self._forget()

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """
        Args:
            texts (`Sequence[str]`): The texts.

        Returns:
            `list[list[int]]`: One row of token ids a text.
        """
        if not self.by_words:
            token = self._placeholder_id
            return [[PLACE if each == token else each for each in row] for row in self.whole(texts)]
        if max(len(self._first), len(self._words)) > _MOST_WORDS:
            self._forget()
        if self.lower_case:
            texts = [text.lower() for text in texts]
        first, later, start, end = self._first, self._words, self._start, self._end
        whole = "".join(texts)
        split = _split if any(sign in whole for sign in _NO_SPACES) else str.split
        rows = []
        for text in texts:
            row, known = start.copy(), first
            for word in split(text):
                tokens = known.get(word)
                row += self._learn(word, known) if tokens is None else tokens
                known = later
            row += end
            rows.append(row)
        return rows

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """The plain form: the same by the tokenizer alone, a placeholder being a word like any other."""
        # Cutting is done elsewhere and not by the tokenizer, because cut rows are counted.
        return self.tokenizer(
            [text.lower() for text in texts] if self.lower_case else list(texts),
            add_special_tokens=True,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            split_special_tokens=True,
            verbose=False,
        )["input_ids"]

    def tokens_of(self, word: str) -> list[int]:
        """The tokenizer's tokens of a word that stands within a text, without BOS and EOS."""
        alone, followed = self.whole([_FILLER, f"{_FILLER} {word}"])
        end = len(self._end)
        return followed[len(alone) - end : len(followed) - end]

    def _ordinary(self, placeholder: str) -> int:
        tokens = self.whole([placeholder])[0][len(self._start) :]
        tokens = tokens[: len(tokens) - len(self._end)]
        if len(tokens) != 1 or tokens[0] in self.tokenizer.all_special_ids:
            names = self.tokenizer.convert_ids_to_tokens(tokens)
            spelled = ", ".join(f"{name!r} ({token})" for name, token in zip(names, tokens, strict=True))
            raise ValueError(
                f"`tokenizer` does not work word by word, so it must know the placeholder `{placeholder}` as one "
                f"ordinary token, but turns it into {spelled or 'nothing'}. Use the tokenizer that was published with "
                f"the text encoder; do not add a token, because its id would lie beyond the embedding table."
            )
        return tokens[0]

    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        empty, word = self.whole(["", _FILLER])
        start = next((i for i, (one, other) in enumerate(zip(empty, word, strict=False)) if one != other), len(empty))
        return empty[:start], empty[start:]

    def _added_are_words(self) -> bool:
        """Whether no token of several words was added; special ones, once spelled out, are ordinary text."""
        special = set(self.tokenizer.all_special_tokens)
        return not any(len(text.split()) > 1 for text in set(self.tokenizer.get_added_vocab()) - special)

    def _joins(self) -> bool:
        """Whether a text's tokens are those of its words."""
        self._first.clear()
        self._words.clear()
        return all(self._join(text) == self.whole([text])[0] for text in _PROBES)

    def _joins_apart(self) -> bool:
        """The same where the first word has tokens of its own, the others being known by the space before them."""
        self._words = {}
        return self._joins()

    def _forget(self) -> None:
        for known in (self._first, self._words):
            known.clear()
            if self._placeholder is not None:
                known[self._placeholder] = [PLACE]

    def _learn(self, word: str, known: dict[str, list[int]]) -> list[int]:
        if known is self._first:
            row = self.whole([word])[0]
            tokens = row[len(self._start) : len(row) - len(self._end)]
        else:
            tokens = self.tokens_of(word)
        known[word] = tokens
        return tokens

    def _join(self, text: str) -> list[int]:
        row, known = self._start.copy(), self._first
        for word in _split(text.lower() if self.lower_case else text):
            row += self._learn(word, known)
            known = self._words
        return row + self._end
