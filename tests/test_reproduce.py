"""`examples/reproduce_paper.sh`: what it says of a row, what it checks, and a row from triplets to the comparison."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_examples import write_triplets

from rtd_hf.shapes import ASSETS


ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "reproduce_paper.sh"


def reproduce(*arguments, timeout: float = 300, **environment) -> subprocess.CompletedProcess:
    """Runs the script, with the things it is told of and no others."""
    names = ("PROJECTIONS", "TRIPLETS", "BENCHMARKS", "OUTPUT", "CLIP", "LICENSE", "LAUNCH", "SUBMISSION")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    wanted = {**kept, "PYTHON": sys.executable, **{name: str(value) for name, value in environment.items()}}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=wanted, cwd=ROOT, timeout=timeout)


@pytest.fixture
def reproduction(monkeypatch):
    """The module behind it, with nothing said about where things are."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name in ("PROJECTIONS", "TRIPLETS", "BENCHMARKS", "OUTPUT", "CLIP"):
        monkeypatch.delenv(name, raising=False)
    from utils import reproduction

    yield reproduction
    for name in [name for name in sys.modules if name.split(".")[0] == "utils"]:
        sys.modules.pop(name, None)


@pytest.fixture
def things(tmp_path, trees):
    """A row's things from the offline world, where the row looks for them."""
    shutil.copytree(ASSETS / "lincir", tmp_path / "projections" / "lincir-l14")
    return {
        "CLIP": ASSETS / "clip",
        "PROJECTIONS": tmp_path / "projections",
        "TRIPLETS": write_triplets(tmp_path / "triplets.jsonl"),
        "BENCHMARKS": trees,
        "OUTPUT": tmp_path / "results",
    }


def test_all_rows_are_listed(reproduction):
    for backbone in reproduction.BACKBONES:
        for projection in reproduction.PROJECTIONS:
            row = reproduction.Row(backbone, projection)
            text = reproduction.supply(row)
            assert row.recipe.is_file() and str(row.projection_folder) in text and row.clip_model in text
            assert "triplets.jsonl" in text and "second-hand" in text
            commands = [line.split() for line in row.how_to_get_the_projection() if not line.startswith("#")]
            assert commands and all((ROOT / words[1]).is_file() for words in commands)
            assert commands[-1][commands[-1].index("--output_dir") + 1] == str(row.projection_folder)


def test_commands_for_projections_parse(reproduction):
    """The arguments that a row tells a user to give are ones that those scripts know."""
    known = {}
    for script in ("convert_projection.py", "train_projection.py", "teach_surrogate.py"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / script), "--help"], capture_output=True, text=True, check=True
        )
        known[f"examples/{script}"] = set(re.findall(r"--\w+", done.stdout))
    known["examples/train_projection.py"].add("--output_dir")  # HF's, of which its help says that they work too
    rows = [reproduction.Row(b, p) for b in reproduction.BACKBONES for p in reproduction.PROJECTIONS]
    for words in (line.split() for row in rows for line in row.how_to_get_the_projection() if line[0] != "#"):
        assert {word for word in words if word.startswith("--")} <= known[words[1]], words
        for word in words:
            assert not word.endswith(".yaml") or (ROOT / word).is_file()


