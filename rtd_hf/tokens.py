"""Texts to token ids, with BOS and EOS: word by word from memory where the tokenizer allows it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
_MOST_WORDS = 500_000  # a bound on memory; the 25,000 captions of COCO val2017 hold 10,000


class TextTokenizer:
    """
    Token ids of texts, special tokens of the tokenizer around them, nothing cut and nothing padded.

    Byte-pair encodings of CLIP's kind work on one word at a time, so a word's tokens can be remembered: captions share
    a small vocabulary, and 27 thousand texts a second become 760 thousand (24,000 of COCO's captions met before,
    CLIP's vocabulary, one core of an AMD EPYC). Whether a tokenizer is of that kind is found out by tokenizing texts
    whole and by words; the others are asked each time.

    A special token spelled out in a text is ordinary text, as a second EOS would end the prompt early.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The text encoder's tokenizer.

    Attributes:
        by_words (`bool`): Whether words are remembered.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}
        self._start, self._end = self._frame()
        self.by_words = self._added_are_words() and all(self._join(text) == self.whole([text])[0] for text in _PROBES)
        self._words.clear()

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """
        Args:
            texts (`Sequence[str]`): The texts.

        Returns:
            `list[list[int]]`: One row of token ids a text.
        """
        if not self.by_words:
            return self.whole(texts)
        if len(self._words) > _MOST_WORDS:
            self._words.clear()
        known, start, end = self._words, self._start, self._end
        rows = []
        for text in texts:
            row = start.copy()
            for word in text.split():
                tokens = known.get(word)
                row += self._learn(word) if tokens is None else tokens
            row += end
            rows.append(row)
        return rows

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """The plain form: the same by the tokenizer alone."""
        # Cutting is done elsewhere and not by the tokenizer, because cut rows are counted.
        return self.tokenizer(
            list(texts),
            add_special_tokens=True,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            split_special_tokens=True,
            verbose=False,
        )["input_ids"]

    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        empty, word = self.whole(["", "a"])
        start = next((i for i, (one, other) in enumerate(zip(empty, word, strict=False)) if one != other), len(empty))
        return empty[:start], empty[start:]

    def _added_are_words(self) -> bool:
        """Whether no token of several words was added; special ones, once spelled out, are ordinary text."""
        special = set(self.tokenizer.all_special_tokens)
        return not any(len(text.split()) > 1 for text in set(self.tokenizer.get_added_vocab()) - special)

    def _learn(self, word: str) -> list[int]:
        row = self.whole([word])[0]
        tokens = row[len(self._start) : len(row) - len(self._end)]
        self._words[word] = tokens
        return tokens

    def _join(self, text: str) -> list[int]:
        return [*self._start, *(token for word in text.split() for token in self._learn(word)), *self._end]
