"""The lowest versions of what is needed: those that setup.cfg states, and they do."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import installed_beside


ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "constraints-lowest.txt"
# Texts to batches, losses, adapters, a training with its checkpoints, and the drop-in that comes out of it.
SUBSET = ("test_losses.py", "test_data_collator.py", "test_triplet_files.py", "test_adapters.py", "test_hub.py")


def pins() -> list[str]:
    return [line for line in PINS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def bounds() -> dict[str, str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return dict(line.split(">=") for line in setup["options"]["install_requires"].split())


def numbers(version: str) -> tuple[int, ...]:
    found = tuple(map(int, re.findall(r"\d+", version)))
    return (*found, 0, 0)[:3]


def test_the_lowest_pins_are_the_bounds_of_setup():
    pinned = {name.lower(): version for name, _, version in (line.partition("==") for line in pins())}
    stated = {name: version for name, version in bounds().items() if name != "torch"}  # one build for all
    assert stated.keys() <= pinned.keys()
    assert {name: numbers(pinned[name]) for name in stated} == {name: numbers(low) for name, low in stated.items()}


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lowest versions are built for Python 3.11")
def test_the_lowest_versions_do(request):
    folder = installed_beside(request, "lowest-3", pins())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in SUBSET)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-c", "import numpy, transformers; print(numpy.__version__, transformers.__version__)"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout.split()[-2:] == ["2.0.0", "5.12.0"], told.stderr[-2000:]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
