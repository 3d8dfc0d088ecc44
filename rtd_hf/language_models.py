"""A text-generation model on this machine: seeded, in batches, the same draws whatever was drawn before."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from .tokens import load_tokenizer


class LocalLanguageModel:
    """
    A causal language model with its tokenizer.

    Args:
        name (`str`): Folder or Hub id.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where it runs.
        dtype (`torch.dtype` or `str`, *optional*): Of its weights; `"auto"` is that of the file, float32 by default.

    Raises:
        OSError: there is no such model; the message is that of `transformers`.
    """

    def __init__(self, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | str | None = None):
        from transformers import AutoModelForCausalLM

        self.name = name
        self.tokenizer = load_tokenizer(name)
        kind = {} if dtype is None else {"dtype": dtype}
        self.model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, **kind).to(device).eval()
        known = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, 0
        self.pad_token_id = next(token for token in known if token is not None)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without those that the tokenizer adds."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], *, seed: str, **options: Any) -> list[list[int]]:
        """
        Continues prompts, in one batch.

        Args:
            prompts (`Sequence[Sequence[int]]`): Tokens of B prompts; the shorter ones are padded at their left.
            seed (`str`): It alone decides what is drawn; the state of the global generator is left as it was.
            options: Of `generate`, such as `temperature`, `max_new_tokens` or `num_return_sequences`.

        Returns:
            `list[list[int]]`: B x `num_return_sequences` continuations, without their prompts.
        """
        device = self.model.device
        longest = max(map(len, prompts))
        rows = [[self.pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(random.Random(seed).getrandbits(63))
            found = self.model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                pad_token_id=self.pad_token_id,
                **options,
            )
        return found[:, longest:].tolist()
