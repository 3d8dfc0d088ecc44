"""A process that uses the real `huggingface_hub` against a server of this machine, as [`hub_server`] runs it.

`HF_ENDPOINT` is read when the library is imported, so the tests' own process, which is offline, cannot do it. One
process serves many tests: importing torch and transformers takes longer than all they do.
"""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path


HERE = Path(__file__).parent
ROOT = HERE.parent


class ClientError(Exception):
    """What code in the client raised: `kind` is its class, `text` its message, `cause` the class of its cause."""

    def __init__(self, answer: dict):
        super().__init__(f"{answer['kind']}: {answer['text']}\n{answer['trace']}")
        self.kind, self.text, self.cause = answer["kind"], answer["text"], answer["cause"]
        self.logged = answer["logged"]


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that takes `url` for the Hub and has a clean cache in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {
        **kept,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
        "OMP_NUM_THREADS": "1",
        **more,
    }


class HubClient:
    """A process that runs code; see [`HubClient.run`]."""

    def __init__(self, url: str, home: Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(url, home),
            cwd=home,
        )
        self.logged: list[str] = []

    def run(self, code: str, *, token: str | None = None, **values):
        """Runs the body of a function and returns what it returns, through JSON.

        Args:
            code (`str`): The body; `return` gives something back.
            token (`str`, *optional*): `HF_TOKEN` while it runs.
            values: Names it sees.

        Raises:
            ClientError: it raised something.
        """
        values = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        self.process.stdin.write(json.dumps({"code": code, "values": values, "token": token}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The client ended with {self.process.wait()}.")
        answer = json.loads(line)
        self.logged = answer["logged"]
        if "kind" in answer:
            raise ClientError(answer)
        return answer["result"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def _serve() -> None:
    import logging
    import warnings

    from no_network import refuse_other_hosts

    refuse_other_hosts()
    answers, sys.stdout = sys.stdout, sys.stderr  # what code prints must not look like an answer
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    from transformers.utils import logging as hf_logging

    for name in ("rtd_hf", "transformers", "huggingface_hub"):
        hf_logging.get_logger(name)
        logging.getLogger(name).addHandler(handler)
    warnings.showwarning = lambda message, *arguments, **options: logged.append(str(message))
    for line in sys.stdin:
        asked, logged[:] = json.loads(line), []
        os.environ.pop("HF_TOKEN", None)
        if asked["token"]:
            os.environ["HF_TOKEN"] = asked["token"]
        names = ", ".join(asked["values"])
        try:
            space: dict = {}
            exec(f"def job({names}):\n{textwrap.indent(textwrap.dedent(asked['code']), '    ')}", space)
            answer = {"result": space["job"](**asked["values"])}
        except (Exception, SystemExit) as error:  # a script ends with the second
            cause = type(error.__cause__).__name__ if error.__cause__ else None
            answer = {"kind": type(error).__name__, "text": str(error), "cause": cause}
            answer["trace"] = "".join(traceback.format_exception(error))[-3000:]
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps({**answer, "logged": logged}) + "\n")
            answers.flush()


if __name__ == "__main__":
    _serve()
    sys.stderr.flush()
    os._exit(0)  # what torch and its threads do at the end takes seconds
