"""Chat-completions endpoints through `huggingface_hub.InferenceClient`: any OpenAI-compatible server, any provider."""

import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from transformers.utils import logging

from .prompts import without_system


logger = logging.get_logger(__name__)

_NO_KEY = "EMPTY"  # what servers without keys are told; without it the client would send them the user's Hub token


@dataclass(frozen=True)
class Question:
    """
    One request to a language model.

    Args:
        key (`str`): Names it: the same captions under the same settings have the same key.
        messages (`list[dict[str, str]]`): The conversation.
        edits (`tuple[tuple[str, ...], ...]`): The edits asked of each of its captions.
        schema (`dict`): JSON schema of the answer.
        max_tokens (`int`): The longest answer.
    """

    key: str
    messages: list[dict[str, str]]
    edits: tuple[tuple[str, ...], ...]
    schema: dict
    max_tokens: int

    @property
    def size(self) -> int:
        """No tokenizer makes more tokens of the messages: their bytes, and some for the roles."""
        return sum(len(message["content"].encode()) + 16 for message in self.messages)

    @property
    def seed(self) -> int:
        """31 bits of the key."""
        return int(self.key[:8], 16) >> 1


@dataclass(frozen=True)
class Answer:
    """
    What a language model said.

    Args:
        text (`str`, *optional*): The answer.
        prompt_tokens (`int`, *optional*): Tokens of the question, where that is known.
        completion_tokens (`int`, *optional*): Tokens of the answer.
        finish_reason (`str`, *optional*): Why it ended.
    """

    text: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None


class EndpointError(OSError):
    """The endpoint cannot be used as things are: wrong key or model, no quota, not there. Another try is no help."""


