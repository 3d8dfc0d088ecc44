"""One pass of a language model over captions: who is asked together, who is waited for, what is kept."""

import difflib
import hashlib
import json
import re
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .answers import Outcome, read_answer
from .endpoint import Question
from .journal import Journal
from .limits import BudgetReached, Usage
from .prompts import Asked, answer_schema, build_messages
from .requests import Asker, Reply, StoppedError


if TYPE_CHECKING:
    from .generator import LLMGenerator

logger = logging.get_logger(__name__)

_AHEAD = 4  # requests prepared for each one under way, so that a slow one holds nobody up
_EARLY = 40  # edits after which a model that cannot do it is noticed


@dataclass
class _Group:
    """Captions of one request; `future` is there once it is sent."""

    asked: list[Asked] = field(default_factory=list)
    future: Future | None = None


class Run:
    """
    One pass over captions.

    Args:
        generator ([`LLMGenerator`]): Whose options, model and counters.
        journal ([`Journal`]): Where answers are kept.
    """

    def __init__(self, generator: "LLMGenerator", journal: Journal):
        self.generator, self.journal, self.options = generator, journal, generator.options
        self.asker = Asker(
            generator.model,
            budget=generator.budget,
            note_lost=self._note_lost,
            limiter=generator.limiter,
            retries=self.options.retries if generator.model.metered else 0,
            longest_pause=self.options.longest_pause,
            backoff=generator.backoff,
            seed=generator.seed,
        )
        workers = self.options.concurrency if generator.model.metered else 1
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="asking")
        self._group = _Group()
        self._batch: list[_Group] = []
        self._out_of_money: str | None = None
        self._fatal: OSError | None = None
        self._taken = self._refused = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Ends what waits; what is under way is paid for and waited for."""
        self.asker.stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def in_order(self, captions: Iterable[tuple[int, str | None]]) -> Iterator[tuple[int, list[dict]]]:
        """Every caption's row with its triplets, in the order of the captions."""
        waiting: deque[tuple[Asked, _Group | None]] = deque()
        most = _AHEAD * self.options.concurrency * self.options.captions_per_request
        for row, caption in captions:
            asked, fault = self.generator.asked(row, caption)
            if fault:
                self.generator.skipped[fault] += 1
                continue
            waiting.append((asked, self._plan(asked)))
            while len(waiting) > most:
                yield self._finish(*waiting.popleft())
        self._send_group()
        self._send_batch()
        while waiting:
            yield self._finish(*waiting.popleft())

    def _plan(self, asked: Asked) -> _Group | None:
        """Puts a caption into the next request, unless it was answered."""
        known = self.journal.caption(asked.key)
        if known is not None:
            if not known["missing"] or known["asked"] >= self.options.asks:
                return None
            asked = Asked(asked.key, asked.row, asked.caption, tuple(known["missing"]))
        if self._out_of_money:
            return None
        group = self._group
        group.asked.append(asked)
        if len(group.asked) == self.options.captions_per_request:
            self._send_group()
        return group

    def _send_group(self) -> None:
        if self._group.asked:
            self._batch.append(self._group)
            self._group = _Group()
        if len(self._batch) >= self.generator.model.at_once:
            self._send_batch()

    def _send_batch(self) -> None:
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        if self._out_of_money:
            future = Future()
            future.set_exception(BudgetReached(self._out_of_money))
        else:
            future = self._pool.submit(self._answer, [group.asked for group in batch])
        for group in batch:
            group.future = future

    def _answer(self, groups: list[list[Asked]]) -> None:
        """In a thread: asks, keeps the answers, and asks again what was refused."""
        try:
            while groups:
                questions = [self._question(group) for group in groups]
                replies = self.asker.ask(questions)
                groups = [
                    again
                    for group, question, reply in zip(groups, questions, replies, strict=True)
                    if (again := self._keep(group, question, reply))
                ]
        except OSError as error:  # of the endpoint or the disk: what waits would fail as well
            self._fatal = self._fatal or error
            self.asker.stopped.set()
            raise

    def _question(self, group: Sequence[Asked]) -> Question:
        known = [self.journal.caption(each.key) for each in group]
        times = [entry["asked"] if entry else 0 for entry in known]
        words = json.dumps([[each.key, each.edits, time] for each, time in zip(group, times, strict=True)])
        edits = tuple(each.edits for each in group)
        return Question(
            key=hashlib.blake2b(words.encode(), digest_size=16).hexdigest(),
            messages=build_messages(group),
            edits=edits,
            schema=answer_schema(),
            max_tokens=40 + self.options.tokens_per_triplet * sum(map(len, edits)),
        )

    def _keep(self, group: list[Asked], question: Question, reply: Reply) -> list[Asked]:
        """Writes an answer to the checkpoint; what is still to be asked comes back."""
        record = {"request": question.key, "usage": vars(reply.usage), "captions": []}
        if reply.answer is None and not reply.declined:
            return []  # asked again in another run
        if reply.answer is None:
            outcomes = [Outcome(missing=list(each.edits)) for each in group]
            for outcome in outcomes:
                outcome.refuse("refused", "the endpoint declines", reply.fault or "")
        else:
            record["finish_reason"] = reply.answer.finish_reason
            outcomes = read_answer(
                reply.answer.text,
                group,
                max_words=self.options.max_words,
                finish_reason=reply.answer.finish_reason,
            )
        self._notice(outcomes)
        again = []
        for each, outcome in zip(group, outcomes, strict=True):
            before = self.journal.caption(each.key) or {"asked": 0, "triplets": []}
            entry = {
                "key": each.key,
                "row": each.row,
                "caption": each.caption,
                "asked": before["asked"] + 1,
                "triplets": [*before["triplets"], *outcome.triplets],
                "rejected": outcome.rejected,
                "missing": outcome.missing,
            }
            record["captions"].append(entry)
            if outcome.missing and entry["asked"] < self.options.asks:
                again.append(Asked(each.key, each.row, each.caption, tuple(outcome.missing)))
        self.journal.append(record)
        return again

    def _notice(self, outcomes: Sequence[Outcome]) -> None:
        """Says early that a model cannot do it, before much is spent."""
        with self._lock:
            before = self._taken + self._refused
            self._taken += sum(len(outcome.triplets) for outcome in outcomes)
            self._refused += sum(len(outcome.missing) for outcome in outcomes)
        if before < _EARLY <= self._taken + self._refused and self._refused > 3 * self._taken:
            reasons = Counter(refusal["reason"] for outcome in outcomes for refusal in outcome.rejected)
            logger.warning(
                f"{self._refused} of the first {self._taken + self._refused} answers of "
                f"`{self.generator.model.model}` were refused, the last ones for {', '.join(reasons)}. Look at "
                f"{self.journal.path}; a larger model, more `tokens_per_triplet` or a lower `temperature` may help."
            )

    def _note_lost(self, question: Question, usage: Usage, fault: str) -> None:
        self.journal.append({"request": question.key, "usage": vars(usage), "captions": [], "fault": fault})

    def _finish(self, asked: Asked, group: _Group | None) -> tuple[int, list[dict]]:
        """The triplets of a caption, once its request is through."""
        if group is not None and group is self._group:
            self._send_group()
        if group is not None and group.future is None:
            self._send_batch()
        if group is not None:
            try:
                group.future.result()
            except BudgetReached as reached:
                if self._out_of_money is None:
                    self._out_of_money = str(reached)
                    logger.warning(f"No more is asked: {reached}")
            except StoppedError:
                raise self._fatal from None
        entry = self.journal.caption(asked.key)
        skipped = self.generator.skipped
        if entry is None:
            skipped["over max_cost" if self._out_of_money else "no answer"] += 1
            return asked.row, []
        # An edit that stays without a triplet is counted once, by what was wrong with it last.
        for refusal in entry["rejected"]:
            skipped[refusal["reason"]] += 1
        return asked.row, [self._row(asked, *triplet) for triplet in entry["triplets"]]

    def _row(self, asked: Asked, edit: str, conditioning: str, target: str) -> dict[str, Any]:
        gone, come = _changed_words(asked.caption, target)
        texts = (asked.caption, conditioning, target)
        return self.generator.row(texts, rule=edit, source=gone, target=come, caption_row=asked.row)


def _changed_words(reference: str, target: str) -> tuple[str, str]:
    """The words that are in one caption alone."""
    words = [re.findall(r"[\w'-]+", text.lower()) for text in (reference, target)]
    changes = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    changes = [change for change in changes if change[0] != "equal"]
    gone = " ".join(word for _, start, end, _, _ in changes for word in words[0][start:end])
    return gone, " ".join(word for _, _, _, start, end in changes for word in words[1][start:end])
