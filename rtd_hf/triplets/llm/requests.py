"""Sends questions: some at once, within limits and budget, again where they failed in passing."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers.utils import logging

from .endpoint import Answer, DeclinedError, EndpointError, PassingError, Question
from .limits import Budget, RateLimiter, Usage, backoff_seconds


logger = logging.get_logger(__name__)

_FAILURES_IN_A_ROW = 3  # requests given up one after the other: the endpoint is down


class ChatModel(Protocol):
    """What answers questions: `at_once` of them in a call; `metered` where it can fail in passing and cost money."""

    model: str
    at_once: int
    metered: bool

    def complete(self, questions: Sequence[Question]) -> list[Answer]: ...


class StoppedError(Exception):
    """The run ends; what waits is not sent."""


@dataclass(frozen=True)
class Reply:
    """
    What became of a question.

    Args:
        answer ([`Answer`], *optional*): What the model said; `None` where it said nothing after every attempt.
        usage ([`Usage`]): What the answer took.
        fault (`str`, *optional*): Why there is no answer.
        declined (`bool`): Whether the endpoint will not answer it at all.
    """

    answer: Answer | None
    usage: Usage
    fault: str | None = None
    declined: bool = False


class Asker:
    """
    Asks a model, from several threads at once.

    Args:
        model ([`ChatModel`]): Who answers.
        budget ([`Budget`]): What may be spent.
        note_lost (`Callable[[Question, Usage, str], None]`): Told of attempts that may have cost something.
        limiter ([`RateLimiter`]): How fast.
        retries (`int`): Further attempts of a request that failed in passing.
        longest_pause (`float`): Seconds; an endpoint that asks for a longer one ends the run.
        backoff (`float`, *optional*, defaults to 1): Seconds after the first failed attempt, doubled with each one.
        seed (`int`, *optional*, defaults to 0): Decides the jitter.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        budget: Budget,
        note_lost: Callable[[Question, Usage, str], None],
        limiter: RateLimiter,
        retries: int,
        longest_pause: float,
        backoff: float = 1.0,
        seed: int = 0,
    ):
        self.model, self.budget, self.note_lost, self.seed = model, budget, note_lost, seed
        self.limiter = limiter
        self.retries, self.longest_pause, self.backoff = retries, longest_pause, backoff
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """
        Asks questions, in one call, until they are answered or every attempt failed.

        Args:
            questions (`Sequence[Question]`): At most `model.at_once`.

        Returns:
            `list[Reply]`: one for each.

        Raises:
            BudgetReached: they could cost more than is left.
            EndpointError: the endpoint cannot be used, asks for a very long pause, or is down.
            StoppedError: the run ends.
        """
        for attempt in range(1, self.retries + 2):
            reserved, entry = self._admit(questions)
            usage = Usage()
            try:
                answers = self.model.complete(questions)
                usages = [self._usage(*each) for each in zip(questions, answers, strict=True)]
                for each in usages:
                    usage += each
            except PassingError as error:
                fault = error
                if error.sent:
                    usage = Usage(cost=reserved, uncertain_cost=reserved)
                    self.note_lost(questions[0], usage, str(error))
            except DeclinedError as error:
                return [Reply(None, Usage(), str(error), declined=True) for _ in questions]
            else:
                with self._lock:
                    self._failures = 0
                return [Reply(*each) for each in zip(answers, usages, strict=True)]
            finally:
                self.budget.settle(reserved, usage)
                self.limiter.settle(entry, usage.prompt_tokens + usage.completion_tokens)
            if attempt <= self.retries:
                self._pause(attempt, questions[0].key, fault)
        return self._given_up(questions, fault)

    def wait(self, seconds: float) -> None:
        """
        Waits, unless the run ends.

        Raises:
            StoppedError: it does.
        """
        if self.stopped.wait(seconds):
            raise StoppedError

    def _admit(self, questions: Sequence[Question]) -> tuple[float, list[float]]:
        size, longest = sum(each.size for each in questions), sum(each.max_tokens for each in questions)
        # A token has four bytes or so; a limit needs no more exactness, as it is corrected afterwards.
        reserved = self.budget.reserve(size, longest)
        entry = self.limiter.acquire(size / 4 + longest / 2, wait=self.wait)
        if self.stopped.is_set():
            raise StoppedError
        return reserved, entry

    def _usage(self, question: Question, answer: Answer) -> Usage:
        asked, said = answer.prompt_tokens, answer.completion_tokens
        known = asked is not None and said is not None
        if known:
            cost = self.budget.cost(asked, said)
        else:
            cost = self.budget.cost(question.size, question.max_tokens)
            asked, said = question.size // 4, len((answer.text or "").encode()) // 4
        return Usage(1, asked, said, cost, 0.0 if known else cost)

    def _pause(self, attempt: int, key: str, fault: PassingError) -> None:
        seconds = backoff_seconds(attempt, seed=f"{self.seed} {key}", base=self.backoff, longest=60.0)
        if fault.retry_after is not None:
            if fault.retry_after > self.longest_pause:
                raise EndpointError(
                    f"{fault}\nIt asks to wait {fault.retry_after:.0f} seconds, longer than `longest_pause` "
                    f"{self.longest_pause:.0f}. What was answered is kept; run again later."
                )
            self.limiter.close_for(fault.retry_after)
            # All were asked to wait for the same time; they do not come back in the same moment.
            seconds = fault.retry_after + min(seconds, 1.0)
        logger.info(f"Attempt {attempt} of a request failed ({fault}); the next one in {seconds:.1f} s.")
        self.wait(seconds)

    def _given_up(self, questions: Sequence[Question], fault: PassingError) -> list[Reply]:
        with self._lock:
            self._failures += 1
            down = self._failures >= _FAILURES_IN_A_ROW
        logger.warning(f"A request was given up after {self.retries + 1} attempts: {fault}")
        if down:
            raise EndpointError(
                f"{_FAILURES_IN_A_ROW} requests in a row were given up after {self.retries + 1} attempts each; the "
                f"last one: {fault}. Look whether the endpoint is up (`base_url`, `provider`). What was answered is "
                f"kept; run again to go on."
            )
        return [Reply(None, Usage(), str(fault)) for _ in questions]
