"""The page of `examples/app.py` as a process of its own, for tests: a small run to show, and the server."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer

from rtd_hf import write_repository
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.shapes import ASSETS


TESTS = Path(__file__).parent
APP = TESTS.parent / "examples" / "app.py"
# As the script is started from a shell, except that other hosts are out of reach.
_RUN = (
    "import runpy, sys; sys.path[:0] = [{tests!r}, {examples!r}]; from no_network import refuse_other_hosts; "
    "refuse_other_hosts(); sys.argv = {argv!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def write_run(folder: Path) -> Path:
    """A run of the offline world whose text encoder ranks otherwise than the original one."""
    clip = ASSETS / "clip"
    model = CLIPTextModelForRTD.from_pretrained(clip)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.add_(0.2 * weight.std() * torch.randn(weight.shape, generator=generator))
    return write_repository(
        folder,
        model,
        tokenizer=AutoTokenizer.from_pretrained(clip),
        image_processor=model.load_image_processor(clip),
        projection=ImageToWordProjection.from_pretrained(ASSETS / "lincir"),
        metrics={},
        recipe={"clip_model": "shapes"},
        license="mit",
        base_model="shapes",
    )


class Server:
    """A page that runs."""

    def __init__(self, process: subprocess.Popen, files: Path):
        self.process, self.files, self.lines = process, files, []
        self.address = self._address()
        self._reader = threading.Thread(target=self._read, daemon=True)  # so that its pipe never fills
        self._reader.start()

    def _address(self) -> str:
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"pictures, .*: (http://\S+?)/?$", line.strip())
            if found:
                return found[1]
        raise RuntimeError("The page did not start:\n" + "".join(self.lines))

    def _read(self) -> None:
        self.lines.extend(self.process.stdout)

    @property
    def log(self) -> str:
        """What it has written."""
        return "".join(self.lines)


@contextmanager
def page_server(*arguments: str, files: Path, app: Path = APP, cwd: Path | None = None):
    """Starts the script with its temporary files in `files`, on a free port given by the environment, and stops it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files.mkdir(exist_ok=True)
    environment = {
        **os.environ, "TMPDIR": str(files), "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS.parent), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    code = _RUN.format(tests=str(TESTS), examples=str(app.parent), argv=[str(app), *arguments])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, cwd=cwd,
    )  # fmt: skip
    try:
        yield Server(process, files)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
