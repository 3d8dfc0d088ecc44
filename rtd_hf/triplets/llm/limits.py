"""What a run may spend and how fast it may ask: rate limits, cost, waiting before another attempt."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


_MINUTE = 60.0


class BudgetReached(Exception):  # noqa: N818
    """The next request could cost more than is left of `max_cost`. Ends a run in good order; not an error."""


class RateLimiter:
    """
    Lets requests through so that no 60 seconds hold more requests or tokens than allowed.

    Args:
        requests_per_minute (`float`, *optional*): Requests in any 60 seconds.
        tokens_per_minute (`float`, *optional*): Tokens, of questions and answers, in any 60 seconds.
        clock (`Callable[[], float]`, *optional*): Seconds; a monotonic clock by default.
        wait (`Callable[[float], object]`, *optional*): Waits so many seconds.

    Raises:
        ValueError: a limit is below 1.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ):
        for name, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if limit is not None and not limit >= 1:
                raise ValueError(f"`{name}` must be at least 1, but is {limit}. Leave it out for no limit.")
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self._clock, self._wait = clock, wait
        self._lock = threading.Lock()
        self._sent: deque[list[float]] = deque()  # [when, tokens]
        self._closed_until = float("-inf")

    def acquire(self, tokens: float, *, wait: Callable[[float], object] | None = None) -> list[float]:
        """
        Waits until a request may be sent.

        Args:
            tokens (`float`): How many it will probably take. One that is above the limit by itself is sent alone.
            wait (`Callable[[float], object]`, *optional*): Waits so many seconds, in the place of the limiter's own.

        Returns:
            `list[float]`: The entry to hand to `settle`.
        """
        while True:
            with self._lock:
                delay = self._delay(tokens)
                if delay <= 0:
                    entry = [self._clock(), tokens]
                    self._sent.append(entry)
                    return entry
            (wait or self._wait)(delay)

    def settle(self, entry: list[float], tokens: float) -> None:
        """Puts the tokens that a request took in the place of those it would probably take."""
        with self._lock:
            entry[1] = tokens

    def close_for(self, seconds: float) -> None:
        """No request is sent for so long: the endpoint asked for it."""
        with self._lock:
            self._closed_until = max(self._closed_until, self._clock() + seconds)

    def _delay(self, tokens: float) -> float:
        now = self._clock()
        while self._sent and self._sent[0][0] <= now - _MINUTE:
            self._sent.popleft()
        delay = self._closed_until - now
        if self.requests_per_minute is not None and self._sent:
            room = int(self.requests_per_minute)
            if len(self._sent) >= room:
                delay = max(delay, self._sent[len(self._sent) - room][0] + _MINUTE - now)
        if self.tokens_per_minute is not None:
            excess = sum(entry[1] for entry in self._sent) + tokens - self.tokens_per_minute
            for when, taken in self._sent:
                if excess <= 0:
                    break
                excess -= taken
                delay = max(delay, when + _MINUTE - now)
        return delay


@dataclass
class Usage:
    """
    Tokens and money.

    Args:
        requests (`int`): Requests that were answered.
        prompt_tokens (`int`): Tokens of the questions.
        completion_tokens (`int`): Tokens of the answers.
        cost (`float`): In the currency of the prices; 0 without prices.
        uncertain_cost (`float`):
            Part of `cost` that is counted at its highest, because a request broke off after it was sent, or because
            the endpoint named no tokens.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    uncertain_cost: float = 0.0

    def __iadd__(self, other: "Usage") -> "Usage":
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Budget:
    """
    Counts what is spent, and keeps it within `max_cost` whatever is still under way.

    A request reserves the most it can cost (every byte of the question a token, the longest answer) before it is
    sent; what it did cost is put in the place of that afterwards.

    Args:
        price_input (`float`, *optional*): Price of a million tokens of questions.
        price_output (`float`, *optional*): Price of a million tokens of answers.
        max_cost (`float`, *optional*): The most that may be spent, with what `spent` begins with.

    Attributes:
        spent ([`Usage`]): So far.

    Raises:
        ValueError: a price or `max_cost` is negative, or `max_cost` comes without prices.
    """

    def __init__(
        self,
        price_input: float | None = None,
        price_output: float | None = None,
        *,
        max_cost: float | None = None,
    ):
        for name, price in (("price_input", price_input), ("price_output", price_output), ("max_cost", max_cost)):
            if price is not None and not 0 <= price < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more, but is {price}.")
        if max_cost is not None and price_input is None and price_output is None:
            raise ValueError(
                f"`max_cost` {max_cost} cannot be kept without prices. Give `price_input` and `price_output`, per "
                f"million tokens."
            )
        self.price_input, self.price_output, self.max_cost = price_input or 0.0, price_output or 0.0, max_cost
        self.spent = Usage()
        self._reserved = 0.0
        self._changed = threading.Condition()

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.price_input + completion_tokens * self.price_output) / 1e6

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> float:
        """
        Reserves the most that a request can cost; waits for requests under way where they decide.

        Returns:
            `float`: what was reserved, to hand to `settle`.

        Raises:
            BudgetReached: it does not fit into `max_cost`.
        """
        most = self.cost(prompt_tokens, completion_tokens)
        with self._changed:
            while self.max_cost is not None:
                if self.spent.cost + most > self.max_cost:
                    raise BudgetReached(
                        f"{self.spent.cost:.4f} of `max_cost` {self.max_cost} is spent, and the next request may cost "
                        f"up to {most:.4f}."
                    )
                if self.spent.cost + self._reserved + most <= self.max_cost:
                    break
                self._changed.wait(1.0)
            self._reserved += most
        return most

    def settle(self, reserved: float, usage: Usage) -> None:
        """Puts what a request did cost in the place of what was reserved."""
        with self._changed:
            self._reserved -= reserved
            self.spent += usage
            self._changed.notify_all()


def backoff_seconds(attempt: int, *, seed: str, base: float, longest: float) -> float:
    """
    How long to wait before another attempt: exponential, with a jitter that depends on the seed alone.

    Args:
        attempt (`int`): Attempts that failed, from 1.
        seed (`str`): Decides the jitter; the request's key in it keeps requests apart that failed together.
        base (`float`): Seconds after the first attempt, doubled with each further one.
        longest (`float`): Never more.

    Returns:
        `float`: between half and all of `min(longest, base * 2 ** (attempt - 1))`.
    """
    return min(longest, base * 2.0 ** min(attempt - 1, 60)) * random.Random(f"{seed} {attempt}").uniform(0.5, 1.0)
