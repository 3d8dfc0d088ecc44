"""CONTRIBUTING.md is followed to the letter: a projection in one file and one line, tested, trained, measured."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PREPARE = """
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.shapes import ASSETS
from transformers import CLIPTextConfig, set_seed
set_seed(0)
config = CLIPTextConfig.from_pretrained(ASSETS / "clip")
ImageToWordProjection.build("residual", config.projection_dim, config.hidden_size).save_pretrained("projection")
"""


def block(name: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.search(rf"<!-- {name} -->\n```python\n(.*?)```", text, flags=re.DOTALL).group(1)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository with the projection of CONTRIBUTING.md in it."""
    root = tmp_path_factory.mktemp("contributing")
    for folder in ("rtd_hf", "examples", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / file, root)
    projections = root / "rtd_hf" / "projections"
    (projections / "residual.py").write_text(block("projection-example"), encoding="utf-8")
    with (projections / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(block("projection-import"))
    return root


def run(checkout: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'tests'}"}
    done = subprocess.run([sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_contract_tests_run_over_it(checkout):
    told = run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_projections.py", "-k", "residual")
    assert int(re.search(r"(\d+) passed", told).group(1)) >= 5 and "failed" not in told


@pytest.mark.slow
def test_rtd_trains_with_it_and_it_is_measured(checkout):
    run(checkout, "-c", PREPARE)
    options = "--max_steps 2 --num_triplets 600 --warmup_steps 1 --benchmarks shapes_many"
    told = run(
        checkout, "examples/train_rtd.py", "--projection", "projection", "--output_dir", "run", *options.split()
    )
    assert "loads in plain transformers" in told
    metrics = json.loads((checkout / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["card"]["projection_type"] == "residual" and metrics["run"]["steps"] == 2
    assert 0 <= metrics["after"]["shapes_many_map@10"] <= 100
    assert "residual" in json.loads((checkout / "run" / "projection" / "config.json").read_text())["projection_type"]
