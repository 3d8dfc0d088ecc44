"""The studies of the offline world: what they vary exists, trainings are shared, figures reach tables and plots."""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import run_study  # noqa: E402
from utils.studies import STUDIES  # noqa: E402
from utils.study_page import write_page  # noqa: E402
from utils.trials import KEPT, Trials, trial_arguments  # noqa: E402

from rtd_hf import CLIPTextModelForRTD, RTDTrainingArguments  # noqa: E402
from rtd_hf.shapes import ASSETS  # noqa: E402


OWN = {"num_triplets", "lora_r", "frozen"}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_study.py", "--results", str(tmp_path / "results"), "--seeds", "2"])
    return trial_arguments(run_study.ScriptArguments, description="", output_dir=str(tmp_path / "runs"))


@pytest.mark.parametrize("name", STUDIES)
def test_what_a_study_varies_exists_and_one_line_is_the_recipe(name, arguments):
    script, args = arguments
    options = {item.name for item in fields(RTDTrainingArguments)} | OWN
    names = [run_study.name_of(dict(setting), args, script) for setting in STUDIES[name].settings.values()]
    for setting in STUDIES[name].settings.values():
        assert set(setting) <= options
    assert names.count("recipe") == 1, names


def test_what_is_frozen_exists_and_leaves_something_to_learn():
    parameters = [name for name, _ in CLIPTextModelForRTD.from_pretrained(ASSETS / "clip").named_parameters()]
    for label, setting in STUDIES["layers"].settings.items():
        frozen = setting.get("frozen", ())
        for part in frozen:
            assert any(part in name for name in parameters), (label, part)
        assert any(not any(part in name for part in frozen) for name in parameters), label


def per_query(value: float) -> dict[str, list[float]]:
    return {name: [value, 0.0, value, value] for name in KEPT}


def test_tables_plots_and_page_hold_what_was_found(arguments, tmp_path, capsys):
    script, args = arguments
    studies = {name: dict(STUDIES[name].settings) for name in ("components", "noise", "temperature")}
    trials = Trials(tmp_path / "runs", {})
    trials.run(run_study.FROZEN, lambda: {"per_query": per_query(40.0)})
    for study, found in studies.items():
        for place, setting in enumerate(found.values()):
            for seed in (1, 2):
                name = f"{run_study.name_of(setting, args, script)} seed {seed}"
                trials.run(name, lambda value=50.0 + place + seed: {"seconds": 1.0, "per_query": per_query(value)})
        run_study.tell(study, found, trials, script, args)
    # The second line of the first study: seeds of 52 and 53 in three queries of four, against 40.
    assert "no anchor (moving targets)" in capsys.readouterr().out
    results = tmp_path / "results"
    figures = json.loads((results / "components.json").read_text(encoding="utf-8"))
    second = figures["rows"][1]["metrics"]["shapes_recall@10"]
    assert second["seeds"] == [39.0, 39.75] and second["mean"] == pytest.approx(39.38, abs=0.01)
    assert second["gain"] == pytest.approx(39.375 - 30, abs=0.01) and second["low"] < second["gain"] < second["high"]
    for name in studies:
        assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (results / "README.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| no anchor"))
    assert re.findall(r"39\.4", row) and f"{second['gain']:+.1f} [{second['low']:+.1f}, " in row
    assert page.index("## Parts of the method") < page.index("## Noise") < page.index("## Temperature")
    assert "37.38 without training" in page and "![Temperature](temperature.png)" in page
    (results / "noise.json").unlink()
    assert "## Noise" not in write_page(results).read_text(encoding="utf-8")


def test_studies_that_are_kept_are_of_all_seeds_and_settings():
    kept = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (EXAMPLES / "studies").glob("*.json")}
    assert set(kept) == set(STUDIES)
    for name, figures in kept.items():
        assert [row["setting"] for row in figures["rows"]] == list(STUDIES[name].settings)
        assert len(figures["seeds"]) >= 3
        assert all(len(row["metrics"]["shapes_recall@10"]["seeds"]) >= 3 for row in figures["rows"])
        found = {f"{value['mean']:.1f}" for row in figures["rows"] for value in row["metrics"].values()}
        found |= {f"{value['mean']:.1f}" for value in figures["frozen"].values()}
        said = set(re.findall(r"\b\d+\.\d\b", STUDIES[name].world))
        assert said and said <= found, (name, said - found)
    page = (EXAMPLES / "studies" / "README.md").read_text(encoding="utf-8")
    for figures in kept.values():
        for row in figures["rows"]:
            assert f"| {row['setting']} | {row['metrics']['shapes_recall@1']['mean']:.1f} | " in page


def test_the_readme_shows_figures_that_are_kept():
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    section = readme.split("## What each part does")[1].split("\n## ")[0]
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in (EXAMPLES / "studies").glob("*.json")]
    values = [row["metrics"]["shapes_recall@10"] for figures in kept for row in figures["rows"]]
    found = {f"{v['mean']:.1f} | {v['gain']:+.1f} [{v['low']:+.1f}, {v['high']:+.1f}]" for v in values}
    shown = re.findall(r"^\| [^|]+ \| ([\d.]+ \| \S+ \[.*\]) \|$", section, flags=re.M)
    assert len(shown) > 8 and set(shown) <= found, set(shown) - found
    assert (EXAMPLES / "studies" / "overview.png").is_file()
