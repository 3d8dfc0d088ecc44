"""What the Hub's errors mean for somebody who publishes, and what to do about them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


_QUOTA = re.compile(r"storage limit|quota|payment required|exceeded your|too large|upgrade your plan", re.IGNORECASE)
# BSD's EX_UNAVAILABLE: what a training ends with that is done and on disk, but could not be published.
UNPUBLISHED_EXIT_CODE = 69
# Seconds without a byte after which a connection counts as lost. The client's own limit is none at all, so a training
# whose network was cut would wait for its push for ever. It tries again itself, up to five times.
SILENCE = 120.0
_AGAIN = "Run the same again: what has already arrived is not sent twice."


class PushError(OSError):
    """The Hub, or the way to it, did not let something be published. The message says what to do.

    Attributes:
        status (`int`, *optional*): The status of the HTTP answer, where there was one.
    """

    def __init__(self, message: str, *, status: int | None = None):
        super().__init__(message)
        self.status = status


@contextmanager
def explained(repo_id: str, doing: str) -> Iterator[None]:
    """Turns errors of the Hub's client into [`PushError`]s.

    Args:
        repo_id (`str`): `owner/name` of the repository.
        doing (`str`): What is being done, such as "create the repository".

    Raises:
        PushError: instead of an error of the client, which is its cause.
    """
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    session = get_session()
    if session.timeout.read is None:  # what somebody set stays
        session.timeout = SILENCE
    try:
        yield
    except PushError:
        raise
    except OfflineModeIsEnabled as error:
        raise PushError(
            f"Could not {doing}: the Hub is switched off here by `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`. Unset "
            "it, or look at what would be sent with `dry_run=True`."
        ) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _explanation(error, repo_id, doing) from error


def _explanation(error: BaseException, repo_id: str, doing: str) -> PushError:
    answered = error
    while getattr(answered, "response", None) is None and answered.__cause__ is not None:
        answered = answered.__cause__  # an upload's error is wrapped into one that names the file
    response = getattr(answered, "response", None)
    file = f" ({error})" if answered is not error else ""
    if response is None:
        from huggingface_hub.errors import HTTPError

        if not isinstance(error, HTTPError | ConnectionError | TimeoutError | RuntimeError):  # of this machine
            return PushError(f"Could not {doing}: {error}")
        return PushError(
            f"Could not {doing}: the Hub cannot be reached, or the connection broke ({_first_line(error)}). Look at "
            f"your connection and at `HF_ENDPOINT`, if it is set. {_AGAIN}"
        )
    status, said = response.status_code, getattr(answered, "server_message", None) or _first_line(answered)
    return PushError(f"Could not {doing}{file}: {_advice(status, said, response, repo_id)}", status=status)


def _advice(status: int, said: str, response, repo_id: str) -> str:
    owner, name = repo_id.split("/")
    said = f"The Hub says: {' '.join(str(said).split())}"
    if status == 429:  # some of its texts speak of quotas and plans
        return f"you asked the Hub too often{_wait(response)}. {_AGAIN} {said}"
    if status in (402, 413, 507) or _QUOTA.search(said):
        return (
            f"the storage of `{owner}` is used up, or the file is larger than it may be. Delete what is not needed, "
            f"publish with `private=False`, or get more storage. {said}"
        )
    if status == 401:
        return (
            "the Hub does not accept the token, or there is none. Make one that may write at "
            f"https://huggingface.co/settings/tokens and give it by `hf auth login`, `HF_TOKEN` or `token`. {said}"
        )
    if status == 403:
        return (
            f"your token may not write to `{repo_id}`. Either it only reads (make one that may write), or `{owner}` "
            f"is not you and no organization in which you may write; then choose another `repo_id`. {said}"
        )
    if status == 404:
        return f"there is no `{repo_id}` that your token may see, or no such branch in it. {said}"
    if status in (409, 412):
        return (
            f"something of that name is there already, or somebody else writes to `{repo_id}` at this moment. Choose "
            f"another name, or run it again. {said}"
        )
    if status >= 500:
        return f"the Hub has trouble (HTTP {status}; see https://status.huggingface.co). {_AGAIN} {said}"
    return f"HTTP {status}. {said}"


def _wait(response) -> str:
    found = re.search(r"\bt=(\d+)", response.headers.get("ratelimit", "")) or re.fullmatch(
        r"(\d+)", response.headers.get("retry-after", "")
    )
    return f"; wait {found[1]} seconds" if found else ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
