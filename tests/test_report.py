"""The report on runs: what it shows against what lies in the folders, and folders that come from a stranger."""

import base64
import copy
import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from test_examples import EXAMPLES, run
from test_triplet_quality import Page
from world_models import random_retriever

from rtd_hf.benchmarks import BENCHMARKS
from rtd_hf.evaluator import CIREvaluator
from rtd_hf.pages import Figure, document, table


CARD = Path(__file__).parents[1] / "model_cards" / "rtd-lincir-shapes"
METRICS = {
    "before": {"shapes_recall@1": 10.0, "shapes_recall@10": 40.0},
    "after": {"shapes_recall@1": 12.5, "shapes_recall@10": 61.25},
    "gain": {
        "shapes_recall@1": {"gain": 2.5, "low": -1.0, "high": 6.0},
        "shapes_recall@10": {"gain": 21.25, "low": 17.0, "high": 25.5},
    },
    "baselines": {"reference image": {"shapes_recall@1": 3.5, "shapes_recall@10": 20.0}},
    "preservation": {
        "before": {"coco_text_to_image_recall@1": 50.0},
        "after": {"coco_text_to_image_recall@1": 48.0},
        "change": {"coco_text_to_image_recall@1": {"gain": -2.0, "low": -3.0, "high": -1.0}},
    },
    "curve": {
        "training": {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.5]},
        "evaluation": {"step": [0, 3], "eval_loss": [3.5, 1.75], "eval_shapes_recall@10": [40.0, 60.5]},
    },
    "run": {"steps": 3, "seed": 42, "adapters": "none, all weights trained"},
    "environment": {"versions": {"torch": "9.9"}, "gpus": []},
    "cost": {"seconds": 74.2, "energy Wh": None},
}
RECIPE = {"benchmarks": ["shapes"], "temperature": 0.07, "seed": 42}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def folder(path: Path, metrics=METRICS, recipe=RECIPE, diagnoses=None) -> Path:
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if diagnoses is not None:
        (path / "diagnostics.json").write_text(json.dumps({"diagnoses": diagnoses}))
    return path


def page_of(*folders, galleries=None) -> str:
    from utils.report_page import runs_page
    from utils.report_page_runs import read_runs

    return runs_page(read_runs([str(each) for each in folders]), galleries or {})


def diagnoses(name="shapes") -> dict:
    """All diagnoses, of random encoders."""
    from utils.diagnosing import both, both_results

    from rtd_hf import (
        ImageAlignment,
        QueryPerturbations,
        TaskDiscrepancy,
        layer_changes,
        load_shapes_captions,
        modality_gap,
    )

    evaluator, data = (
        CIREvaluator(BENCHMARKS["shapes"](num_queries=6), random_retriever()),
        load_shapes_captions(num_images=20),
    )
    retriever, before = evaluator.retriever, evaluator.retriever.text_encoder
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.text_projection.weight += 0.2 * torch.randn(after.text_projection.weight.shape)
    gap = modality_gap(data, retriever, scales=[0.5, 1.0])
    moved = layer_changes(before, after, texts=[own[0] for own in data.captions], tokenizer=retriever.tokenizer)
    changed = QueryPerturbations(evaluator, changes=["dropped", "typos"])
    return {
        "discrepancy": {name: {"name": "shapes", **both(TaskDiscrepancy(evaluator).measure, before, after)}},
        "alignment": {"shapes_captions": both_results(ImageAlignment(data, retriever).evaluate, before, after)},
        "gap": {"shapes_captions": {"metrics": dict(gap.metrics), "series": dict(gap.series)}},
        "perturbations": {name: {"name": "shapes", **both(changed.measure, before, after)}},
        "layers": {"metrics": dict(moved.metrics), "series": dict(moved.series)},
    }


def checked(text: str) -> Page:
    """A page that is whole, runs nothing and fetches nothing."""
    page = Page(re.sub(r"<(img|line|circle|polyline)\b([^>]*?)/?>", r"<\1\2></\1>", text))
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "style.x"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name, value in page.attributes:
        if name == "src":
            assert re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", value)
        if name in ("href", "xlink:href"):
            assert re.fullmatch(r"#s\d+", value)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    assert not re.search(r"url\(|@import|https?:", style)
    assert "default-src 'none'" in text and "img-src data:" in text
    return page


