"""What stands before the page of `app.py`: limits on requests, and headers that keep browsers on this host."""

import json
from pathlib import Path
from typing import Any


MAX_JSON = 256 * 1024  # bytes of what is not an upload
MAX_WAITING = 512 * 2**20  # bytes of uploads that nobody has made use of yet
_SPARE = 64 * 1024  # of an upload, around the file
# Gradio serves them whether a page needs them or not: they fetch, convert or edit for whoever asks.
_CLOSED = ("process_recording", "proxy=", "vibe-", "undo-vibe-", "stream/", "component_server", "custom_component/")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Refused(Exception):
    """
    A request that is not answered.

    Args:
        status (`int`): Of HTTP.
        message (`str`): Why.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Guard:
    """
    ASGI middleware. It counts what comes in instead of believing what a request says of its length.

    Args:
        app: What answers.
        max_upload (`int`): Bytes of a picture.
        folder (`str` or `Path`): Where uploads wait.
    """

    def __init__(self, app, *, max_upload: int, folder: str | Path):
        self.app, self.max_upload, self.folder = app, max_upload, Path(folder)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def sending(message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            await self.app(scope, await self._receiver(scope, receive), sending)
        except Refused as refusal:
            if started:
                raise
            body = json.dumps({"detail": refusal.message}).encode()
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await sending({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _receiver(self, scope, receive):
        part = scope["path"].split("/gradio_api/", 1)[-1].lstrip("/")
        if any(part.startswith(closed) for closed in _CLOSED):
            raise Refused(404, "Not found")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        if part.rstrip("/") == "upload":
            if sum(size_of(file) for file in self.folder.rglob("*")) > MAX_WAITING:
                raise Refused(503, "Too many pictures wait here. Try again in half an hour.")
            return _counted(receive, self.max_upload + _SPARE)
        body = await _body(receive)
        if _names_address(body):
            raise Refused(400, "Send the picture itself, not its address.")
        return _replayed(body, receive)


def size_of(file: Path) -> int:
    """Bytes of a file that may be removed meanwhile; a folder has none."""
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0


def _counted(receive, limit: int):
    total = 0

    async def counting():
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise Refused(413, f"The file is too large: at most {limit >> 20} MB are taken.")
        return message

    return counting


async def _body(receive) -> bytes:
    read, parts, more = _counted(receive, MAX_JSON), [], True
    try:
        while more:
            message = await read()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
    except Refused as refusal:
        raise Refused(413, "The request is too large. Say it shorter.") from refusal
    return b"".join(parts)


def _replayed(body: bytes, receive):
    sent = False

    async def replaying():
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying


def _names_address(body: bytes) -> bool:
    """Whether a file is named by an address, which Gradio would fetch."""
    try:
        return _holds_address(json.loads(body or b"null"))
    except RecursionError:
        return True
    except ValueError:  # no JSON: no files in it
        return False


def _holds_address(value: Any) -> bool:
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and path.strip().lower().startswith(("http:", "https:")):
            return True
        return any(_holds_address(one) for one in value.values())
    return isinstance(value, list) and any(_holds_address(one) for one in value)
