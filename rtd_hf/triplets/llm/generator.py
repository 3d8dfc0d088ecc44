"""Triplets by a language model: an endpoint or a model on this machine is asked to edit captions."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..base import GENERATORS, TripletGenerator
from ..faults import normalised, text_fault
from .endpoint import EndpointModel
from .journal import Journal
from .limits import Budget, RateLimiter, Usage
from .local import LocalModel
from .options import LLMOptions
from .prompts import Asked, build_messages, prompt_version
from .requests import ChatModel
from .run import Run


logger = logging.get_logger(__name__)

_FOREIGN = ("not English", "not Latin script")


@GENERATORS.register("llm")
class LLMGenerator(TripletGenerator):
    """
    Has a language model edit captions: per caption some kinds of edit, drawn by seed and caption, each with the text
    of the change and the caption of the changed picture.

    Every answer is on disk before it is used. A run that was killed, or ran out of money, goes on from its checkpoint:
    a caption is asked again only where no answer to it had arrived. Answers are read as data and checked one by one;
    refused ones stay in the checkpoint with the reason ([`read_rejected`]).

    Args:
        options ([`LLMOptions`]): What to ask, whom, and how.
        seed (`int`, *optional*, defaults to 0): With a caption, it decides what is asked.
        model ([`ChatModel`], *optional*): Who answers, in the place of the one that the options name.

    Attributes:
        budget ([`Budget`]): What was spent, runs before this one included.
        limiter ([`RateLimiter`]): How fast may be asked.
        accepted (`int`): Triplets of this run.

    Raises:
        ValueError: an option is missing or wrong.
        EndpointError: there is no key for a provider.
    """

    name = "llm"
    options_class = LLMOptions

    def __init__(self, options: LLMOptions | None = None, *, seed: int = 0, model: ChatModel | None = None):
        super().__init__(options, seed=seed)
        self.model = _model_of(self.options) if model is None else model
        self.budget = self._new_budget()
        self.limiter = RateLimiter(self.options.requests_per_minute, self.options.tokens_per_minute)
        self.accepted = 0
        self.backoff = 1.0  # seconds after the first failed attempt
        self._checkpoint = Path(self.options.checkpoint) if self.options.checkpoint else None
        self._total: int | None = None
        self._first: dict[int, int] = {}  # caption's key -> the row where it stands first

    @property
    def label(self) -> str:
        """`llm:` and the model's name; of a folder its last part."""
        return f"{self.name}:{_model_name(self.model.model)}"

    @property
    def settings(self) -> dict[str, Any]:
        """What the triplets depend on. What they cost and where the model is may change while a run goes on."""
        options = self.options
        return {**self.answer_settings, "asks": options.asks, "any_language": options.any_language}

    @cached_property
    def answer_settings(self) -> dict[str, Any]:
        """What an answer depends on; stands in the checkpoint."""
        options = self.options
        return {
            "model": _model_name(self.model.model),
            "prompt": prompt_version(),
            "edits": sorted(set(options.edits)),
            "edits_per_caption": options.edits_per_caption,
            "temperature": options.temperature,
            "max_words": options.max_words,
            "seed": self.seed,
        }

    @property
    def summary(self) -> str:
        """Tokens, cost and refusals in a line."""
        spent = self.budget.spent
        cost = f", cost {spent.cost:.4f}" if self.budget.price_input or self.budget.price_output else ""
        if spent.uncertain_cost:
            cost += f" ({spent.uncertain_cost:.4f} of it an upper bound)"
        return (
            f"{spent.requests} requests, {spent.prompt_tokens} + {spent.completion_tokens} tokens{cost}; "
            f"{self.accepted} triplets, {sum(self.skipped.values())} refused or skipped"
        )

    def prepare(self, captions: Iterable[str | None], *, folder: Path, workers: int = 1) -> None:
        """Counts the captions, and says what asking about them may cost."""
        if self._checkpoint is None:
            # Outside of the folder, which goes when the run is complete: what was paid for stays.
            self._checkpoint = folder.with_name(f"{folder.stem}.answers.jsonl")
        options, self._total, askable, size = self.options, 0, 0, 0
        for row, caption in enumerate(captions):
            self._total += 1
            asked, _ = self.asked(row, caption)
            if asked is not None:
                askable += 1
                size += len(asked.caption.encode()) // 4 + 20
        requests = -(-askable // options.captions_per_request)
        frame = sum(len(message["content"]) for message in build_messages([])) // 4
        tokens = (requests * frame + size, askable * options.edits_per_caption * 60)
        cost = f", about {self.budget.cost(*tokens):.2f} in all" if options.price_input or options.price_output else ""
        logger.warning(
            f"{askable} of {self._total} captions are asked about, in about {requests} requests: some {tokens[0]} "
            f"tokens of questions and {tokens[1]} of answers{cost}. Answers are kept in {self._checkpoint}."
        )

    def generate(self, captions: Iterable[tuple[int, str | None]]) -> Iterator[dict[str, Any]]:
        """Asks about captions; see [`TripletGenerator.generate`]."""
        if self._checkpoint is None:
            raise ValueError(
                "`checkpoint` is not given, and `prepare` was not called, which would choose one. Answers cost money: "
                "name the file that keeps them."
            )
        with Journal(self._checkpoint, self.answer_settings) as journal:
            self.budget = self._new_budget(journal.spent)
            run = Run(self, journal)
            try:
                with tqdm(total=self._total, desc="Asking", unit="caption", disable=None) as bar:
                    for row, triplets in run.in_order(captions):
                        bar.update(row + 1 - bar.n)
                        bar.set_postfix_str(self.summary, refresh=False)
                        self.accepted += len(triplets)
                        yield from triplets
            finally:
                run.close()
        logger.warning(f"{self.summary}.")
        for reason, what in (("no answer", "got no answer"), ("over max_cost", "were not asked for lack of money")):
            if self.skipped[reason]:
                logger.warning(
                    f"{self.skipped[reason]} captions {what}. Run again with `checkpoint` {self._checkpoint}, and "
                    f"only they are asked."
                )

    def _new_budget(self, spent: Usage | None = None) -> Budget:
        options = self.options
        budget = Budget(options.price_input, options.price_output, max_cost=options.max_cost)
        budget.spent += spent or Usage()
        return budget

    def asked(self, row: int, caption: object) -> tuple[Asked | None, str | None]:
        """
        What is asked about a caption: the same at every time and place.

        Args:
            row (`int`): Its place in the input.
            caption (`object`): As it stands in the data.

        Returns:
            `tuple`: an [`Asked`], or `None` and the reason. A caption that stands twice is asked the first time.
        """
        text = normalised(caption.replace("<PERSON>", "person")) if isinstance(caption, str) else caption
        fault = text_fault(text, max_words=self.options.max_words)
        if fault and not (self.options.any_language and fault in _FOREIGN):
            return None, fault
        words = json.dumps([self.answer_settings, text])
        key = hashlib.blake2b(words.encode(), digest_size=8).hexdigest()
        if self._first.setdefault(int(key, 16), row) != row:
            return None, "repeated"
        kinds = self.answer_settings["edits"]
        edits = random.Random(f"{self.seed} {key}").sample(kinds, self.options.edits_per_caption)
        return Asked(key, row, text, tuple(edits)), None


def _model_name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model


def _model_of(options: LLMOptions) -> ChatModel:
    if not options.model:
        raise ValueError(
            "`model` is not given. Name the one that the endpoint serves, its Hub id, or with `backend` `local` a "
            "folder or Hub id."
        )
    if options.backend == "local":
        return LocalModel(
            options.model, device=options.device, at_once=options.concurrency, temperature=options.temperature
        )
    return EndpointModel(
        options.model,
        base_url=options.base_url,
        provider=options.provider,
        api_key_env=options.api_key_env,
        timeout=options.timeout,
        temperature=options.temperature,
    )