class PassingError(Exception):  # noqa: N818
    """
    A request failed, and the same one may succeed later.

    Args:
        message (`str`): What happened.
        retry_after (`float`, *optional*): Seconds that the endpoint asked to wait.
        sent (`bool`): Whether it may have been answered, and paid, all the same.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, sent: bool = False):
        super().__init__(message)
        self.retry_after = retry_after
        self.sent = sent


class EndpointModel:
    """
    A language model behind a chat-completions endpoint.

    Args:
        model (`str`): Its name there, or its Hub id.
        base_url (`str`, *optional*): An OpenAI-compatible endpoint, such as `http://localhost:8000/v1`.
        provider (`str`, *optional*): A provider of the Hub in its place; `auto` takes the first of your settings.
        api_key_env (`str`, *optional*):
            The environment variable that holds the key. By default a provider gets your Hub token, and a `base_url`
            gets no key at all.
        timeout (`float`, *optional*, defaults to 120): Seconds without a byte before a request counts as lost.
        temperature (`float`, *optional*, defaults to 0.8): Of the sampling.

    Raises:
        ValueError: an argument is wrong, or the environment variable is empty.
        EndpointError: a provider is asked for, and there is no token.
    """

    at_once: ClassVar[int] = 1  # questions in one call
    metered: ClassVar[bool] = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        provider: str | None = None,
        api_key_env: str | None = None,
        timeout: float = 120.0,
        temperature: float = 0.8,
    ):
        if base_url is not None and provider is not None:
            raise ValueError("Give `base_url` or `provider`, not both.")
        if base_url is not None and not re.match(r"https?://[^/]", base_url):
            raise ValueError(
                f"`base_url` must begin with http:// or https://, as in http://localhost:8000/v1, but is "
                f"{shown_url(base_url)!r}."
            )
        self.model, self.base_url, self.temperature = model, base_url, temperature
        self.place = shown_url(base_url) if base_url else f"the provider `{provider or 'auto'}`"
        self._secret = _key_of(api_key_env)
        self._client = self._connect(provider, timeout)
        self._lock = threading.Lock()
        # What an endpoint refuses is left out of further requests.
        self._formats = ["json_schema", "json_schema_tgi", "json_object", None]
        if base_url is None:
            self._formats.remove("json_schema_tgi")
        self._refused: set[str] = set()
        self._worked = False

    def _connect(self, provider: str | None, timeout: float) -> Any:
        if self.base_url is not None:
            return _client_class()(base_url=self.base_url, api_key=self._secret or _NO_KEY, timeout=timeout)
        from huggingface_hub import InferenceClient, get_token

        self._secret = self._secret or get_token()
        if not self._secret:
            raise EndpointError(
                f"There is no key for {self.place}. Log in with `hf auth login`, set HF_TOKEN, or name the variable "
                f"that holds the provider's own key with `api_key_env`."
            )
        return InferenceClient(provider=provider or "auto", api_key=self._secret, timeout=timeout)

    def complete(self, questions: Sequence[Question]) -> list[Answer]:
        """
        Asks one question.

        Args:
            questions (`Sequence[Question]`): One.

        Returns:
            `list[Answer]`: its answer.

        Raises:
            PassingError: it failed, and may succeed later.
            EndpointError: it cannot succeed.
        """
        (question,) = questions
        while True:
            with self._lock:
                form, refused = self._formats[0], frozenset(self._refused)
            try:
                answer = _answer_of(self._send(question, form, refused))
                self._worked = True
                return [answer]
            except _Unsupported as unsupported:
                self._give_up(unsupported.name, form, refused, str(unsupported))

    def _send(self, question: Question, form: str | None, refused: frozenset[str]) -> Any:
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, InferenceTimeoutError, OfflineModeIsEnabled

        tokens = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
        body = {tokens: question.max_tokens, "seed": question.seed, "temperature": self.temperature}
        options = {name: value for name, value in body.items() if name not in refused}
        if form:
            options["response_format"] = _response_format(form, question.schema)
        if "max_completion_tokens" in options:  # no argument of the client
            options["extra_body"] = {"max_completion_tokens": options.pop("max_completion_tokens")}
        try:
            messages = without_system(question.messages) if "system role" in refused else question.messages
            return self._client.chat_completion(messages, model=self.model, **options)
        except HfHubHTTPError as error:
            raise self._status_error(error, form, refused) from None  # its request holds the key
        except InferenceTimeoutError:
            raise PassingError("no answer in time", sent=True) from None
        except HTTPError as error:
            said = f"{type(error).__name__}: {self._without_secrets(str(error))}"
            raise PassingError(said, sent=not type(error).__name__.startswith("Connect")) from None
        except OfflineModeIsEnabled:
            raise EndpointError(
                f"HF_HUB_OFFLINE is set, so {self.place} cannot be reached. Unset it, or use `backend` `local`."
            ) from None
        except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
            if self.base_url is None and type(error) is ValueError and "Invalid data" not in str(error):
                # Of the client itself, before anything is sent: a model that the provider does not serve.
                said = self._without_secrets(str(error))
                raise EndpointError(f"{self.place} cannot be asked: {said}") from None
            # What the client raises where an answer is no JSON, or JSON of another kind.
            raise PassingError(
                f"the answer is no chat completion ({type(error).__name__}): is this a chat-completions endpoint?",
                sent=True,
            ) from None

    def _status_error(self, error: Any, form: str | None, refused: frozenset[str]) -> Exception:
        """What a status code means."""
        status, said = error.response.status_code, self._said(error)
        wanted = _retry_after(error.response.headers)
        where = f"{self.place} answered {status}: {said}"
        if status in (400, 422):
            name = _unsupported_name(said, form, refused)
            if name:
                return _Unsupported(name, said)
            # Where other requests went through, it is about these captions, and no reason to end the run.
            if self._worked or re.search(r"content[_ ](filter|policy|management)|safety|moderation", said, re.I):
                return DeclinedError(said)
            return EndpointError(
                f"{where}\nThe request itself is refused. Look at `model` and `base_url`; where it is too long, lower "
                f"`captions_per_request` or `tokens_per_triplet`."
            )
        if status in (401, 403):
            return EndpointError(
                f"{where}\nThe key is missing, wrong, or may not do this. `api_key_env` names the variable that holds "
                f"it; for a provider of the Hub, `hf auth login`."
            )
        if status in (404, 405):
            return EndpointError(
                f"{where}\nThere is no model `{self.model}`, or no endpoint at this `base_url`: it ends before "
                f"/chat/completions, as in http://localhost:8000/v1."
            )
        if status == 402 or (status == 429 and re.search(r"insufficient_quota|billing|exceeded your current", said)):
            return EndpointError(f"{where}\nThe quota or credit is used up. What was answered is kept; go on later.")
        if status in (408, 409, 425, 429) or status >= 500:
            # Only of 5xx may the answer have been made and charged.
            return PassingError(where, retry_after=wanted, sent=status >= 500 and status not in (503, 529))
        return EndpointError(where)

    def _said(self, error: Any) -> str:
        try:
            text = error.response.text
        except RuntimeError:  # the body was never read
            text = str(error)
        return self._without_secrets(" ".join(text.split())[:600])

    def _without_secrets(self, text: str) -> str:
        for secret in (self._secret, urlsplit(self.base_url or "").password):
            if secret:
                text = text.replace(secret, "***")
        # Endpoints quote keys with stars in the middle, which still shows their ends.
        return re.sub(r"\b(sk|hf|gsk|key)[-_][\w*.-]{6,}", "***", text)

    def _give_up(self, name: str, form: str | None, refused: frozenset[str], said: str) -> None:
        with self._lock:
            if name == "response_format":
                if self._formats[0] != form:
                    return  # another request noticed it first
                self._formats.pop(0)
                instead = self._formats[0] or "the wording of the prompt alone"
                logger.warning(
                    f"{self.place} refuses `response_format` {form} ({said[:200]}). The answers are asked for by "
                    f"{instead}; more of them may be refused."
                )
            elif name not in self._refused:
                self._refused.add(name)
                logger.warning(f"{self.place} refuses `{name}` ({said[:200]}). It is done without.")


class DeclinedError(Exception):
    """The endpoint does not answer this question, for what it is about."""


class _Unsupported(Exception):  # noqa: N818
    def __init__(self, name: str, said: str):
        super().__init__(said)
        self.name = name


def _unsupported_name(said: str, form: str | None, refused: frozenset[str]) -> str | None:
    """Which of our optional arguments an endpoint complains of."""
    if form and re.search(r"response_format|json_schema|json_object|guided|structured|grammar", said, re.IGNORECASE):
        return "response_format"
    if "system role" not in refused and re.search(r"system role|role[^.]{0,20}system", said, re.IGNORECASE):
        return "system role"
    left = [name for name in ("max_tokens", "seed", "temperature") if name not in refused]
    return next((name for name in left if re.search(rf"\b{name}\b", said)), None)


def _client_class() -> type:
    from huggingface_hub import InferenceClient

    class OpenAICompatibleClient(InferenceClient):
        # The client takes every URL for a server of text-generation-inference and rewrites `json_schema` to what
        # that one reads; OpenAI, vLLM and others want it as it was given. A client that no longer calls this method
        # sends its own form, which is the next one tried where it is refused.
        def _inner_post(self, request_parameters, **options):
            body = request_parameters.json
            if isinstance(body, dict) and "value" in (form := body.get("response_format") or {}):
                if form.get("type") == "json_schema_tgi":
                    form["type"] = "json_object"
                else:
                    schema = {"name": "triplets", "strict": True, "schema": form["value"]}
                    body["response_format"] = {"type": "json_schema", "json_schema": schema}
            return super()._inner_post(request_parameters, **options)

    return OpenAICompatibleClient


def _response_format(form: str, schema: dict) -> dict:
    if form == "json_object":
        return {"type": "json_object"}
    if form == "json_schema_tgi":
        return {"type": form, "value": schema}
    return {"type": "json_schema", "json_schema": {"name": "triplets", "strict": True, "schema": schema}}


def _answer_of(output: Any) -> Answer:
    choices = getattr(output, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    if not hasattr(message, "content"):
        raise PassingError("the answer holds no `choices`: is this a chat-completions endpoint?", sent=True)
    usage = getattr(output, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    known = [count if isinstance(count, int) and count >= 0 else None for count in counts]
    text = message.content if isinstance(message.content, str) else None
    return Answer(text, *known, finish_reason=getattr(choices[0], "finish_reason", None))


def _retry_after(headers: Any) -> float | None:
    """Seconds of the headers `Retry-After` (a number or a date) and `retry-after-ms`."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError) as error:
        logger.warning(f"The endpoint sent a `Retry-After` that cannot be read ({error}); the usual pause is made.")
        return None


def _key_of(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) or len(variable) > 64:
        raise ValueError(
            "`api_key_env` must be the name of an environment variable, such as OPENAI_API_KEY. It is not shown here, "
            "in case it is the key itself."
        )
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ValueError(f"`api_key_env`: the environment variable {variable[:24]} is not set. Put the key into it.")
    return value


def shown_url(url: str) -> str:
    """A URL without user, password, query and fragment, any of which may hold a key."""
    parts = urlsplit(url)
    host = parts.netloc.rsplit("@", 1)[-1]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