# ------------------------------------------------------------------------------------------------------------ one run
def test_every_figure_is_there(tmp_path):
    page = checked(page_of(folder(tmp_path / "mine")))
    for text in ("mine", "10.0", "12.5", "+2.5 [-1.0, +6.0]", "+21.2 [+17.0, +25.5]", "3.5", "reference image"):
        assert text in page.texts
    for text in (
        "-2.0 [-3.0, -1.0]",
        "coco_text_to_image_recall@1",
        "all weights trained",
        "3",
        "74.2",
        "not measured",
    ):
        assert text in page.texts
    assert "environment: versions: torch" in page.texts and "9.9" in page.texts
    assert "1.5 at the end" in page.texts and "1.75 at the end" in page.texts and "60.5 at the end" in page.texts
    assert any("examples/diagnose.py" in text for text in page.texts)


def test_curve_is_drawn_to_scale():
    from utils.report_page_curves import panel

    drawn = panel({"one": [(0, 0.0), (5, 10.0), (10, 5.0)]}, title="Loss", unit="x")
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r"points='(.*?)'", drawn)[1].split()]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.11)
    assert points[0][1] - points[1][1] == pytest.approx(2 * (points[2][1] - points[1][1]), abs=0.21)
    assert points[1][1] < points[2][1] < points[0][1]  # upwards is more
    assert panel({"none": []}, title="Loss", unit="x") == ""
    assert "circle" in panel({"one": [(3, 1e-9)]}, title="a", unit="b")
    for flat in ([(0, 0.0), (1, 0.0)], [(0, 1e9), (1e6, 1e9 + 1)], [(2, -5.0), (2, 7.0)]):
        checked(document("x", panel({"a": flat}, title="<b>", unit="c"), pictures=True))


def test_curve_of_the_last_checkpoint(tmp_path):
    """Of a run that wrote none."""
    path = folder(tmp_path / "mine", {key: value for key, value in METRICS.items() if key != "curve"})
    for step in (9, 10):
        (path / f"checkpoint-{step}").mkdir()
        rows = [{"step": step, "loss": 0.5 + step}, {"step": step, "eval_loss": float("nan")}]
        (path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    texts = checked(page_of(path)).texts
    assert "10.5 at the end" in texts and "9.5 at the end" not in texts
    assert "nan at the end" not in texts


def test_the_published_card(tmp_path):
    """As CI runs it: figures, no weights."""
    texts = checked(page_of(CARD)).texts
    metrics = json.loads((CARD / "metrics.json").read_text())
    assert f"{metrics['after']['shapes_recall@10']:.1f}" in texts


def test_an_evaluation(tmp_path):
    metrics = {
        "metrics": {"shapes": METRICS["after"], "cirr": {"cirr_recall@1": 24.5}},
        "before": {"shapes": METRICS["before"]},
        "gain": {"shapes": METRICS["gain"]},
        "baselines": {"shapes": METRICS["baselines"]},
        "preservation": {"coco": {"frozen": {}, "after": {}}},
    }
    texts = checked(page_of(folder(tmp_path / "mine", metrics))).texts
    assert "24.5" in texts and "+2.5 [-1.0, +6.0]" in texts and "20.0" in texts


def test_diagnoses(tmp_path):
    found = json.loads(json.dumps(diagnoses()))
    page = checked(page_of(folder(tmp_path / "mine", diagnoses=found)))
    assert page.tags.count("img") == 5
    for title in (
        "Task discrepancy on shapes",
        "Anchor alignment on shapes_captions",
        "Changed texts on shapes, 6 queries",
    ):
        assert title in page.texts
    value = found["discrepancy"]["shapes"]["after"]["shapes_query_to_image"]
    assert f"{value:.3f}" in page.texts
    images = [value for name, value in page.attributes if name == "src"]
    widths = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size[0] for uri in images]
    assert min(widths) > 500
    metrics = METRICS | {"diagnostics": {"before": {"discrepancy": {"x": 0.25}}, "after": {"discrepancy": {"x": 0.5}}}}
    texts = checked(page_of(folder(tmp_path / "other", metrics))).texts
    assert "0.250" in texts and "0.500" in texts