def test_list_and_help():
    listed = reproduce("--list", "l14")
    assert listed.returncode == 0 and listed.stdout.count("result      outputs/reproduce/l14_") == 5
    assert "SEARLE_ViT-L14.pt" in listed.stdout and "whether the paper has this row" in listed.stdout
    shown = reproduce("--help")
    assert shown.returncode == 0 and "examples/reproduce_paper.sh --list" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--list", "l15"), "no row `l15"),
        (("l14", "palavra"), "no row"),
        (("--lst",), "Unknown option --lst"),
    ],
)
def test_what_there_is_not(arguments, message):
    done = reproduce(*arguments)
    assert done.returncode not in (0, None) and message in done.stderr and "Traceback" not in done.stderr


def test_check_says_what_is_missing(tmp_path):
    done = reproduce(
        "--check", "l14", "lincir", PROJECTIONS=tmp_path, TRIPLETS=tmp_path / "t.jsonl", BENCHMARKS=tmp_path
    )
    assert done.returncode == 1
    for part in ("there is no " + str(tmp_path / "lincir-l14" / "config.json"), "t.jsonl", "benchmarks: none of"):
        assert f"{part}" in done.stdout
    run = reproduce("l14", "lincir", PROJECTIONS=tmp_path, TRIPLETS=tmp_path / "t.jsonl", BENCHMARKS=tmp_path)
    assert run.returncode == 1 and "Left out" in run.stderr


def test_check_passes_with_all_of_it(things):
    done = reproduce("--check", "l14", "lincir", **things)
    assert done.returncode == 0 and "missing" not in done.stdout, done.stdout + done.stderr


def test_a_projection_of_another_kind_or_clip(reproduction, things, monkeypatch):
    for name, value in things.items():
        monkeypatch.setenv(name, str(value))
    row = reproduction.Row("l14", "lincir")
    assert reproduction.missing(row) == []
    monkeypatch.setenv("CLIP", "")
    (fault,) = reproduction.missing(row)
    assert "is another CLIP's (input_dim" in fault and "for 768" in fault
    config = row.projection_folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"projection_type": "searle"}))
    assert any("is of the kind searle, not lincir" in fault for fault in reproduction.missing(row))


def test_comparison(reproduction):
    measured = {
        "metrics": {
            "fashioniq": {"fashioniq_recall@10": 30.0, "fashioniq_average": 40.0},
            "cirr": {"cirr_recall@1": 27.5},
        },
        "before": {"fashioniq": {"fashioniq_recall@10": 25.0}, "cirr": {"cirr_recall@1": 24.0}},
        "protocols": {},
        "submissions": ["x/cirr_test.json"],
    }
    text = reproduction.comparison(reproduction.Row("l14", "lincir"), measured)
    assert "| fashioniq_recall@10 | 25.00 | 30.00 | 26.28 | unknown |" in text
    assert "| fashioniq_recall@50 | not measured | not measured | 46.49 | unknown |" in text
    server = "25.04 (test1 split, from its server)"
    assert f"| cirr_recall@1 | 24.00 (val) | 27.50 (val) | {server} | unknown |" in text
    assert "second-hand" in text and "cirr_test.json" in text and "NOT COMPARABLE" not in text
    text = reproduction.comparison(reproduction.Row("g14", "lincir"), measured)
    assert "| fashioniq_average | not measured | 40.00 | 55.40 | 56.74 |" in text
    measured["protocols"] = {"cirr": {"complete": False}}
    assert "NOT COMPARABLE" in reproduction.comparison(reproduction.Row("l14", "lincir"), measured)


def test_published_figures_are_consistent(reproduction):
    for figures in reproduction._WITHOUT_RTD.values():
        for smaller, larger in (("cirr_recall@1", "cirr_recall@5"), ("fashioniq_recall@10", "fashioniq_recall@50")):
            assert (smaller in figures) == (larger in figures)
            assert smaller not in figures or figures[smaller] < figures[larger]
    g14 = reproduction._WITHOUT_RTD[("g14", "lincir")]
    mean = (g14["fashioniq_recall@10"] + g14["fashioniq_recall@50"]) / 2
    assert g14["fashioniq_average"] == pytest.approx(mean)  # how it is known which mean the one figure with RTD is


@pytest.mark.slow
def test_a_row_from_triplets_to_the_comparison(things):
    options = "--max_steps 2 --per_device_train_batch_size 8 --save_strategy no --base_model org/clip --use_cpu true"
    done = reproduce(
        *("l14", "lincir"),
        timeout=900,
        **things,
        LICENSE="mit",
        TRAIN_OPTIONS=options,
        EVALUATE_OPTIONS="--cpu --limit 6 --baselines none",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = things["OUTPUT"] / "l14_lincir"
    assert (folder / "encoder" / "model.safetensors").is_file()
    found = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert set(found["metrics"]) == set(found["before"]) == {"fashioniq", "genecis", "cirr", "circo", "coco"}
    text = (folder / "evaluation" / "comparison.md").read_text()
    assert text in done.stdout and "NOT COMPARABLE" in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(lines) >= 12
    for name in ("fashioniq_recall@10", "fashioniq_average", "genecis_recall@1", "cirr_recall@1", "circo_map@5"):
        (line,) = [line for line in lines if line[0] == f"| {name}"]
        assert "not measured" not in line[1:3], name
