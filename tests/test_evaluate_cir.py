"""`evaluate_cir.py` and its neighbours as a user meets them: figures, files, comparisons, and bad input."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--benchmarks", "shapes,num_queries=24"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example in this process as if from the command line; returns what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def call(*arguments, script="evaluate_cir.py"):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / script), *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.fixture
def failure(run):
    """The message a run ends with, which must fit on a screen and be no traceback."""

    def call(*arguments, **options):
        with pytest.raises(SystemExit) as caught:
            run(*arguments, **options)
        message = str(caught.value.code)
        assert caught.value.code not in (0, None) and len(message.splitlines()) < 40 and "Traceback" not in message
        return message

    return call


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    """One changed text encoder in all the forms in which they come, by name."""
    from peft import LoraConfig, get_peft_model

    from rtd_hf import CLIPTextModelForRTD, export_text_encoder
    from rtd_hf.shapes import ASSETS

    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    base = CLIPTextModelForRTD.from_pretrained(ASSETS / "clip")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=list(base.lora_target_modules)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    export_text_encoder(adapted, folder / "folder")
    weights = load_file(folder / "folder" / "model.safetensors")
    key = "CLIPTextModelWithProjection"
    torch.save({"epoch": 7, key: weights}, folder / "published.pt")
    old = {"text_model.embeddings.position_ids": torch.arange(77)[None], **weights}
    torch.save({key: {f"module.{name}": weight for name, weight in old.items()}}, folder / "old.pt")
    torch.save({key: {name: weights[name] for name in list(weights)[:-1]}}, folder / "less.pt")
    torch.save(
        {key: {**weights, list(weights)[0]: torch.full_like(weights[list(weights)[0]], torch.nan)}}, folder / "nan.pt"
    )
    (folder / "cut.pt").write_bytes((folder / "published.pt").read_bytes()[:5000])
    torch.save({"args": {"lr": 1}}, folder / "other.pt")
    return {path.stem: path for path in folder.iterdir()} | {"adapter": folder / "folder" / "adapter"}


# --------------------------------------------------------------------------------------------------- figures and files


def test_figures_are_the_evaluators_and_all_is_written(run, tmp_path):
    from utils.parts import load_parts

    from rtd_hf import BENCHMARKS, CIREvaluator

    out = run(
        *SMALL, "shapes_many,num_queries=20", "shapes_categories,num_queries=24", "--baselines", "image", "slerp",
        "caption", "--text_weight", "0.7", "--preservation", "shapes,num_images=30", "--format", "latex", "markdown",
        "--output_dir", tmp_path / "found", "--name", "my encoder",
    )  # fmt: skip
    report = json.loads((tmp_path / "found" / "metrics.json").read_text())
    values = load_file(tmp_path / "found" / "per_query.safetensors")
    retriever = load_parts("shapes", "shapes").retriever()
    for label, metrics in report["metrics"].items():
        name, _, number = label.partition(",num_queries=")
        evaluator = CIREvaluator(BENCHMARKS[name](num_queries=int(number)), retriever)
        assert metrics == pytest.approx(evaluator(), abs=1e-3)
        found = evaluator.evaluate(composer="slerp", text_weight=0.7).metrics
        assert report["baselines"][label]["slerp of both (text 0.7)"] == pytest.approx(found, abs=1e-3)
        for metric, value in metrics.items():
            assert values[f"{label} {metric}"].mean().item() == pytest.approx(value, abs=1e-3)
        assert report["protocols"][label]["ties"] == "pessimistic"
        assert evaluator.benchmark.describe() in out
    main = report["metrics"]["shapes,num_queries=24"]
    assert f"{main['shapes_recall@10']:.2f}" in out and "full target caption" in out and "image only" in out
    assert "my encoder & " in out and "| my encoder | " in out and r"\midrule" in out
    assert "shapes_captions_text_to_image_recall@5" in out
    category = [line for line in out.splitlines() if line.startswith("| method")][-1]
    assert category.count("R@50") == 4 and "mean R@10" in category


def test_sum_and_slerp_by_hand():
    from rtd_hf.similarity import slerp

    first, second = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = slerp(first, second, 1 / 3)
    torch.testing.assert_close(found, torch.tensor([[3**0.5 / 2, 0.5], [1.0, 0.0]]))
    rows = torch.nn.functional.normalize(torch.randn(2, 20, 16, dtype=torch.float64), dim=-1)
    for weight in (0.0, 0.2, 1.0):
        points = slerp(*rows, weight)
        angle = (rows[0] * rows[1]).sum(-1).acos()
        torch.testing.assert_close(points.norm(dim=-1), torch.ones(20, dtype=torch.float64))
        torch.testing.assert_close((rows[0] * points).sum(-1).clamp(-1, 1).acos(), weight * angle, rtol=0, atol=1e-6)
    middle = torch.nn.functional.normalize(rows.sum(0), dim=-1)
    torch.testing.assert_close(slerp(*rows, 0.5), middle)


def test_an_encoder_is_the_same_in_every_form(run, encoders, tmp_path):
    forms = {
        "folder": ["--text_encoder", encoders["folder"]],
        "published": ["--text_encoder", encoders["published"]],
        "old": ["--text_encoder", encoders["old"]],
        "adapter": ["--adapter", encoders["adapter"]],
    }
    found = {}
    for name, arguments in forms.items():
        run(*SMALL, "--baselines", "none", *arguments, "--output_dir", tmp_path / name)
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]
    run(*SMALL, "--baselines", "none", "--output_dir", tmp_path / "frozen")
    frozen = json.loads((tmp_path / "frozen" / "metrics.json").read_text())["metrics"]
    assert found["folder"] == found["published"] == found["old"] == found["adapter"] != frozen


def test_before_and_after(run, encoders, tmp_path):
    from rtd_hf.metrics import paired_bootstrap

    run(*SMALL, "--baselines", "none", "--output_dir", tmp_path / "one")
    changed = ["--text_encoder", encoders["folder"], "--baselines", "none"]
    out = run(*SMALL, *changed, "--before", tmp_path / "one", "--output_dir", tmp_path / "two")
    run(*SMALL, *changed, "--baseline_encoder", "frozen", "--output_dir", tmp_path / "three")
    first, second, third = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two", "three"))
    assert "95 % interval" in out and second["gain"] == third["gain"] and second["before"] == first["metrics"]
    label, metric = "shapes,num_queries=24", "shapes_recall@10"
    values = [load_file(tmp_path / n / "per_query.safetensors")[f"{label} {metric}"] for n in ("one", "two")]
    assert tuple(second["gain"][label][metric].values()) == pytest.approx(tuple(paired_bootstrap(*values)))
    assert any(gain["gain"] for gain in second["gain"][label].values())


def test_results_that_do_not_compare_are_refused(run, failure, tmp_path):
    run(*SMALL, "--baselines", "none", "--output_dir", tmp_path / "one")
    before = ["--baselines", "none", "--before", tmp_path / "one"]
    message = failure(*SMALL, *before, "--ties", "optimistic")
    assert "cannot be compared on `shapes,num_queries=24`: `ties` was pessimistic, is optimistic" in message
    message = failure("--benchmarks", "shapes_many,num_queries=20", *before)
    assert "has no results of `shapes_many,num_queries=20`, but of shapes,num_queries=24" in message
    message = failure(*SMALL, "--baselines", "none", "--before", tmp_path)
    assert "holds no metrics.json" in message
    # The same label and sizes, but other queries: as of annotations that were edited in between.
    path = tmp_path / "one" / "per_query.safetensors"
    save_file(load_file(path), path, metadata={"shapes,num_queries=24": "0" * 32})
    assert "the queries are others" in failure(*SMALL, *before)


def test_a_limited_run_says_so_loudly(run, tmp_path):
    out = run(
        "--benchmarks", "shapes_categories,num_queries=60", "--limit", "3", "--format", "markdown",
        "--output_dir", tmp_path / "o",
    )  # fmt: skip
    assert "*** NOT COMPARABLE WITH ANY PUBLISHED FIGURE: `--limit 3` ***" in out
    assert "| projection (NOT COMPARABLE) |" in out
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    (protocol,) = report["protocols"].values()
    assert protocol["limit"] == 3 and protocol["complete"] is False and set(protocol["num_queries"].values()) == {3}


def test_features_are_kept_between_runs(run, tmp_path, monkeypatch):
    first = run(*SMALL, "--features", tmp_path / "kept")
    from transformers import CLIPVisionModelWithProjection

    def forward(self, *args, **kwargs):
        raise AssertionError("pictures are encoded a second time")

    monkeypatch.setattr(CLIPVisionModelWithProjection, "forward", forward)
    assert run(*SMALL, "--features", tmp_path / "kept") == first


def test_several_draws_have_a_mean_and_a_spread(run, tmp_path):
    out = run("--benchmarks", "shapes,num_queries=24,draws=2", "--baselines", "none", "--output_dir", tmp_path / "o")
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    values = [metrics["shapes_recall@10"] for metrics in report["metrics"].values()]
    spread = report["draws"]["shapes,num_queries=24"]["shapes_recall@10"]
    assert len(values) == 2 and spread["mean"] == pytest.approx(sum(values) / 2)
    assert "over the draws" in out and list(report["metrics"]) == [f"shapes,num_queries=24,seed={i}" for i in (0, 1)]


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmarks", "shape"], "Did you mean `shapes`"),
        (["--benchmarks", "shapes,numqueries=3"], "no such option"),
        (["--benchmarks", "shapes,3"], "'3' is no `option=value`"),
        (["--benchmarks", "shapes", "shapes"], "names one twice"),
        (["--baselines", "magic"], "got 'magic'"),
        (["--text_weight", "2"], "`text_weight` lie between 0 and 1"),
        (["--limit", "0"], "`--limit` must be at least 1"),
        (["--limit", "3", "--submission"], "does not go with `--limit`"),
        (["--submission"], "needs `--output_dir`"),
        (["--before", "x", "--baseline_encoder", "frozen"], "Choose one"),
        (["--text_encoder", "none.pt"], "`none.pt` does not exist"),
        (["--preservation", "coco=x.json"], "`--preservation` must be"),
        (["--check_data", "--benchmarks", "cirr"], "needs the folder of `cirr`"),
        (["--check_data", "--benchmarks", "cirr=nowhere"], "are not fit for use"),
        (["--benchmarks", "cirr=nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_bad_arguments(failure, arguments, words):
    small = [] if "--benchmarks" in arguments else SMALL
    assert words in failure(*small, *arguments)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut", "cut short"),
        ("less", "does not fit the text encoder of `base`"),
        ("nan", "not finite in 1 of 69"),
        ("other", "holds `args`"),
    ],
)
def test_encoder_files_that_are_none(failure, encoders, name, words):
    message = failure(*SMALL, "--text_encoder", encoders[name])
    assert words in message and str(encoders[name]) in message


# ----------------------------------------------------------------------------------------------------- its neighbours


def test_plain_ways_of_ranking_agree_with_counting(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import numpy as np
    from utils import plain_ranking

    script = runpy.run_path(str(EXAMPLES / "benchmark_ranking.py"), run_name="not main")
    plain = {
        "cirr": [plain_ranking.plain_cirr],
        "fashioniq_shirt": [plain_ranking.plain_single_target],
        "circo": [plain_ranking.plain_many_targets, plain_ranking.plain_top_k],
    }
    for name, ways in plain.items():
        task = script["make_task"](name, script["RankingArguments"](shrink=40))
        features = [torch.randn(number, 32) for number in (task.num_queries, len(task.names))]
        for row, wanted in enumerate(task.many_targets or [[target] for target in task.targets]):
            for target in wanted:  # so that something is found
                features[1][task.names.index(target)] += features[0][row]
        queries, gallery = (torch.nn.functional.normalize(part, dim=-1) for part in features)
        expected = script["count"](queries, gallery, task)
        for way in ways:
            found = way(queries, gallery, task)
            assert found.keys() == expected.keys()
            for key, values in found.items():
                np.testing.assert_allclose(values, expected[key], atol=1e-6)
        assert any(0 < values.mean() for values in expected.values())


@pytest.mark.huge  # its CI line is shorter
def test_the_benchmark_of_ranking_runs(run, tmp_path):
    out = run("--shrink", 60, "--repeats", 1, "--threads", 1, "--output_json", tmp_path / "r.json",
              script="benchmark_ranking.py")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert "Every way comes to the same figures" in out and set(report["tasks"]) == {
        "cirr",
        "fashioniq_shirt",
        "circo",
    }


def test_interpolation_draws_its_curve(run, encoders, tmp_path):
    out = run(
        "--text_encoder", encoders["folder"], "--alphas", "0.5", *SMALL, "--preservation", "shapes,num_images=30",
        "--output_dir", tmp_path / "o", script="interpolate.py",
    )  # fmt: skip
    report = json.loads((tmp_path / "o" / "interpolation.json").read_text())
    assert [point["alpha"] for point in report["points"]] == [0, 0.5, 1]
    assert report["points"][0]["change"]["shapes_recall@10"] == {"gain": 0, "low": 0, "high": 0}
    assert (tmp_path / "o" / "interpolation.png").read_bytes().startswith(b"\x89PNG")
    assert "95 % interval of the change" in out
    run(*SMALL, "--baselines", "none", "--text_encoder", encoders["folder"], "--output_dir", tmp_path / "end")
    (end,) = json.loads((tmp_path / "end" / "metrics.json").read_text())["metrics"].values()
    assert {key: report["points"][-1][key] for key in end} == end