# ------------------------------------------------------------------------------------------------------- several runs
def test_two_runs_and_where_they_differ(tmp_path):
    other = copy.deepcopy(METRICS)
    other["after"]["shapes_recall@10"] = 70.0
    recipe = RECIPE | {"temperature": 0.05, "warmup_steps": 3}
    page = checked(page_of(folder(tmp_path / "a" / "run"), folder(tmp_path / "b" / "run", other, recipe)))
    texts = page.texts
    names = [str(tmp_path / each / "run") for each in "ab"]  # of one name, so that the paths tell them apart
    assert all(name in texts for name in names)
    assert "61.2" in texts and "70.0" in texts
    assert "The recipes differ in 2 of 4 arguments:" in texts
    place = texts.index("The recipes differ in 2 of 4 arguments:")
    differing = texts[place : texts.index("All arguments")]
    assert {"temperature", "0.07", "0.05", "warmup_steps", "(its default)"} <= {*differing} and "seed" not in differing
    same = checked(page_of(folder(tmp_path / "c"), folder(tmp_path / "d"))).texts
    assert "The recipes differ in nothing." in same
    with pytest.raises(ValueError, match="named twice"):
        page_of(tmp_path / "c", tmp_path / "d" / ".." / "c")


# ------------------------------------------------------------------------------------------------------------ gallery
class TestGallery:
    def setup_method(self):
        sys.path.insert(0, str(EXAMPLES))

    def test_wins_are_those_that_rose_the_most(self):
        from utils.report_page_gallery import wins_and_losses
        from utils.specs import parse_spec

        spec, retriever = parse_spec("shapes,num_queries=14"), random_retriever()
        after = copy.deepcopy(retriever.text_encoder)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            after.text_projection.weight += torch.randn(after.text_projection.weight.shape, generator=generator)
        found = wins_and_losses(spec, retriever, after, number=3)
        scored = CIREvaluator(spec.load(), retriever)
        first, then = scored.ranks(scored.encode()), scored.ranks(scored.encode(after))
        ratios = sorted((first / then).tolist())
        assert [line["before"] / line["after"] for line in found.wins] == pytest.approx(ratios[::-1][:3])
        assert [line["before"] / line["after"] for line in found.losses] == pytest.approx(ratios[:3])
        assert f"{int((then < first).sum())} rose, {int((then > first).sum())} fell" in found.told
        queries = {" / ".join(query.texts): row for row, query in enumerate(scored.benchmark.queries)}
        for line in found.wins + found.losses:
            row = queries[line["text"]]
            assert (line["before"], line["after"]) == (first[row], then[row])
            hits = [hit for _, hit in line["found_after"]]
            assert hits == [place + 1 == line["after"] for place in range(5)]  # one target, at its rank
        image = Image.open(io.BytesIO(base64.b64decode(found.wins[0]["reference"].partition(",")[2])))
        reference = scored.benchmark.queries[queries[found.wins[0]["text"]]].reference
        assert image.tobytes() == scored.benchmark.load_image(reference).tobytes()

    def test_what_kept_its_rank_is_neither(self):
        from utils.report_page_gallery import wins_and_losses
        from utils.specs import parse_spec

        retriever = random_retriever()
        found = wins_and_losses(parse_spec("shapes,num_queries=3"), retriever, retriever.text_encoder, number=3)
        assert found.wins == found.losses == [] and "0 rose, 0 fell and 3 kept" in found.told

    def test_large_pictures_become_small(self):
        from utils.report_page_gallery import data_uri

        uri = data_uri(Image.new("RGBA", (2000, 1000), "red"))
        assert uri.startswith("data:image/jpeg;") and len(uri) < 5000
        assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (96, 48)

    def test_shown_and_escaped(self, tmp_path):
        from utils.report_page_gallery import Gallery

        uri = "data:image/png;base64,AAAA"
        line = {"reference": uri, "text": EVIL, "before": 1200, "after": 1,
                "found_before": [(uri, False)] * 5, "found_after": [(uri, True)] + [(uri, False)] * 4}  # fmt: skip
        one = Gallery(EVIL, "Of 2 targets 1 rose.", [line], [])
        page = checked(page_of(folder(tmp_path / "mine"), galleries={"mine": ([one], "")}))
        assert EVIL in page.texts and page.tags.count("img") == 11 and "rank 1,200 to 1" in page.texts
        assert [value for name, value in page.attributes if name == "class" and value == "hit"] == ["hit"]

    @pytest.mark.parametrize(
        ("prepare", "reason"),
        [
            (lambda path: None, "holds no weights"),
            (lambda path: (path / "model.safetensors").touch(), "not measured on the offline world"),
        ],
    )
    def test_no_pictures_at_hand(self, tmp_path, monkeypatch, capsys, prepare, reason):
        """A base model that a stranger names is not loaded."""
        path = folder(tmp_path / "mine")
        prepare(path)
        run("report.py", str(path), "--output", str(tmp_path / "r.html"), monkeypatch=monkeypatch)
        text = (tmp_path / "r.html").read_text()
        assert reason in text and reason in capsys.readouterr().out
        checked(text)


