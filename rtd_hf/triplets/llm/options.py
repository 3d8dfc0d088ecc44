"""Options of the generator that asks a language model."""

from dataclasses import dataclass, field
from typing import Literal

from .prompts import EDITS


def _option(default: object, text: str) -> object:
    return field(default=default, metadata={"help": text})


@dataclass
class LLMOptions:
    """
    Options of [`LLMGenerator`].

    Raises:
        ValueError: an option is out of its range, or one is missing that another needs.
    """

    model: str | None = _option(None, "Name of the model at the endpoint, its Hub id, or a folder (`local`).")
    backend: Literal["endpoint", "local"] = _option(
        "endpoint", "`endpoint`: a chat-completions server or a provider of the Hub; `local`: transformers, here."
    )
    base_url: str | None = _option(
        None, "OpenAI-compatible endpoint, such as http://localhost:8000/v1; a provider of the Hub by default."
    )
    provider: str | None = _option(None, "Provider of the Hub; by default the first one of your settings.")
    api_key_env: str | None = _option(
        None, "Environment variable with the key. By default a provider gets your Hub token, a base_url no key."
    )
    device: str | None = _option(None, "`local`: where it runs; a GPU where there is one.")
    checkpoint: str | None = _option(
        None, "File that keeps every answer, refused ones too; by default beside the output. A run goes on from it."
    )
    edits_per_caption: int = _option(2, "Triplets asked for each caption, each of another kind of edit.")
    edits: list[str] = field(
        default_factory=lambda: list(EDITS), metadata={"help": f"Kinds of edit to draw from: {', '.join(EDITS)}."}
    )
    any_language: bool = _option(False, "Also ask about captions that are not in English.")
    captions_per_request: int = _option(8, "Captions in one request.")
    concurrency: int = _option(8, "Requests under way at once; with `local` the size of a batch.")
    asks: int = _option(1, "How often a caption is asked in all, where its answers are refused.")
    temperature: float = _option(0.8, "Temperature of the sampling.")
    tokens_per_triplet: int = _option(120, "Room of an answer; models that think aloud need more.")
    max_words: int = _option(60, "Longest text, in words.")
    retries: int = _option(6, "Further attempts of a request that failed, with growing pauses.")
    timeout: float = _option(120.0, "Seconds without a byte before a request counts as lost.")
    longest_pause: float = _option(300.0, "Longest pause in seconds that an endpoint may ask for.")
    requests_per_minute: float | None = _option(None, "No more requests in any 60 seconds.")
    tokens_per_minute: float | None = _option(None, "No more tokens, of questions and answers, in any 60 seconds.")
    price_input: float | None = _option(None, "Price of a million tokens of questions.")
    price_output: float | None = _option(None, "Price of a million tokens of answers.")
    max_cost: float | None = _option(None, "Stop before more is spent, runs before this one included.")

    def __post_init__(self):
        for name in ("captions_per_request", "concurrency", "asks", "edits_per_caption", "max_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("timeout", "tokens_per_triplet"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        for name in ("retries", "temperature", "longest_pause"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if self.backend not in ("endpoint", "local"):
            raise ValueError(f"`backend` must be `endpoint` or `local`, got {self.backend!r}.")
        unknown = sorted(set(self.edits) - set(EDITS))
        if unknown or not self.edits:
            raise ValueError(f"`edits` must be some of {', '.join(EDITS)}, got {', '.join(unknown) or 'none'}.")
        if self.edits_per_caption > len(set(self.edits)):
            raise ValueError(
                f"`edits_per_caption` is {self.edits_per_caption}, but `edits` holds {len(set(self.edits))} kinds "
                f"only. Lower it."
            )
        if self.backend == "local" and (self.base_url or self.provider or self.api_key_env):
            raise ValueError("`backend` `local` takes no `base_url`, `provider` or `api_key_env`. Leave them out.")
