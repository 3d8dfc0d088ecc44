"""A language model on this machine whose answers are JSON by construction: it writes the texts, we write the rest."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ...language_models import LocalLanguageModel
from .endpoint import Answer, Question
from .prompts import answer_text, without_system


class LocalModel:
    """
    A causal language model of `transformers`.

    Its answer is held to the schema while it is drawn: braces, keys, ids and edits are given, and in the place of
    each text it may draw every token without a quotation mark, a backslash or a control character until it draws the
    closing quotation mark.

    Args:
        model ([`LocalLanguageModel`] or `str`): The model, or its folder or Hub id.
        device (`str`, *optional*): Where it runs; a GPU where there is one.
        at_once (`int`, *optional*, defaults to 8): Questions in one batch.
        temperature (`float`, *optional*, defaults to 0.8): Of the sampling; 0 takes the likeliest token.
        max_text_tokens (`int`, *optional*, defaults to 60): Longest text; longer ones are closed there.

    Raises:
        ValueError: the vocabulary has no quotation mark as a token of its own.
    """

    metered: ClassVar[bool] = False

    def __init__(
        self,
        model: LocalLanguageModel | str,
        *,
        device: str | None = None,
        at_once: int = 8,
        temperature: float = 0.8,
        max_text_tokens: int = 60,
    ):
        if isinstance(model, str):
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = LocalLanguageModel(model, device=device, dtype="auto")
        self.language_model, self.at_once, self.temperature = model, at_once, temperature
        self.max_text_tokens = max_text_tokens
        self.model = model.name
        self._quotes, self._text = _vocabulary(model)
        if not self._quotes:
            raise ValueError(
                f"`model` {model.name} has no token for a quotation mark alone, so its answers cannot be held to "
                f"JSON. Serve it behind an endpoint and use `base_url`."
            )

    def complete(self, questions: Sequence[Question]) -> list[Answer]:
        """
        Asks questions in one batch.

        Args:
            questions (`Sequence[Question]`): B questions.

        Returns:
            `list[Answer]`: their answers, each valid JSON.

        Raises:
            ValueError: a question and its answer do not fit into the model's context.
        """
        model = self.language_model
        prompts = [self._tokens(question) for question in questions]
        forms = [_pieces(question, model) for question in questions]
        longest = max(sum(len(piece) + self.max_text_tokens + 1 for piece in form) for form in forms)
        room = getattr(model.model.config, "max_position_embeddings", None)
        needed = max(map(len, prompts)) + longest
        if room is not None and needed > room:
            raise ValueError(
                f"`model` {model.name} reads {room} tokens, but a question with its answer takes up to {needed}. "
                f"Lower `captions_per_request`, or take a model with a longer context."
            )
        held = _HeldToForm(forms, self._quotes, self._text, self.max_text_tokens)
        drawn = {"do_sample": False} if self.temperature == 0 else {"do_sample": True, "temperature": self.temperature}
        model.generate(
            prompts,
            seed=" ".join(question.key for question in questions),
            max_new_tokens=longest,
            logits_processor=LogitsProcessorList([held]),
            stopping_criteria=StoppingCriteriaList([_Written(held)]),
            **drawn,
        )
        return [
            Answer(_answer_of(question, texts, model), len(prompt), length, "stop")
            for question, texts, prompt, length in zip(questions, held.texts, prompts, held.lengths, strict=True)
        ]

    def _tokens(self, question: Question) -> list[int]:
        tokenizer, text = self.language_model.tokenizer, self._prompt(question)
        if getattr(tokenizer, "chat_template", None):
            return self.language_model.encode(text)  # templates write special tokens out
        return tokenizer(text)["input_ids"]

    def _prompt(self, question: Question) -> str:
        from jinja2 import TemplateError

        tokenizer = self.language_model.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            names = {"system": "Task", "user": "Captions", "assistant": "Answer"}
            turns = [f"{names[message['role']]}:\n{message['content']}" for message in question.messages]
            return "\n\n".join([*turns, "Answer:\n"])
        options = {"tokenize": False, "add_generation_prompt": True}
        try:
            return tokenizer.apply_chat_template(question.messages, **options)
        except TemplateError:  # how templates say that they know no system role
            return tokenizer.apply_chat_template(without_system(question.messages), **options)


def _vocabulary(model: LocalLanguageModel) -> tuple[list[int], torch.Tensor]:
    """The tokens that are a quotation mark, and which ones `(V,)` may stand in a text."""
    tokenizer = model.tokenizer
    size = model.model.get_output_embeddings().weight.shape[0]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    quotes, allowed = [], torch.zeros(size, dtype=torch.bool)
    for token in range(min(size, len(tokenizer))):
        word = tokenizer.decode([token])
        if token in special or not word:
            continue
        if word == '"':
            quotes.append(token)
        elif not any(sign in '"\\' or ord(sign) < 32 for sign in word):
            allowed[token] = True
    return quotes, allowed


def _fields(question: Question) -> list[tuple[int, str]]:
    return [(number, edit) for number, edits in enumerate(question.edits, start=1) for edit in edits]


def _pieces(question: Question, model: LocalLanguageModel) -> list[list[int]]:
    """Tokens of what stands before each text of an answer; each piece but the first follows a quotation mark."""
    pieces, before = [], '{"triplets": ['
    for number, edit in _fields(question):
        pieces.append(f'{before}{{"id": {number}, "edit": "{edit}", "conditioning_caption": "')
        pieces.append(', "target_caption": "')
        before = "}, "
    return [model.encode(piece) for piece in pieces]


def _answer_of(question: Question, texts: list[list[int]], model: LocalLanguageModel) -> str:
    """The answer as JSON, with the texts as they were drawn."""
    words = [model.decode(text).strip() for text in texts]
    fields = zip(_fields(question), words[::2], words[1::2], strict=True)
    return answer_text([(number, edit, before, after) for (number, edit), before, after in fields])


class _HeldToForm(LogitsProcessor):
    """Leaves at each step only the tokens that the form of the answer allows; each row has its own place in it."""

    def __init__(self, forms: list[list[list[int]]], quotes: list[int], text: torch.Tensor, longest: int):
        self.forms, self.quotes, self.text, self.longest = forms, quotes, text, longest
        self.piece = [0] * len(forms)  # which one is being written; behind the last: done
        self.place = [0] * len(forms)  # tokens of it that stand, those of its text included
        self.texts: list[list[list[int]]] = [[] for _ in forms]
        self.lengths = [0] * len(forms)

    def done(self, row: int) -> bool:
        return self.piece[row] == len(self.forms[row])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = torch.full_like(scores, float("-inf"))
        text = self.text.to(scores.device)
        for row in range(len(self.forms)):
            if self.done(row):
                kept[row] = scores[row]  # filled with padding whatever is drawn
                continue
            piece = self.forms[row][self.piece[row]]
            inside = self.place[row] - len(piece)
            if inside < 0:
                kept[row, piece[self.place[row]]] = 0.0
                continue
            # A text holds something, and ends. Scores are kept finite: other processors may have ruled all out.
            given = scores[row].clamp(min=torch.finfo(scores.dtype).min)
            if inside < self.longest:
                kept[row, : len(text)] = given[: len(text)].masked_fill(~text, float("-inf"))
            if inside > 0:
                kept[row, self.quotes] = given[self.quotes]
        return kept

    def advance(self, row: int, token: int) -> None:
        """Notes a token that was drawn."""
        if self.done(row):
            return
        self.lengths[row] += 1
        inside = self.place[row] - len(self.forms[row][self.piece[row]])
        self.place[row] += 1
        if inside == 0:
            self.texts[row].append([])
        if inside >= 0 and token in self.quotes:
            self.piece[row], self.place[row] = self.piece[row] + 1, 0
        elif inside >= 0:
            self.texts[row][-1].append(token)


class _Written(StoppingCriteria):
    """Ends the rows whose answer is whole."""

    def __init__(self, held: _HeldToForm):
        self.held = held

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self.held.advance(row, token)
        done = [self.held.done(row) for row in range(len(input_ids))]
        return torch.tensor(done, device=input_ids.device)