@pytest.mark.slow
def test_of_a_training(tmp_path, monkeypatch):
    """Train, diagnose, report: what a user does."""
    short = (
        "--max_steps 4 --num_triplets 400 --warmup_steps 1 --eval_steps 2 --per_device_train_batch_size 16 "
        "--num_eval_triplets 16 --disable_tqdm true --benchmarks shapes_many --preservation shapes,num_images=30"
    ).split()
    for name, load in dict(BENCHMARKS).items():
        monkeypatch.setitem(BENCHMARKS, name, lambda root=None, load=load, **more: load(**{"num_queries": 12, **more}))
    names = ("discrepancy", "perturbations", "alignment", "triplets", "layers")
    run(
        "train_rtd.py", *short, "--diagnostics", *names, "--output_dir", str(tmp_path / "run"), monkeypatch=monkeypatch
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    found = metrics["diagnostics"]
    assert set(found["before"]) == set(found["after"]) == set(names)
    assert found["before"]["discrepancy"] != found["after"]["discrepancy"]
    assert found["before"]["alignment"]["shapes_captions_caption_similarity"] == pytest.approx(1)
    logged = metrics["curve"]["evaluation"]
    assert (
        found["before"]["layers"]["layers_relative_change"] == 0 < found["after"]["layers"]["layers_relative_change"]
    )
    assert len(logged["eval_layers_0_change"]) == len(logged["eval_triplets_moved_as_told"]) >= 2
    assert "eval_shapes_query_to_caption" in logged and "eval_shapes_typos_loss" in logged
    assert not [key for key in logged if key.endswith("recall@10") and "typos" in key]
    run("diagnose.py", "--model", str(tmp_path / "run"), "--benchmark", "shapes_many,num_queries=6", "--captions",
        "shapes,num_images=20", monkeypatch=monkeypatch)  # fmt: skip
    assert (tmp_path / "run" / "diagnostics" / "layers.png").read_bytes().startswith(b"\x89PNG")
    run("report.py", str(tmp_path / "run"), "--output", str(tmp_path / "r.html"), monkeypatch=monkeypatch)
    page = checked((tmp_path / "r.html").read_text())
    assert "Rose the most" in page.texts and "Task discrepancy on shapes_many,num_queries=6" in page.texts
    assert page.tags.count("img") > 20


# ---------------------------------------------------------------------------------------------------------- strangers
def poisoned(value, marks):
    """Every string of a file, keys too, with markup before and behind it."""
    if isinstance(value, dict):
        pairs = ((key, poisoned(each, marks)) for key, each in value.items())
        return {key if key in KEPT else f"{marks}{key}{marks}": each for key, each in pairs}
    if isinstance(value, list):
        return [poisoned(each, marks) for each in value]
    return f"{value}{marks}" if isinstance(value, str) else value


KEPT = {*METRICS, *"training evaluation step loss eval_loss gain low high change steps seed diagnostics".split()}
KEPT |= {"seconds", "adapters", "before", "after", "benchmarks"}


def test_no_text_of_a_stranger_becomes_markup(tmp_path):
    metrics = METRICS | {"diagnostics": {"before": {"a": {"x": 1.0}}, "after": {"a": {"x": 2.0}}}}
    path = folder(tmp_path / "a<b>'\"&", poisoned(metrics, EVIL), poisoned(RECIPE, EVIL))
    text = page_of(path, folder(tmp_path / "other"))
    page = checked(text)
    assert "img" not in page.tags and "b" not in page.tags
    assert sum(EVIL in part for part in page.texts) > 10 and "<script" not in text and "<img" not in text


def test_no_text_of_a_diagnosis_becomes_markup(tmp_path):
    found = json.loads(json.dumps(diagnoses(f"shapes{EVIL}$x^$")))
    found["perturbations"][f"shapes{EVIL}$x^$"]["series"]["after"]["rows"][0]["examples"][0][1] = EVIL
    found["gap"]["shapes_captions"]["series"]["rows"][1]["kind"] = "none"
    page = checked(page_of(folder(tmp_path / "mine", diagnoses=found)))
    assert any(EVIL in part for part in page.texts) and page.tags.count("img") == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": [1]}, "`after` must be an object"),
        ({"after": {"a": "<b>"}}, "`after` must hold numbers"),
        ({"before": {"a": None}}, "`before` must hold numbers"),
        ({"gain": {"a": {"gain": 1}}}, "must have `gain`, `low` and `high`"),
        ({"curve": {"training": {"step": [1], "loss": [1, 2]}}}, "as many values as steps"),
        ({"curve": {"training": {"loss": [1, 2]}}}, "damaged"),
        ({"run": 3}, "`run` must be an object"),
        ({"preservation": {"after": {"a": 1}}}, "damaged"),
        ({"diagnostics": {"after": 4}}, "damaged"),
    ],
)
def test_damaged_figures_are_named(tmp_path, change, message):
    path = folder(tmp_path / "mine", METRICS | change)
    with pytest.raises(ValueError, match=message) as caught:
        page_of(path)
    assert "metrics.json" in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    path = folder(tmp_path / "mine", diagnoses={"layers": {}})
    with pytest.raises(ValueError, match=r"diagnostics.json of .*mine is damaged"):
        page_of(path)
    (path / "diagnostics.json").unlink()
    (path / "recipe.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="recipe.yaml` must hold"):
        page_of(path)
    (path / "recipe.yaml").write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ValueError, match="recipe.yaml` cannot be read"):
        page_of(path)
    (path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json"):
        page_of(path)
    with pytest.raises(FileNotFoundError, match="holds no metrics.json"):
        page_of(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "recipe.yaml", "diagnostics.json"])
def test_links_to_elsewhere_are_refused(tmp_path, name):
    path = folder(tmp_path / "mine", diagnoses={})
    secret = tmp_path / "secret"
    secret.write_text((path / name).read_text())
    (path / name).unlink()
    (path / name).symlink_to(secret)
    with pytest.raises(ValueError, match="is a link to"):
        page_of(path)


def test_script_refuses_what_makes_no_sense(tmp_path, monkeypatch):
    path = str(folder(tmp_path / "mine"))
    for arguments, message in (
        ((path, "--output", "page.txt"), "must end in .html"),
        ((path, "--queries", "-1"), "must be 0 or more"),
        ((path, "--benchmark", "shapez"), "shapes"),
        ((str(tmp_path),), "holds no metrics.json"),
    ):
        with pytest.raises(SystemExit, match=message):
            run("report.py", *arguments, monkeypatch=monkeypatch)


class TestDiagnosticsOfATraining:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("discrepanzy",), "must be of discrepancy, perturbations, alignment"),
            (("discrepancy",), "need `--benchmarks`"),
            (("alignment",), "needs captions"),
        ],
    )
    def test_refused_before_any_work(self, tmp_path, monkeypatch, arguments, message):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("license: mit\n")
        monkeypatch.setattr("rtd_hf.CIREvaluator", None)
        with pytest.raises(SystemExit, match=message):
            run("train_rtd.py", "--config", str(recipe), "--diagnostics", *arguments, "--output_dir",
                str(tmp_path / "run"), monkeypatch=monkeypatch)  # fmt: skip


