"""The injection of pseudo-words into a stock text encoder, and the pooling of one row at several positions."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import can_return_tuple

from ..packing import PackedRows
from .checkpoints import StockCheckpointMixin


class PseudoWordMixin(StockCheckpointMixin):
    """
    Makes a stock text encoder accept pseudo-words, without a new parameter and without a second forward pass of ours.

    Put it before the stock class: `class XTextModelForRTD(PseudoWordMixin, StockTextModel)`. During a call, a forward
    hook on the token embedding writes the pseudo-words over the embeddings of the placeholders; everything after it is
    the stock forward, hence causal if that is, and it works under DDP, PEFT, autocast and gradient checkpointing. With
    pseudo-words equal to the placeholder's own embedding the result equals the stock model's bit by bit.

    Thread safety: the hook lives on the shared module for the length of a call, and acts only in the thread that made
    the call, so several threads may call one model, each with its own pseudo-words. `torch.compile` works, with graph
    breaks around the hook, hence not with `fullgraph=True`.

    Class attributes, besides those of [`StockCheckpointMixin`]:
        output_class (`type`): What its forward returns.
        padding (`str`): `"longest"` where trailing padding cannot reach the pooled positions, else `"max_length"`.
        lower_case (`bool`): Whether it was trained on small letters, and not all of its tokenizers make them.
        lora_target_modules (`tuple[str]`): Names of the linear layers LoRA adapts.
    """

    output_class: ClassVar[type]
    padding: ClassVar[str] = "longest"
    lower_case: ClassVar[bool] = False
    lora_target_modules: ClassVar[tuple[str, ...]]

    @property
    def projection_dim(self) -> int:
        """Width D of the text embeddings, and of the image embeddings they are compared with."""
        return self.config.projection_dim

    def prompt_options(self, max_length: int | None = None) -> dict[str, Any]:
        """
        What [`PromptTokenizer`] and [`DataCollatorForRTD`] have to know of this encoder.

        Args:
            max_length (`int`, *optional*): Longest row in tokens; as many as the encoder has positions by default.

        Returns:
            `dict`: `padding`, `max_length` and `lower_case`.

        Raises:
            ValueError: `max_length` is more than the positions, or, where all rows have one length, another than that.
        """
        positions = self.config.max_position_embeddings
        length = positions if max_length is None else int(max_length)
        fixed = self.padding == "max_length"
        if length > positions or (fixed and length != positions):
            rule = "reads rows of exactly" if fixed else "has only"
            raise ValueError(
                f"`max_length` is {length}, but this {type(self).__name__} {rule} {positions} positions. Leave it out."
            )
        return {"padding": self.padding, "max_length": length, "lower_case": self.lower_case}

    def check_tokenizer(self, tokenizer: Any):
        """
        Makes sure that every token of a tokenizer has an embedding here.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer that is to be used with this encoder.

        Raises:
            ValueError: it has more tokens than there are embeddings, so it is another model's, or one was added.
        """
        rows = self.get_input_embeddings().weight.shape[0]
        largest = max(tokenizer.get_vocab().values())
        if largest >= rows:
            came = f" This one came from `{tokenizer.name_or_path}`." if tokenizer.name_or_path else ""
            raise ValueError(
                f"`tokenizer` has token ids up to {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), but this "
                f"{type(self).__name__} has {rows} token embeddings. Use the tokenizer that was published with the "
                f"text encoder, without added tokens.{came}"
            )

    @property
    def takes_packed_rows(self) -> bool:
        """Whether this model has a packed form of its forward that equals the stock one."""
        return False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pseudo_words: torch.Tensor | None = None,
        placeholder_mask: torch.Tensor | None = None,
        pooling_positions: torch.Tensor | None = None,
        packed_rows: PackedRows | Sequence[PackedRows] | None = None,
        **kwargs: Any,
    ):
        """
        The stock forward, with pseudo-words in place of placeholders and several prompts in one row.

        Without the last four arguments it is the stock model, except that a row without EOS is refused.

        Args:
            input_ids (`torch.Tensor` of shape `(R, L)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(R, L)`, *optional*):
                1 for tokens, 0 for padding. Not needed for right-padded rows: the model is causal.
            position_ids (`torch.Tensor` of shape `(R, L)`, *optional*): Positions; `0 .. L-1` by default.
            pseudo_words (`torch.Tensor` of shape `(R, K, H)` or `(N, H)`, *optional*):
                Vectors in the space of the token embeddings, written over the placeholders in reading order: K for
                each row, or one for each of the N placeholders of the batch. Gradients reach them.
            placeholder_mask (`torch.Tensor` of shape `(R, L)`, *optional*): True where a pseudo-word is written.
            pooling_positions (`torch.Tensor` of shape `(R, P)`, *optional*):
                Positions pooled in each row. One that is not the row's last is hidden from the later tokens, so that
                a row may carry a prompt and its own prefix. By default the first EOS of each row.
            packed_rows ([`PackedRows`] or a sequence of them, *optional*):
                The rows without padding, instead of `input_ids` and all that belongs to it; the same embeddings in a
                fraction of the time. Of several, each is encoded for itself and, where gradients are asked for, once
                more in the backward pass, so that only one is in memory at a time (gradient caching: Gao et al.,
                [arXiv:2101.06983](https://huggingface.co/papers/2101.06983)); dropout draws the same again.
            kwargs: Passed to the stock forward.

        Returns:
            The stock output class. `text_embeds` has shape `(R, D)`, or `(P * R, D)` with `pooling_positions`: first
            all rows pooled at column 0, then all rows pooled at column 1. With `packed_rows` it is all there is, the P
            prompts in the same order.

        Raises:
            ValueError: the pseudo-words do not match the placeholders in number or width, one is given without the
                other, a row has no EOS to pool at, `pooling_positions` does not match `input_ids`, or several prompts
                in a row meet an attention implementation without additive masks.
        """
        # PEFT's task wrappers pass it as None, which the stock forward would hand to the encoder a second time.
        if kwargs.pop("inputs_embeds", None) is not None:
            raise ValueError(
                "`inputs_embeds` is not supported. Give `input_ids`, with `pseudo_words` for single words."
            )
        if packed_rows is not None:
            return self._forward_packed(packed_rows, pseudo_words)
        if input_ids is None:
            raise ValueError("The model needs `input_ids` or `packed_rows`, got neither.")
        words = self._check_pseudo_words(input_ids, pseudo_words, placeholder_mask)
        attention_mask = self._mask_for(input_ids, attention_mask, pooling_positions)
        with self._injected(words, placeholder_mask):
            output = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **kwargs,
            )
        return self._pooled(output, input_ids, pooling_positions)

    # Packed rows

    def _forward_packed(self, packed_rows: PackedRows | Sequence[PackedRows], words: torch.Tensor | None):
        if not self.takes_packed_rows:
            raise ValueError(f"This {type(self).__name__} takes no `packed_rows`. Give padded `input_ids`.")
        chunks = [packed_rows] if isinstance(packed_rows, PackedRows) else list(packed_rows)
        if not chunks:
            raise ValueError("`packed_rows` is empty. Give at least one.")
        numbers = [rows.num_words for rows in chunks]
        parts: Sequence[torch.Tensor | None] = [None] * len(chunks)
        if words is not None or sum(numbers):
            width = self.config.hidden_size
            came = None if words is None else tuple(words.shape)
            if words is None or words.shape[-1] != width or words.numel() != sum(numbers) * width:
                raise ValueError(
                    f"`packed_rows` needs {sum(numbers)} `pseudo_words` of width {width}, the width of the text "
                    f"encoder's token embeddings, got shape {came}. Use a projection made for this text encoder, and "
                    f"the rows that were packed for these words."
                )
            parts = words.reshape(-1, width).split(numbers)
        recompute = len(chunks) > 1 and torch.is_grad_enabled()
        embeds = []
        for rows, part in zip(chunks, parts, strict=True):

            def encode(input_ids: torch.Tensor, rows=rows, part=part) -> torch.Tensor:
                return self._encode_packed(rows, part)[rows.prompt_rows]

            # The argument is a tensor so that `checkpoint` knows the device whose random state dropout draws from.
            ids = rows.input_ids
            embeds.append(checkpoint(encode, ids, use_reentrant=False) if recompute else encode(ids))
        return self.output_class(text_embeds=torch.cat(embeds, dim=1).flatten(0, 1))

    def _encode_packed(self, rows: PackedRows, words: torch.Tensor | None) -> torch.Tensor:
        """Embeddings `(R, D)` of the distinct rows, not normalised; `words` are `(num_words, H)`."""
        raise NotImplementedError

    # Injection

    def _check_pseudo_words(
        self, input_ids: torch.Tensor, words: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Returns the words as `(N, H)`. Reading the counts waits for the device once per call."""
        if words is None:
            if mask is not None and bool(mask.any()):
                raise ValueError(
                    f"`placeholder_mask` marks {int(mask.sum())} placeholder(s), but `pseudo_words` is missing. Give "
                    f"the vectors, or leave `placeholder_mask` out to encode the placeholders as ordinary tokens."
                )
            return None
        if mask is None:
            raise ValueError(
                "`pseudo_words` needs `placeholder_mask`, which says where they are written, but got None. Use the "
                "mask that `PromptTokenizer.compose` returns."
            )
        if mask.shape != input_ids.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"`placeholder_mask` must be boolean with the shape of `input_ids`, {tuple(input_ids.shape)}, but is "
                f"{mask.dtype} with shape {tuple(mask.shape)}. Use the mask that `PromptTokenizer.compose` returns."
            )
        width = self.config.hidden_size
        if words.ndim not in (2, 3) or words.shape[-1] != width:
            raise ValueError(
                f"`pseudo_words` must have shape (rows, words, {width}) or (placeholders, {width}), where {width} is "
                f"the width of the text encoder's token embeddings, but has shape {tuple(words.shape)}. Use a "
                f"projection made for this text encoder."
            )
        self._check_counts(words, mask)
        return words.reshape(-1, width)

    @staticmethod
    def _check_counts(words: torch.Tensor, mask: torch.Tensor):
        counts = mask.sum(dim=-1).reshape(-1).tolist()
        if words.ndim == 2 and words.shape[0] != sum(counts):
            raise ValueError(
                f"`pseudo_words` holds {words.shape[0]} vectors, but `placeholder_mask` marks {sum(counts)} "
                f"placeholders. Give one vector for each placeholder, in reading order."
            )
        if words.ndim == 3 and counts != [words.shape[1]] * words.shape[0]:
            wrong = next((row for row, count in enumerate(counts) if count != words.shape[1]), None)
            came = f"{len(counts)} rows" if wrong is None else f"{len(counts)} rows, row {wrong} with {counts[wrong]}"
            raise ValueError(
                f"`pseudo_words` holds {words.shape[1]} vector(s) for each of {words.shape[0]} rows, but "
                f"`placeholder_mask` marks placeholders in {came}. Give as many vectors as placeholders; where rows "
                f"differ, give them flat as (placeholders, width)."
            )

    @contextmanager
    def _injected(self, words: torch.Tensor | None, mask: torch.Tensor | None) -> Iterator[None]:
        if words is None or words.shape[0] == 0:
            yield
            return
        owner = threading.get_ident()

        def write_pseudo_words(module: nn.Module, args: Any, embeddings: torch.Tensor) -> torch.Tensor | None:
            if threading.get_ident() != owner:
                return None
            # Out of place: with PEFT and gradient checkpointing the embeddings may be a leaf that requires grad.
            where = mask.to(embeddings.device).unsqueeze(-1)
            return embeddings.masked_scatter(where, words.to(device=embeddings.device, dtype=embeddings.dtype))

        handle = self.get_input_embeddings().register_forward_hook(write_pseudo_words)
        try:
            yield
        finally:
            handle.remove()

    # Pooling

    def _mask_for(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor | None
    ) -> torch.Tensor | None:
        """
        The additive mask `(R, 1, L, L)` in which no later token sees a pooled position, or the given mask for P < 2.

        Floats, because the eager attention adds a boolean mask instead of applying it.
        """
        if positions is None:
            return attention_mask
        rows, length = input_ids.shape
        if positions.ndim != 2 or positions.shape[0] != rows or positions.shape[1] == 0:
            raise ValueError(
                f"`pooling_positions` must have shape ({rows}, P), one line for each row of `input_ids`, but has "
                f"shape {tuple(positions.shape)}."
            )
        if positions.shape[1] == 1:
            return attention_mask
        implementation = self.config._attn_implementation
        if implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"Several `pooling_positions` in a row need an attention with additive masks, but the text encoder "
                f"uses `{implementation}`. Load it with `attn_implementation='sdpa'`, or give each prompt its own row."
            )
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                f"With several `pooling_positions` in a row `attention_mask` must have shape ({rows}, {length}), but "
                f"has shape {tuple(attention_mask.shape)}. Leave it out: right-padded rows need none."
            )
        device = input_ids.device
        columns = torch.arange(length, device=device)
        hidden = (columns == positions.to(device).unsqueeze(-1)).any(dim=1)
        if attention_mask is not None:
            hidden = hidden | ~attention_mask.to(device=device, dtype=torch.bool)
        causal = columns <= columns.unsqueeze(-1)
        itself = columns == columns.unsqueeze(-1)
        visible = (causal & ~hidden.unsqueeze(1)) | itself
        dtype = self.get_input_embeddings().weight.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
        return mask.unsqueeze(1)

    def _pooled(self, output: Any, input_ids: torch.Tensor, positions: torch.Tensor | None) -> Any:
        """The stock output, with the embeddings at the positions that were asked for."""
        if positions is None:
            self._check_eos(input_ids)
            return output
        hidden = output.last_hidden_state
        columns = positions.to(hidden.device).t().reshape(-1)
        rows = torch.arange(hidden.shape[0], device=hidden.device).repeat(positions.shape[1])
        output.text_embeds = self.text_projection(hidden[rows, columns])
        return output

    def _check_eos(self, input_ids: torch.Tensor):
        """Refuses rows without EOS, for which the stock model pools the first token instead and says nothing."""
        eos = self.config.eos_token_id
        if eos == 2:  # the legacy value: the stock model takes the highest id of a row for EOS
            lost = input_ids.argmax(dim=-1) == 0
        else:
            lost = (input_ids != eos).all(dim=-1)
        if bool(lost.any()):
            row = int(lost.nonzero()[0, 0])
            raise ValueError(
                f"Row {row} of `input_ids` has no EOS token to pool at: {input_ids[row].tolist()} "
                f"(`config.eos_token_id` is {eos}). Truncate so that EOS stays, as `PromptTokenizer` does, or give "
                f"`pooling_positions`."
            )
