"""A server on this machine that speaks the chat-completions protocol, well or badly, as a test scripts it."""

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def asked_of(body: dict) -> list[dict]:
    """The captions of a request: `{id, edits, caption}` each."""
    lines = re.search(r"<captions>\n(.*)\n</captions>", body["messages"][-1]["content"], flags=re.DOTALL)[1]
    return [json.loads(line) for line in lines.split("\n")]


def good_rows(body: dict) -> list[dict]:
    """Rows that pass every check, one for each edit that is asked."""
    return [
        {
            "id": each["id"],
            "edit": edit,
            "conditioning_caption": f"has a {edit} thing in a corner",
            "target_caption": f"{each['caption']} beside a {edit} thing",
        }
        for each in asked_of(body)
        for edit in each["edits"]
    ]


def completion(text: str | None, *, usage: tuple[int, int] | None = (100, 50), finish_reason: str = "stop") -> dict:
    """A whole answer of the protocol."""
    message = {"role": "assistant", "content": text}
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "system_fingerprint": "x"}
    answer["choices"] = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    if usage:
        answer["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
        answer["usage"]["total_tokens"] = sum(usage)
    return answer


def good(body: dict) -> tuple[int, dict]:
    """What a good server answers."""
    return 200, completion(json.dumps({"triplets": good_rows(body)}))


class ChatServer:
    """
    Attributes:
        url: Its `base_url`.
        behave: `(body, number) -> (status, payload)` or `(status, payload, headers)`; a payload of bytes is sent as it
            is, and `None` drops the connection. The number counts requests from 1.
        bodies, headers: Of the requests so far, in their order.
        answered: Bodies that were answered with 200.
        most_at_once: The most requests that were under way together.
    """

    def __init__(self, behave: Callable | None = None):
        self.behave = behave or (lambda body, number: good(body))
        self.bodies, self.headers, self.answered, self.paths, self.times = [], [], [], [], []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                owner.handle(self)

            def log_message(self, *arguments):
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.paths.append(request.path)
            self.times.append(time.monotonic())
            number = len(self.bodies)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            status, payload, *more = self.behave(body, number)
        finally:
            with self._lock:
                self._now -= 1
        if payload is None:
            request.connection.close()
            request.close_connection = True
            return
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        if status == 200:
            with self._lock:
                self.answered.append(body)
        try:
            request.send_response(status)
            for name, value in (more[0] if more else {}).items():
                request.send_header(name, value)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
        except OSError:
            request.close_connection = True  # who asked is gone

    def captions(self, bodies: list[dict] | None = None) -> list[str]:
        """The captions that were asked, in the order of the requests."""
        return [each["caption"] for body in (self.bodies if bodies is None else bodies) for each in asked_of(body)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def chat_server(behave: Callable | None = None):
    """A [`ChatServer`] for as long as the context lasts."""
    server = ChatServer(behave)
    try:
        yield server
    finally:
        server.close()