def test_table_puts_numbers_to_the_right():
    page = Page(table(("a", "b", "c"), [["x", "", Figure("+1.0 [0, 2]")], ["2 y", 3.25, "4 %"]]))
    assert [value for name, value in page.attributes if name == "class"] == [
        "scroll", "number", "number", "number", "number", "number"
    ]  # fmt: skip
    assert "3.2" in page.texts or "3.3" in page.texts


# ----------------------------------------------------------------------------------------------- what a diagnosis says
def found_of(change: dict) -> dict:
    metrics = {f"toy_{name}": 0.5 for name in ("query_to_caption", "query_to_image", "query_to_reference")}
    metrics |= {"toy_query_to_caption_margin": 0.4, "toy_query_to_image_margin": 0.3, "toy_caption_to_image": 0.9}
    return {"before": metrics, "after": metrics, "change": dict.fromkeys(metrics, change)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((0.1, 0.05, 0.15), "The margin to the target caption rises by 0.100 (95 % interval +0.050 to +0.150)."),
        ((-0.1, -0.15, -0.05), "The margin to the target caption falls by 0.100 (95 % interval -0.150 to -0.050)."),
        ((0.1, -0.01, 0.2), "No change of the margin to the target caption is shown: +0.100 [-0.010, +0.200]."),
        ((-0.1, -0.2, 0.0), "No change of the margin to the target caption is shown: -0.100 [-0.200, +0.000]."),
    ],
)
def test_sentences_go_no_further_than_their_intervals(change, said):
    from utils.diagnosing import shown_discrepancy

    one = shown_discrepancy("toy", found_of(dict(zip(("change", "low", "high"), change, strict=True))), "toy,seed=1")
    assert one.told[0] == said and one.title == "Task discrepancy on toy,seed=1"
    assert said in one.lines() and "0.400" in one.lines()


