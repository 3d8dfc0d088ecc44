"""The main job as a user meets it: what it writes, and one screen of help for every kind of bad input."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = (
    "--max_steps 4 --num_triplets 400 --warmup_steps 1 --logging_steps 2 --eval_steps 2 --save_steps 2 "
    "--per_device_train_batch_size 16 --num_eval_triplets 16 --disable_tqdm true --benchmarks"
).split()


def run(script: str, *arguments: str, monkeypatch) -> None:
    """Runs an example in this process as if from the command line."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / script), *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def failure(*arguments: str, monkeypatch, short: bool = True) -> str:
    """The message `train_rtd.py` ends with; it must end with one, fit on a screen and not be a traceback."""
    with pytest.raises(SystemExit) as caught:
        run("train_rtd.py", *(SHORT if short else ()), "shapes_many", *arguments, monkeypatch=monkeypatch)
    message = str(caught.value.code)
    assert caught.value.code not in (0, None)
    assert len(message.splitlines()) < 24 and "Traceback" not in message
    return message


@pytest.fixture
def short_run(monkeypatch):
    """Small benchmarks, because only the road is looked at here and not the figures."""
    from rtd_hf import BENCHMARKS

    for name, load in dict(BENCHMARKS).items():
        monkeypatch.setitem(BENCHMARKS, name, lambda root=None, load=load, **options: load(num_queries=12))


def write_triplets(path: Path, **changes) -> Path:
    row = {"reference_caption": "a red star", "conditioning_caption": "is blue", "target_caption": "a blue star"}
    rows = [dict(row) for _ in range(40)]
    for name, value in changes.items():
        for number, row in enumerate(rows):
            if name.startswith("rename_"):
                row[value] = row.pop(name.removeprefix("rename_"))
            elif number == 17:
                row[name] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_main_job_writes_everything_and_runs_twice(short_run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    arguments = [*SHORT, "shapes", "shapes_many", "shapes_categories", "--output_dir", str(folder)]
    run("train_rtd.py", *arguments, monkeypatch=monkeypatch)
    first = capsys.readouterr().out
    run("train_rtd.py", *arguments, monkeypatch=monkeypatch)  # into the same folder: just works

    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["before"]) == set(metrics["after"]) == set(metrics["gain"])
    for key, gain in metrics["gain"].items():
        assert gain["gain"] == pytest.approx(metrics["after"][key] - metrics["before"][key], abs=1e-4)
        assert gain["low"] <= gain["gain"] <= gain["high"]
    for name in ("reference image", "conditioning text", "sum of both", "full target caption"):
        assert set(metrics["baselines"][name]) == set(metrics["before"])
    for part in ("R@1", "R@5", "R@10", "R@50", "mAP@10", "95 % interval", "reference image", "full target caption"):
        assert part in first
    assert f'CLIPTextModelWithProjection.from_pretrained("{folder}")' in first
    for name in ("loss.png", "retrieval.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    card = (folder / "README.md").read_text()
    assert f"{metrics['after']['shapes_recall@10']:.1f}" in card and "license: mit" in card

    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    from rtd_hf import ImageToWordProjection

    _, info = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder)("a photo of $")["input_ids"][-2] == 259
    assert ImageToWordProjection.from_pretrained(folder / "projection").config.projection_type == "lincir"


def test_adapters_end_in_the_same_drop_in(short_run, tmp_path, monkeypatch):
    folder = tmp_path / "lora"
    run("train_rtd.py", *SHORT, "shapes_many", "--use_peft", "--output_dir", str(folder), monkeypatch=monkeypatch)
    from transformers import CLIPTextModelWithProjection

    _, info = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (folder / "adapter" / "adapter_config.json").is_file()


