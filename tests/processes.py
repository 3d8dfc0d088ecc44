"""Running a test's own script on several gloo processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_on_processes(number: int, script: Path, *arguments: str) -> None:
    """Runs a script under `torch.distributed.run`, one thread a process; fails the test with what it printed.

    `accelerate launch --cpu --num_processes 2` would run a single process without a word.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [*command, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        pytest.fail(done.stderr[-4000:])


def installed_beside(request: pytest.FixtureRequest, name: str, packages: list[str]) -> Path:
    """A folder with other packages, to be put before this environment; made once and kept in pytest's cache.

    Args:
        request (`pytest.FixtureRequest`): Of the fixture that needs them.
        name (`str`): Of the folder, with the versions in it.
        packages (`list[str]`): Such as `open_clip_torch==3.3.0`; what they depend on is not installed.
    """
    folder = request.config.cache.mkdir(name)
    if not (folder / "complete").exists():
        options = "--quiet --no-deps --upgrade --target".split()
        command = [sys.executable, "-m", "pip", "install", *options, str(folder), *packages]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"pip could not install {packages}:\n{done.stderr}")
        (folder / "complete").touch()
    return folder


def leave() -> None:
    """Ends a worker whose results are written, at once and together with the others.

    Gloo's threads are now and then torn down in the wrong order at the end of the interpreter ("terminate called
    without an active exception", torch 2.13), long after the last line of the script.
    """
    import torch.distributed as dist

    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