@pytest.mark.parametrize(
    ("frechet", "said"),
    [
        ((0.5, 0.4, 0.3), "is least at 2, the largest that was tried, 0.300 against 0.500 without noise"),
        ((0.5, 0.4, 0.6), "is least at 1, 0.400 against 0.500 without noise"),
        ((0.2, 0.4, 0.3), "is at no scale less than without noise (0.200)"),
    ],
)
def test_sentences_of_the_gap(frechet, said):
    from utils.diagnosing import shown_gap

    rows = [
        {"kind": kind, "scale": scale, "frechet": value, "separability": 0.9, "pair_cosine": 0.5, "norm_ratio": 1.0}
        for kind, scale, value in zip(("none", "gaussian", "gaussian"), (0, 1, 2), frechet, strict=True)
    ]
    best = min(rows[1:], key=lambda row: row["frechet"])
    metrics = {"best_scale_gaussian": best["scale"], "best_gaussian_frechet": best["frechet"],
               "without_frechet": frechet[0], "without_separability": 0.95, "hardest_scale_gaussian": 1,
               "hardest_gaussian_separability": 0.9}  # fmt: skip
    one = shown_gap("toy", {"metrics": metrics, "series": {"rows": rows, "pictures": 30}})
    assert said in one.told[0] and "worst at 1: ROC area 0.90, without noise 0.95" in one.told[0]


def test_sentences_of_changed_texts():
    from utils.diagnosing import shown_perturbations

    row = {"change": "shuffled", "what": "its words in another order", "recall@10": 50.0, "loss": 4.0, "low": -1.0,
           "high": 9.0, "examples": [["a b", "b a"]]}  # fmt: skip
    series = {"k": 10, "queries": 20, "rows": [row, row | {"change": "dropped", "what": "no text", "low": 1.0}]}
    sides = {"toy_unchanged_recall@10": 54.0}
    found = {"before": sides, "after": sides, "series": {"before": series, "after": series}}
    one = shown_perturbations("toy", found)
    assert "no loss is shown (4.0 points, 95 % interval -1.0 to 9.0)" in one.told[0]
    assert "the results change (4.0 points, 95 % interval 1.0 to 9.0)" in one.told[1]
    assert one.rows[2] == ["shuffled", "50.0", "50.0", "4.0", "4.0 [-1.0, 9.0]", "b a"]