def test_stopped_run_resumes(short_run, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run("train_rtd.py", *SHORT, "shapes_many", "--output_dir", str(whole), monkeypatch=monkeypatch)
    run("train_rtd.py", *SHORT, "shapes_many", "--save_total_limit", "4", "--output_dir", str(stopped),
        monkeypatch=monkeypatch)  # fmt: skip
    # What a run killed after its checkpoint at step 2 leaves behind.
    shutil.rmtree(stopped / "checkpoint-4")
    (stopped / "model.safetensors").unlink()
    run("train_rtd.py", *SHORT, "shapes_many", "--resume_from_checkpoint", "last", "--output_dir", str(stopped),
        monkeypatch=monkeypatch)  # fmt: skip
    expected, found = load_file(whole / "model.safetensors"), load_file(stopped / "model.safetensors")
    assert all(expected[name].equal(found[name]) for name in expected)


class TestBadInput:
    def test_misnamed_column(self, tmp_path, monkeypatch):
        path = write_triplets(tmp_path / "triplets.jsonl", rename_reference_caption="refrence_caption")
        message = failure("--triplets", str(path), "--output_dir", str(tmp_path / "out"), monkeypatch=monkeypatch)
        assert "`reference_caption` is missing" in message and "`refrence_caption`" in message

    @pytest.mark.parametrize("text", [None, "  "])
    def test_caption_without_text(self, tmp_path, monkeypatch, text):
        path = write_triplets(tmp_path / "triplets.jsonl", conditioning_caption=text)
        message = failure("--triplets", str(path), "--output_dir", str(tmp_path / "out"), monkeypatch=monkeypatch)
        assert "`conditioning_caption` holds no text in 1 of 40 rows, first in row 17" in message

    def test_missing_triplet_file(self, tmp_path, monkeypatch):
        message = failure("--triplets", "nowhere.jsonl", "--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch)
        assert "nowhere.jsonl does not exist" in message

    def test_unknown_recipe_key(self, tmp_path, monkeypatch):
        recipe = yaml.safe_load((EXAMPLES / "recipes" / "shapes.yaml").read_text())
        recipe["temprature"] = 0.1
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        message = failure("--config", str(tmp_path / "recipe.yaml"), monkeypatch=monkeypatch)
        assert "unknown key `temprature`. Did you mean `temperature`?" in message

    def test_unknown_argument(self, monkeypatch):
        message = failure("--lerning_rate", "1", monkeypatch=monkeypatch)
        assert "`--lerning_rate`. Did you mean `learning_rate`?" in message

    def test_option_out_of_range(self, tmp_path, monkeypatch):
        message = failure("--temperature", "0", "--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch)
        assert "`temperature` must be above 0" in message

    def test_unknown_benchmark(self, tmp_path, monkeypatch):
        message = failure("shape", "--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch)
        assert "Unknown benchmark `shape`. Did you mean `shapes`?" in message

    def test_projection_of_the_wrong_width(self, short_run, tmp_path, monkeypatch):
        from rtd_hf import ImageToWordProjection

        ImageToWordProjection.build("lincir", 64, 64).save_pretrained(tmp_path / "narrow")
        message = failure(
            "--projection", str(tmp_path / "narrow"), "--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch
        )
        assert "64" in message and "96" in message

    def test_tokenizer_of_another_model(self, tmp_path, monkeypatch):
        clip = self.copy_of_the_clip(tmp_path)
        tokenizer = json.loads((clip / "tokenizer.json").read_text())
        vocab = tokenizer["model"]["vocab"]
        vocab["more</w>"] = 2 * len(vocab)
        (clip / "tokenizer.json").write_text(json.dumps(tokenizer))
        message = failure("--clip_model", str(clip), "--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch)
        assert "'more</w>'" in message and "`tokenizer` has token ids up to" in message
        assert f"came from `{clip}`" in message

    @pytest.mark.parametrize("option", ["clip_model", "projection"])
    def test_damaged_weights(self, tmp_path, monkeypatch, option):
        from rtd_hf.shapes import ASSETS

        folder = shutil.copytree(ASSETS / ("clip" if option == "clip_model" else "lincir"), tmp_path / "damaged")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        message = failure(f"--{option}", str(folder), "--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch)
        assert str(weights) in message and "cut off or damaged" in message

    def test_loss_that_is_no_number(self, short_run, tmp_path, monkeypatch):
        folder = tmp_path / "out"
        message = failure(
            "--learning_rate", "1e30", "--max_grad_norm", "0", "--output_dir", str(folder), monkeypatch=monkeypatch
        )
        assert "loss is nan after 2 steps" in message
        assert "Lower `learning_rate`" in message
        assert not (folder / "model.safetensors").exists()

    def test_folder_of_somebody_else(self, tmp_path, monkeypatch):
        (tmp_path / "thesis.tex").write_text("years of work")
        message = failure("--output_dir", str(tmp_path), monkeypatch=monkeypatch)
        assert "`thesis.tex`" in message and "Nothing was changed" in message
        assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]

    def test_output_folder_that_cannot_be_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)  # root may write anywhere
        message = failure("--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch)
        assert "cannot be written" in message and str(tmp_path / "o") in message

    def test_output_folder_below_a_file(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        message = failure("--output_dir", str(tmp_path / "file" / "out"), monkeypatch=monkeypatch)
        assert "is a file" in message

    def test_licence_is_not_guessed(self, tmp_path, monkeypatch):
        recipe = yaml.safe_load((EXAMPLES / "recipes" / "shapes.yaml").read_text())
        del recipe["license"]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        message = failure(
            "--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch
        )
        assert "`--license` is missing" in message

    def test_nothing_to_resume(self, tmp_path, monkeypatch):
        message = failure(
            "--resume_from_checkpoint", "last", "--output_dir", str(tmp_path / "o"), monkeypatch=monkeypatch
        )
        assert "finds no whole checkpoint" in message

    def copy_of_the_clip(self, tmp_path: Path) -> Path:
        from rtd_hf.shapes import ASSETS

        return shutil.copytree(ASSETS / "clip", tmp_path / "clip")


# Those of other scripts are checked with these.
RECIPES = [path for path in sorted((EXAMPLES / "recipes").glob("*.yaml")) if not path.stem.startswith("projection_")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_it_is_understood_as(recipe, monkeypatch, tmp_path):
    from rtd_hf import RTDTrainingArguments

    monkeypatch.syspath_prepend(str(EXAMPLES))
    script = runpy.run_path(str(EXAMPLES / "train_rtd.py"), run_name="not main")
    kinds = (script["ScriptArguments"], script["ModelArguments"], RTDTrainingArguments)
    command = ["--config", str(recipe), "--output_dir", str(tmp_path), "--temperature", "0.05"]
    parsed = script["parse"](kinds, command, default_recipe="none.yaml", description="")
    from utils.arguments import read_recipe

    wanted = {**read_recipe(recipe), "output_dir": str(tmp_path), "temperature": 0.05}
    assert len(wanted) > 8
    for name, value in wanted.items():
        (found,) = [getattr(part, name) for part in parsed if hasattr(part, name)]
        assert found == value, name


def test_a_recipe_stands_on_others(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from utils.arguments import read_recipe

    (tmp_path / "more").mkdir()
    (tmp_path / "base.yaml").write_text("seed: 1\nmax_steps: 10\n")
    (tmp_path / "more" / "steps.yaml").write_text("max_steps: 20\nlearning_rate: 0.1\n")
    (tmp_path / "all.yaml").write_text("include: [base.yaml, more/steps.yaml]\nlearning_rate: 0.2\n")
    assert read_recipe(tmp_path / "all.yaml") == {"seed": 1, "max_steps": 20, "learning_rate": 0.2}
    paper = read_recipe(EXAMPLES / "recipes" / "paper_lincir_l14.yaml")
    assert paper["gather_across_devices"] is False and paper["max_steps"] == 2000

    (tmp_path / "base.yaml").write_text("include: all.yaml\n")
    with pytest.raises(ValueError, match="includes itself"):
        read_recipe(tmp_path / "all.yaml")
    (tmp_path / "base.yaml").write_text("include: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        read_recipe(tmp_path / "all.yaml")


HELP_PROGRAM = """
import runpy, sys
folder = sys.argv[1]
sys.argv = ["train_rtd.py", "--help"]
sys.path.insert(0, folder)
try:
    runpy.run_path(folder + "/train_rtd.py", run_name="__main__")
except SystemExit as end:
    print("torch" in sys.modules, "transformers.training_args" in sys.modules, end.code)
"""


def test_help_needs_neither_torch_nor_the_trainer():
    command = [sys.executable, "-c", HELP_PROGRAM, str(EXAMPLES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False 0"
    assert "--temperature" in done.stdout and "--config" in done.stdout


def test_failure_has_an_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "train_rtd.py"), "--config", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "none.yaml does not exist" in done.stderr and "Traceback" not in done.stderr
