"""The five benchmarks with files: counts, protocols, and every figure once more by sorting, from the files."""

import json
import logging
import pickle
import runpy
import shutil
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_files import (
    COCO_METRICS,
    FIVE,
    ROOT,
    FakeRetriever,
    change_records,
    fakely,
    feature,
    layouts,
    load_json,
    named,
    query_vector,
    real,
    save_json,
)
from PIL import Image
from world_models import random_retriever

from rtd_hf.benchmarks import (
    BENCHMARKS,
    load_circo,
    load_cirr,
    load_coco,
    load_fashioniq,
    load_genecis,
    score_rankings,
)
from rtd_hf.benchmarks.genecis import AttributeCrop
from rtd_hf.benchmarks.regions import (
    Instances,
    draw_regions,
    write_regions,
)
from rtd_hf.evaluator import CIREvaluator
from rtd_hf.submissions import read_submission, validate_cirr_submission, write_cirr_submission
from rtd_hf.texts import compose_prompt, join_captions


@cache
def features(names: tuple[str, ...]) -> np.ndarray:
    return np.stack([feature(name) for name in names])


def order_of(vector: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """Names, best first, by sorting in float64."""
    return [names[place] for place in np.argsort(-(features(names) @ vector), kind="stable")]


def recall(orders, targets, k: int) -> float:
    return 100 * np.mean([target in order[:k] for order, target in zip(orders, targets, strict=True)])


# ---------------------------------------- section 0: the counts
def test_counts_of_cirr():
    benchmark = load_cirr(real("cirr"), images="unchecked")
    assert len(benchmark.queries) == 4181 and len(benchmark.gallery) == 2297
    assert len({query.reference for query in benchmark.queries}) == 2165
    for query in benchmark.queries:
        assert len(query.candidates) == 5 and query.targets[0] in query.candidates
        assert query.reference not in query.candidates
    asked = Counter((query.reference, query.texts) for query in benchmark.queries)
    assert sum(count == 2 for count in asked.values()) == 6
    assert benchmark.protocol == {
        "complete": True,
        "split": "val",
        "version": "rc2",
        "exclude_reference": True,
        "num_queries": 4181,
        "gallery_size": 2297,
    }

    test = load_cirr(real("cirr"), split="test", images="unchecked")
    assert len(test.queries) == 4148 and len(test.gallery) == 2315 and test.hidden_targets
    assert len({query.reference for query in test.queries}) == 2178
    blank = [query for query in test.queries if query.id == "27098"]
    assert blank[0].texts == (" ",) and not any(query.targets for query in test.queries)


def test_counts_of_fashioniq():
    original = load_fashioniq(real("fashioniq"), images="unchecked")
    small = load_fashioniq(real("fashioniq"), gallery="val", images="unchecked")
    expected = {"dress": (2017, 3817, 2628), "shirt": (2038, 6346, 3089), "toptee": (1961, 5373, 2902)}
    for category, numbers in expected.items():
        queries = [query for query in original.queries if query.group == category]
        assert (len(queries), len(original.galleries[category]), len(small.galleries[category])) == numbers
    assert len(original.queries) == 6016 and original.protocol["complete"] and small.protocol["complete"]
    assert {len({q.reference for q in original.queries if q.group == name}) for name in expected} == {1331, 1541, 1454}
    loaded = {split: load_fashioniq(real("fashioniq"), split=split, images="unchecked") for split in ("train", "test")}
    assert all(benchmark.protocol["complete"] for benchmark in loaded.values())
    ids = {name for benchmark in (original, *loaded.values()) for name in benchmark.gallery}
    assert len(ids) == 74381
    stripped = sum(text != text.strip(".?, ") for query in original.queries for text in query.texts)
    assert stripped == 1260
    empty = [query.id.partition("-")[0] for query in original.queries if query.texts[0] == ""]
    assert empty == ["shirt", "toptee", "toptee"]


def with_gallery(folder: Path, annotations: Path, others: int = 0) -> Path:
    """A CIRCO folder of real annotations and an image info that lists what they name, and some more."""
    shutil.copytree(annotations, folder / "annotations")
    ids = set()
    for path in (folder / "annotations").glob("*.json"):
        for record in load_json(path):
            ids |= {record["reference_img_id"], *record.get("gt_img_ids", ())}
    ids |= set(list(range(600_000, 600_000 + others)))
    save_json(folder / "annotations" / "image_info_unlabeled2017.json", {"images": [{"id": i} for i in sorted(ids)]})
    return folder


def test_counts_of_circo(tmp_path):
    root = with_gallery(tmp_path, real("circo") / "annotations", others=121_113)
    benchmark = load_circo(root, images="unchecked")
    numbers = [len(query.targets) for query in benchmark.queries]
    assert len(numbers) == 220 and (min(numbers), max(numbers), np.median(numbers)) == (1, 14, 3)
    assert np.mean(numbers) == pytest.approx(4.16, abs=0.005)
    assert [sum(n > least for n in numbers) for least in (1, 5, 10)] == [220 - 29, 57, 9]
    assert Counter(aspect for query in benchmark.queries for aspect in query.aspects) == {
        "statement_with_conjunction": 164,
        "direct_addressing": 119,
        "spatial_relations_background": 100,
        "compare_change": 86,
        "addition": 80,
        "viewpoint": 54,
        "comparative_statement": 50,
        "cardinality": 37,
        "negation": 21,
    }
    test = load_circo(root, split="test", images="unchecked")
    assert len(test.queries) == 800 and test.hidden_targets and [q.id for q in test.queries[:2]] == ["0", "1"]
    whole = 123_403
    assert (len(benchmark.gallery) == whole) == benchmark.protocol["complete"]


def test_older_circo_has_no_aspects(tmp_path):
    root = with_gallery(tmp_path, real("circo") / "older_val_without_semantic_aspects")
    assert not any(query.aspects for query in load_circo(root, images="unchecked").queries)


def test_counts_of_genecis():
    benchmark = load_genecis(real("genecis"), tasks=("focus_object", "change_object"), images="unchecked")
    of_task = {task: [query for query in benchmark.queries if query.group == task] for task in benchmark.groups}
    expected = {"focus_object": (1960, 97, 2198), "change_object": (1960, 109, 2739)}
    for task, numbers in expected.items():
        images = {name for query in of_task[task] for name in (query.reference, *query.candidates)}
        assert (len(of_task[task]), len({query.texts for query in of_task[task]}), len(images)) == numbers
        assert all(len(query.candidates) == 15 and query.candidates[0] == query.targets[0] for query in of_task[task])
    # The only query with its target twice: slot 13 of the file's gallery.
    twice = [query for query in benchmark.queries if query.candidates.count(query.targets[0]) > 1]
    assert [(query.id, query.texts) for query in twice] == [("change_object-00019", ("toaster",))]
    assert twice[0].targets == ("175364",) and twice[0].candidates.index("175364", 1) == 14


def test_counts_of_coco_mini():
    root = real("coco_mini")
    benchmark = load_coco(root, metrics=COCO_METRICS, images="unchecked")
    assert len(benchmark.queries) == 77
    content = load_json(root / "instances_val2017.json")
    areas = {image["id"]: image["height"] * image["width"] for image in content["images"]}
    shares = [a["bbox"][2] * a["bbox"][3] / areas[a["image_id"]] for a in content["annotations"]]
    eligible = [share for share in shares if share < 0.5]
    assert (len(eligible), sum(share <= 0.05 for share in eligible)) == (600, 436)
    relative = load_coco(root, preset="relative", metrics=COCO_METRICS, images="unchecked")
    assert 0 < len(relative.queries) < 77


def test_golden_figures_of_circo(tmp_path):
    """The official example of a submission, whose figures the facts give to two digits."""
    root = with_gallery(tmp_path, real("circo") / "annotations")
    benchmark = load_circo(root, images="unchecked")
    lists = read_submission(real("circo") / "submission_examples" / "submission_val.json", benchmark)
    found = {name: round(value, 2) for name, value in score_rankings(benchmark, lists).metrics.items()}
    golden = {"map@5": 0.49, "map@10": 0.52, "map@25": 0.54, "map@50": 0.60}
    golden |= {"recall@5": 0.91, "recall@10": 0.91, "recall@25": 1.36, "recall@50": 3.64}
    aspects = {
        "cardinality": 0.00,
        "addition": 0.09,
        "negation": 0.00,
        "direct_addressing": 0.92,
        "compare_change": 0.02,
        "comparative_statement": 1.05,
        "statement_with_conjunction": 0.62,
        "spatial_relations_background": 0.18,
        "viewpoint": 0.62,
    }
    golden |= {f"{aspect}_map@10": value for aspect, value in aspects.items()}
    assert found == {f"circo_{name}": value for name, value in golden.items()}


# ---------------------------------------- figures by sorting, from the files
def expected_cirr(root: Path) -> dict[str, float]:
    records = load_json(next(root.rglob("cap.rc2.val.json")))
    gallery = tuple(load_json(next(root.rglob("split.rc2.val.json"))))
    orders, subsets, targets = [], [], [record["target_hard"] for record in records]
    for record in records:
        vector = query_vector(record["reference"], (record["caption"],))
        orders.append([name for name in order_of(vector, gallery) if name != record["reference"]])
        subsets.append([name for name in orders[-1] if name in record["img_set"]["members"]])
    figures = {f"cirr_recall@{k}": recall(orders, targets, k) for k in (1, 5, 10, 50)}
    figures |= {f"cirr_recall_subset@{k}": recall(subsets, targets, k) for k in (1, 2, 3)}
    return figures | {"cirr_average": (figures["cirr_recall@5"] + figures["cirr_recall_subset@1"]) / 2}


def expected_fashioniq(root: Path) -> dict[str, float]:
    figures = {}
    for category in ("dress", "shirt", "toptee"):
        records = load_json(root / "captions" / f"cap.{category}.val.json")
        gallery = tuple(load_json(root / "image_splits" / f"split.{category}.val.json"))
        vectors = [query_vector(record["candidate"], tuple(record["captions"])) for record in records]
        orders, targets = [order_of(vector, gallery) for vector in vectors], [r["target"] for r in records]
        for k in (10, 50):
            figures[f"fashioniq_{category}_recall@{k}"] = recall(orders, targets, k)
        pair = [figures[f"fashioniq_{category}_recall@{k}"] for k in (10, 50)]
        figures[f"fashioniq_{category}_average"] = np.mean(pair)
    for entry in ("recall@10", "recall@50", "average"):
        own = [figures[f"fashioniq_{category}_{entry}"] for category in ("dress", "shirt", "toptee")]
        figures[f"fashioniq_{entry}"] = np.mean(own)
    return figures


def expected_circo(root: Path) -> dict[str, float]:
    records = load_json(root / "annotations" / "val.json")
    info = load_json(next(root.rglob("image_info_unlabeled2017.json")))
    gallery = tuple(str(image["id"]) for image in info["images"])
    precision, orders = {}, []
    for record in records:
        order = order_of(query_vector(str(record["reference_img_id"]), (record["relative_caption"],)), gallery)
        orders.append(order)
        right = {str(image_id) for image_id in record["gt_img_ids"]}
        for k in (5, 10, 25, 50):
            hits = [name in right for name in order[:k]]
            sums = sum(sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit)
            precision.setdefault(k, []).append(100 * sums / min(len(right), k))
    figures = {f"circo_map@{k}": np.mean(values) for k, values in precision.items()}
    targets = [str(record["target_img_id"]) for record in records]
    figures |= {f"circo_recall@{k}": recall(orders, targets, k) for k in (5, 10, 25, 50)}
    for aspect in {aspect for record in records for aspect in record["semantic_aspects"]}:
        own = [value for value, r in zip(precision[10], records, strict=True) if aspect in r["semantic_aspects"]]
        figures[f"circo_{aspect}_map@10"] = np.mean(own)
    return figures


def expected_genecis(root: Path) -> dict[str, float]:
    figures = {}

    def name(item: dict) -> str:
        if "val_image_id" in item:
            return str(item["val_image_id"])
        return f"vg/{item['image_id']}@{','.join(str(float(edge)) for edge in item['instance_bbox'])}"

    for path in sorted((root / "genecis").glob("*.json")):
        ranks = []
        for record in load_json(path):
            vector = query_vector(name(record["reference"]), (record["condition"],))
            own = feature(name(record["target"])) @ vector
            # Of equals the target comes last.
            ranks.append(sum(feature(name(item)) @ vector >= own for item in record["gallery"]))
        for k in (1, 2, 3):
            figures[f"genecis_{path.stem}_recall@{k}"] = 100 * np.mean([rank < k for rank in ranks])
    for k in (1, 2, 3):
        figures[f"genecis_recall@{k}"] = np.mean([v for key, v in figures.items() if key.endswith(f"_recall@{k}")])
    return figures


def expected_coco(root: Path) -> dict[str, float]:
    """From the regions of a csv file, which is written first."""
    rows = [line.split(",", 2) for line in (root / "coco_eval.csv").read_text().splitlines() if line[0] not in "#i"]
    content = load_json(root / "annotations" / "instances_val2017.json")
    names = {category["id"]: category["name"] for category in content["categories"]}
    queries, gallery = [], [str(int(row[0].removesuffix(".jpg"))) for row in rows]
    for image_id, (_, box, rest) in zip(gallery, rows, strict=True):
        own, _, others = rest.partition(",")
        left, top, *_ = map(float, box.split(";"))
        (annotation,) = [
            a["id"]
            for a in content["annotations"]
            if a["image_id"] == int(image_id) and a["bbox"][:2] == [left, top] and names[a["category_id"]] == own
        ]
        text = " and ".join([own, *filter(None, others.split(";"))]) + ("" if others else " and ")
        queries.append(query_vector(f"{image_id}#{annotation}@224", (text,)))
    images = np.stack([feature(name) for name in gallery])
    unit = np.stack(queries) / np.linalg.norm(queries, axis=1, keepdims=True)
    scores, own = unit @ images.T, np.arange(len(gallery))
    ranks = (scores > scores[own, own][:, None]).sum(axis=1), (scores > scores[own, own][None]).sum(axis=0)
    return {
        f"coco_{kind}@{k}": 100 * np.mean(rank < k)
        for kind, rank in zip(("recall", "recall_reverse"), ranks, strict=True)
        for k in (1, 5, 10, 50, 100)
    }


@pytest.mark.parametrize("name", FIVE)
def test_figures_are_those_of_sorting(name, trees, tmp_path):
    root, options = trees / name, {}
    if name == "coco":
        root = shutil.copytree(root, tmp_path / name)
        instances = Instances(load_json(root / "annotations" / "instances_val2017.json"), root)
        write_regions(root / "coco_eval.csv", draw_regions(instances, seed=3), {"seed": 3})
        options = {"preset": "csv"}
    benchmark = BENCHMARKS[name](root, **options)
    expected = globals()[f"expected_{name}"](root)
    metrics = fakely(benchmark).evaluate().metrics
    assert metrics == pytest.approx(expected, abs=1e-3)
    assert sum(0 < value < 100 for value in metrics.values()) > 3


@pytest.mark.parametrize("name", ["cirr", pytest.param("fashioniq", marks=pytest.mark.slow), "genecis"])
def test_figures_on_real_annotations_are_those_of_sorting(name):
    options = {"tasks": ("change_object", "focus_object")} if name == "genecis" else {}
    benchmark = BENCHMARKS[name](real(name), images="unchecked", **options)
    expected = globals()[f"expected_{name}"](real(name))
    assert fakely(benchmark).evaluate().metrics == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", FIVE)
def test_lists_score_as_embeddings_do(name, trees):
    benchmark = BENCHMARKS[name](trees / name)
    evaluator = fakely(benchmark)
    longest = 9 if name == "genecis" else 50  # the shortest gallery of GeneCIS has ten images
    result = score_rankings(benchmark, evaluator.search(longest))
    metrics = evaluator.evaluate().metrics
    compared = [key for key in metrics if int(key.partition("@")[2] or 1) <= 50 and "reverse" not in key]
    compared = [key for key in compared if "subset" not in key and "average" not in key]
    assert len(compared) > 3
    assert {key: result.metrics[key] for key in compared} == pytest.approx({key: metrics[key] for key in compared})
    assert not any("reverse" in key for key in result.metrics)
    if name == "cirr":
        result = score_rankings(benchmark, evaluator.search(50), subset_rankings=evaluator.search(5, subset=True))
        assert result.metrics == pytest.approx(metrics)


# ---------------------------------------- collapsed and broken encoders
@pytest.mark.parametrize("name", FIVE)
def test_a_collapsed_encoder_scores_no_better_than_chance(name, trees):
    benchmark = named(BENCHMARKS[name](trees / name))

    class Constant(FakeRetriever):
        def encode_prompts(self, prompts, *, text_encoder=None):
            return torch.ones(len(benchmark.queries), 16)

    constant = Constant(lambda number: torch.ones(number, 16))
    evaluator = CIREvaluator(benchmark, constant)
    result = evaluator.evaluate()
    assert max(result.metrics.values()) == 0 and result.num_tied == len(benchmark.queries)
    lucky = CIREvaluator(benchmark, constant, ties="optimistic").evaluate().metrics
    assert all(lucky[f"{name}_{metric}"] == 100 for metric in benchmark.metrics if metric.startswith("recall"))


@pytest.mark.parametrize("name", FIVE)
def test_features_that_are_not_finite_are_refused(name, trees):
    broken = FakeRetriever(lambda number: torch.full((number, 16), torch.nan))
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity"):
        CIREvaluator(named(BENCHMARKS[name](trees / name)), broken).evaluate()


# ---------------------------------------- with real models and drawn pictures
@pytest.mark.parametrize("name", FIVE)
def test_a_real_model_runs_through(name, trees):
    options = {"crop_size": 48} if name == "coco" else {}
    benchmark = BENCHMARKS[name](trees / name, **options)
    retriever = random_retriever()
    result = CIREvaluator(benchmark, retriever).evaluate()
    assert result.num_queries == len(benchmark.queries)
    assert all(0 <= value <= 100 for value in result.metrics.values())
    assert f"{name}_recall@1" in result.metrics or name in ("circo", "fashioniq")
    assert json.loads(json.dumps(result.protocol))["ties"] == "pessimistic"
    assert "num_queries=" in benchmark.describe() and "gallery_size=" in benchmark.describe()
    files = pickle.loads(pickle.dumps(benchmark.load_image))
    for image_id in (benchmark.gallery[0], benchmark.queries[0].reference):
        image = files(image_id)
        assert image.mode == "RGB" and image.tobytes() == benchmark.load_image(image_id).tobytes()


@pytest.mark.slow
def test_the_whole_of_cirr_runs_through(tmp_path):
    """4,181 queries on 2,297 drawn pictures, from files to figures; and both files for the server."""
    layouts()["cirr"](tmp_path, real("cirr"), None)
    benchmark = load_cirr(tmp_path)
    assert benchmark.protocol["complete"]
    result = CIREvaluator(benchmark, random_retriever()).evaluate()
    assert result.num_queries == 4181 and 0 < result.metrics["cirr_recall@50"] < 20
    test = CIREvaluator(load_cirr(tmp_path, split="test1"), random_retriever())
    for metric, found in (("recall", test.search(50)), ("recall_subset", test.search(3, subset=True))):
        report = write_cirr_submission(found, tmp_path / "out.json", benchmark=test.benchmark, metric=metric)
        assert report == validate_cirr_submission(tmp_path / "out.json", real("cirr"))


def test_a_blank_caption_is_a_query(trees, tmp_path):
    root = shutil.copytree(trees / "cirr", tmp_path / "cirr")
    path = root / "cirr" / "captions" / "cap.rc2.test1.json"
    records = load_json(path)
    records[3]["caption"] = " "
    save_json(path, records)
    evaluator = CIREvaluator(load_cirr(root, split="test1"), random_retriever())
    assert len(evaluator.search(50)[3]) == 50 and len(evaluator.search(3, subset=True)[3]) == 3


def test_hidden_targets_are_searched_and_not_scored(trees):
    for benchmark in (load_cirr(trees / "cirr", split="test1"), load_circo(trees / "circo", split="test")):
        evaluator = fakely(benchmark)
        with pytest.raises(ValueError, match="are not public.*CIREvaluator.search.*submissions"):
            evaluator.evaluate()
        with pytest.raises(ValueError, match="are not public"):
            score_rankings(benchmark, evaluator.search(50))
        found = evaluator.search(50)
        assert all(len(set(line)) == 50 for line in found)
    with pytest.raises(ValueError, match="`circo` has no candidates of each query's own"):
        evaluator.search(3, subset=True)


# ---------------------------------------- protocol options
def test_exclude_reference_is_an_option_of_cirr_and_circo(trees):
    for load, default in ((load_cirr, True), (load_circo, False), (load_fashioniq, False)):
        root = trees / load.__name__.removeprefix("load_")
        queries = load(root).queries
        assert load(root).exclude_reference is default
        for exclude in (True, False):
            benchmark = load(root, exclude_reference=exclude)
            assert benchmark.protocol["exclude_reference"] is exclude
            found = fakely(benchmark).search(20)
            assert any(q.reference in ids for q, ids in zip(queries, found, strict=True)) is not exclude


def test_captions_of_fashioniq_stay_as_they_are(trees, tmp_path):
    root = shutil.copytree(trees / "fashioniq", tmp_path / "fashioniq")
    path = root / "captions" / "cap.shirt.val.json"
    records = load_json(path)
    records[0]["captions"] = ["", "is Blue, "]
    save_json(path, records)

    def prompts(**options):
        benchmark = load_fashioniq(root, categories="shirt", **options)
        texts = join_captions(benchmark.queries[0].texts, "both")
        return [compose_prompt("a photo of $ that {caption}", text) for text in texts]

    # The blank before "and" is one where the published code has two, which the tokenizer reads as one.
    assert prompts() == ["a photo of $ that and is Blue", "a photo of $ that is Blue and"]
    assert prompts(skip_empty_captions=True) == ["a photo of $ that is Blue,"]


def test_categories_tasks_and_metrics_are_chosen(trees, caplog):
    with caplog.at_level(logging.WARNING):
        benchmark = load_fashioniq(trees / "fashioniq", categories=("dress",), metrics=["recall@3"])
    assert set(benchmark.galleries) == {"dress"} and benchmark.metrics == ("recall@3",) and not benchmark.averages
    assert "num_queries of shirt is 0, expected 2038" in caplog.text
    benchmark = load_genecis(trees / "genecis", tasks=["change_attribute"])
    assert benchmark.protocol["gallery_size"] == {"change_attribute": 15}
    assert not benchmark.protocol["complete"]
    for options, message in (
        ({"categories": ()}, "`categories` must name"),
        ({"categories": ("hat",)}, "`categories` must be one of 'dress', 'shirt', 'toptee', got 'hat'"),
        ({"split": "dev"}, "`split` must be one of 'val', 'test', 'train', got 'dev'"),
        ({"gallery": "VAL"}, "`gallery` must be one of 'original', 'val', got 'VAL'"),
        ({"gallery": "val", "split": "test"}, "made of the targets"),
        ({"images": "maybe"}, "`images` must be one of 'strict', 'lenient', 'unchecked'"),
        ({"metrics": ("recall@10", "accuracy")}, "`metrics` names 'accuracy'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_fashioniq(trees / "fashioniq", **options)


def test_a_gallery_that_is_smaller_than_the_cut_off(trees, tmp_path):
    with pytest.raises(
        ValueError, match=r"recall@15 of `genecis` would be 100 whatever the ranking.*smaller cut-offs"
    ):
        load_genecis(trees / "genecis", tasks="change_object", metrics=("recall@1", "recall@15"))
    assert load_genecis(trees / "genecis", tasks="change_object", metrics=("recall@14",))
    size = len(load_cirr(trees / "cirr").gallery)
    with pytest.raises(ValueError, match=f"recall@{size - 1} of `cirr`"):
        load_cirr(trees / "cirr", metrics=(f"recall@{size - 1}",))  # the reference is not ranked
    assert load_cirr(trees / "cirr", metrics=(f"recall@{size - 2}",))
    with pytest.raises(ValueError, match="recall_subset@5"):
        load_cirr(trees / "cirr", metrics=("recall_subset@5",))
    with pytest.raises(ValueError, match="`k` must not exceed"):
        fakely(load_cirr(trees / "cirr")).search(size)


def test_evaluators_warn_of_figures_that_say_nothing(caplog):
    benchmark = named(BENCHMARKS["shapes_categories"](num_queries=9))
    with caplog.at_level(logging.WARNING, logger="rtd_hf.evaluator"):
        CIREvaluator(benchmark, FakeRetriever()).evaluate()
    assert "recall@50 of `shapes_categories` is 100 whatever the ranking" in caplog.text


# ---------------------------------------- GeneCIS
def test_genecis_is_ranked_in_one_go_per_task(trees, monkeypatch):
    import rtd_hf.evaluator as module

    calls = []
    monkeypatch.setattr(module, "rank_targets", lambda *a, f=module.rank_targets, **k: calls.append(a) or f(*a, **k))
    fakely(load_genecis(trees / "genecis")).evaluate()
    assert len(calls) == 4


def test_a_target_that_is_there_twice_is_lost(tmp_path, trees):
    root = shutil.copytree(trees / "genecis", tmp_path / "genecis")
    path = root / "genecis" / "change_object.json"
    records = load_json(path)[:1]
    save_json(path, records)
    # The query is its own target: nothing can score higher.
    records[0]["gallery"][4] = dict(records[0]["target"])
    benchmark = named(load_genecis(root, tasks="change_object"))
    target = benchmark.queries[0].targets[0]
    row = benchmark.gallery.index(target)

    def embeds(number):
        features = torch.full((number, 16), -1.0)
        features[row, 0] = 5.0
        return features

    class Towards(FakeRetriever):
        def encode_prompts(self, prompts, *, text_encoder=None):
            return torch.eye(16)[:1]

    figures = {}
    for twice in (False, True):
        save_json(path, [records[0] if twice else load_json(path)[0]])
        benchmark = named(load_genecis(root, tasks="change_object"))
        row = benchmark.gallery.index(target)
        figures[twice] = CIREvaluator(benchmark, Towards(embeds)).evaluate().metrics["genecis_recall@1"]
    assert figures == {False: 100, True: 0}


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # 0.7 of width and height are added to the left and the top, and the right and bottom stay
        ((50, 60, 20, 10), (36, 53, 70, 70)),
        # cut off at the picture's edge, the enlargement goes to the right
        ((5, 0, 20, 10), (0, 0, 34, 17)),
        # and stops at the other edge
        ((0, 0, 90, 20), (0, 0, 100, 34)),
    ],
)
def test_crops_of_attribute_tasks(box, expected):
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (80, 100, 3), dtype=np.uint8)
    square = np.asarray(AttributeCrop(*map(float, box))(Image.fromarray(pixels)))
    left, top, right, bottom = expected
    side = max(right - left, bottom - top)
    assert square.shape == (side, side, 3)
    filled = np.zeros((side, side, 3), np.uint8)
    x, y = (side - (right - left)) // 2, (side - (bottom - top)) // 2
    filled[y : y + bottom - top, x : x + right - left] = pixels[top:bottom, left:right]
    assert np.array_equal(square, filled)


def test_a_box_outside_of_its_picture():
    with pytest.raises(ValueError, match="lies outside of its picture of 30 x 20 pixels"):
        AttributeCrop(200.0, 5.0, 10.0, 10.0)(Image.new("RGB", (30, 20)))


# ---------------------------------------- circulating trees
def move(root: Path, **places: str) -> Path:
    """Moves parts of a tree; `a__b="c"` puts `a/b` to `c`."""
    for old, new in places.items():
        source, target = root / old.replace("__", "/"), root / new
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    return root


@pytest.mark.parametrize(
    ("name", "places", "inner"),
    [
        ("cirr", {}, ""),
        ("cirr", {}, "cirr"),  # the annotation folder itself
        ("cirr", {"cirr__captions": "captions", "cirr__image_splits": "image_splits"}, ""),
        ("cirr", {"dev": "img_raw/dev"}, ""),
        ("cirr", {"dev": "cirr/img_raw/dev"}, ""),
        ("cirr", {"cirr": "CIRR/cirr", "dev": "CIRR/dev"}, ""),
        ("fashioniq", {"captions": "json"}, ""),
        ("fashioniq", {x: f"fashion-iq/{x}" for x in ("captions", "image_splits", "images")}, ""),
        ("circo", {"COCO2017_unlabeled__unlabeled2017": "unlabeled2017"}, ""),
        ("circo", {"annotations": "CIRCO/annotations", "COCO2017_unlabeled": "CIRCO/COCO2017_unlabeled"}, ""),
        ("genecis", {}, ""),
        ("genecis", {}, "genecis"),
        ("genecis", {"COCO_val2017": "val2017", "VG_100K_all": "VG_100K"}, ""),
        ("coco", {"val2017": "COCO_val2017"}, ""),
        ("coco", {"annotations": "coco/annotations", "val2017": "coco/val2017"}, ""),
        ("coco", {"annotations__instances_val2017.json": "instances_val2017.json"}, ""),
    ],
)
def test_trees_are_recognised(name, places, inner, trees, tmp_path):
    expected = BENCHMARKS[name](trees / name)
    root = move(shutil.copytree(trees / name, tmp_path / "data"), **places)
    found = BENCHMARKS[name](root / inner)
    assert (found.queries, found.gallery, found.protocol) == (expected.queries, expected.gallery, expected.protocol)
    image_id = expected.gallery[-1]
    assert found.load_image(image_id).tobytes() == expected.load_image(image_id).tobytes()


def test_pictures_in_folders_of_categories_and_in_other_formats(trees, tmp_path):
    root = shutil.copytree(trees / "fashioniq", tmp_path / "data")
    expected = load_fashioniq(trees / "fashioniq")
    for category, ids in expected.galleries.items():
        (root / category).mkdir()
        for place, name in enumerate(ids):
            suffix = (".jpg", ".JPG", ".jpeg")[place % 3]
            (root / "images" / f"{name}.jpg").rename(root / category / f"{name}{suffix}")
    (root / "images").rmdir()
    found = load_fashioniq(root)
    for image_id in expected.gallery[:4]:
        assert found.load_image(image_id).tobytes() == expected.load_image(image_id).tobytes()


def test_the_gallery_of_circo_without_its_list(trees, tmp_path, monkeypatch):
    root = shutil.copytree(trees / "circo", tmp_path / "circo")
    shutil.rmtree(root / "COCO2017_unlabeled" / "annotations")
    with pytest.raises(ValueError, match="but the gallery of `circo` has 123403.*image_info_unlabeled2017.json"):
        load_circo(root)
    monkeypatch.setattr("rtd_hf.benchmarks.circo.GALLERY_SIZE", len(load_circo(trees / "circo").gallery))
    assert load_circo(root).gallery == load_circo(trees / "circo").gallery
    assert load_circo(root).protocol["gallery_listed_by"] == "folder"


# ---------------------------------------- pictures that are missing
def test_missing_pictures(trees, tmp_path, caplog):
    root = shutil.copytree(trees / "cirr", tmp_path / "cirr")
    whole = load_cirr(root)
    gone = {whole.queries[0].reference, whole.queries[1].targets[0], whole.queries[2].candidates[3]}
    for name in gone:
        (root / "dev" / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"3 of {len(whole.gallery)} pictures are missing \(first .*lenient"):
        load_cirr(root)
    with caplog.at_level(logging.WARNING):
        part = load_cirr(root, images="lenient")
    left = [q for q in whole.queries if q.reference not in gone and not gone & set(q.targets)]
    assert [query.id for query in part.queries] == [query.id for query in left]
    assert part.gallery == tuple(name for name in whole.gallery if name not in gone)
    assert part.protocol["left_out"] == {"images": 3, "queries": len(whole.queries) - len(left)}
    assert not any(gone & set(query.candidates) for query in part.queries)
    assert f"{len(left)} queries instead of {len(whole.queries)}" in caplog.text
    assert "left_out=images:3" in part.describe()
    fakely(part).evaluate()

    unchecked = load_cirr(root, images="unchecked")
    assert len(unchecked.queries) == len(whole.queries)
    with pytest.raises(FileNotFoundError, match="1 of .* pictures are missing"):
        unchecked.load_image(next(iter(gone)))


# ---------------------------------------- damaged annotations
CAPTIONS, SPLIT = "cirr/captions/cap.rc2.val.json", "cirr/image_splits/split.rc2.val.json"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def repeat_key(path: Path) -> None:
    text = path.read_text()
    path.write_text("{" + text[1:].partition(",")[0] + "," + text[1:])


@pytest.mark.parametrize(
    ("file", "damage", "error", "message"),
    [
        (CAPTIONS, cut, ValueError, r"cap.rc2.val.json \(\d+ bytes\) cannot be read.*Get it anew"),
        (SPLIT, repeat_key, ValueError, "1 keys stand twice in it"),
        (SPLIT, lambda path: path.unlink(), FileNotFoundError, "split.rc2.val.json, which lists the gallery, is not"),
        (SPLIT, lambda path: save_json(path, ["a"]), ValueError, "must map each image's name to its path"),
        (CAPTIONS, lambda path: save_json(path, {}), ValueError, "must hold a list of records"),
        (CAPTIONS, lambda path: save_json(path, []), ValueError, "must hold a list of records"),
        (
            CAPTIONS,
            lambda path: change_records(path, lambda rows: rows[7].pop("target_hard")),
            ValueError,
            "record 7 has no 'target_hard'.*another version or split",
        ),
        (
            CAPTIONS,
            lambda path: change_records(path, lambda rows: rows[2].update(pairid="x")),
            ValueError,
            "record 2 has 'pairid' 'x'",
        ),
        (
            CAPTIONS,
            lambda path: change_records(path, lambda rows: rows[2].update(pairid=rows[3]["pairid"])),
            ValueError,
            "`queries` holds '12063' 2 times",
        ),
        (
            CAPTIONS,
            lambda path: change_records(path, lambda rows: rows[0].update(reference="dev-9-9-img9")),
            ValueError,
            "the reference 'dev-9-9-img9' is not in its gallery",
        ),
        (
            CAPTIONS,
            lambda path: change_records(path, lambda rows: rows[0]["img_set"].pop("members")),
            ValueError,
            "`img_set` of pairid 12060 has no list of `members`",
        ),
    ],
)
def test_damaged_annotations(file, damage, error, message, trees, tmp_path):
    root = shutil.copytree(trees / "cirr", tmp_path / "cirr")
    damage(root / file)
    with pytest.raises(error, match=message):
        load_cirr(root)


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("fashioniq", "captions/cap.dress.val.json", lambda r: r[4].update(captions=["one"]), "two `captions`"),
        ("fashioniq", "image_splits/split.dress.val.json", lambda r: r.append(r[0]), r"galleries\['dress'\]` holds"),
        ("circo", "annotations/val.json", lambda r: r[1].update(target_img_id=-1), "-1 of query 1 is not in `gt"),
        ("circo", "annotations/val.json", lambda r: r[1].update(id=0), "`queries` holds '0' 2 times"),
        (
            "circo",
            "annotations/val.json",
            lambda r: r[1]["gt_img_ids"].append(r[1]["target_img_id"]),
            "more than once",
        ),
        (
            "genecis",
            "genecis/focus_object.json",
            lambda r: r[5]["gallery"][2].clear(),
            "record 5 has an image without",
        ),
        ("genecis", "genecis/focus_attribute.json", lambda r: r[5]["target"].pop("instance_bbox"), "record 5 has an"),
        ("coco", "annotations/instances_val2017.json", lambda c: c.pop("categories"), "no file of COCO instances"),
        (
            "coco",
            "annotations/instances_val2017.json",
            lambda c: c["annotations"][0].pop("bbox"),
            "'bbox'. is missing",
        ),
    ],
)
def test_damaged_records(name, file, change, message, trees, tmp_path):
    root = shutil.copytree(trees / name, tmp_path / name)
    change_records(root / file, change)
    with pytest.raises(ValueError, match=message):
        BENCHMARKS[name](root)


@pytest.mark.parametrize("name", FIVE)
def test_a_wrong_root(name, trees, tmp_path):
    other = FIVE[FIVE.index(name) - 1]
    with pytest.raises(FileNotFoundError) as caught:
        BENCHMARKS[name](trees / other)
    message = str(caught.value)
    assert f"It looks like `{other}`" in message and "Expected below `root`" in message
    assert "Nothing is downloaded" in message and str(trees / other) in message
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        BENCHMARKS[name](tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"`root` must be the folder of `{name}`, got None"):
        BENCHMARKS[name]()


# ---------------------------------------- the layouts themselves
def test_the_script_fills_empty_folders_only(tmp_path, monkeypatch, capsys):
    script = ROOT / "examples" / "make_benchmark_layouts.py"
    monkeypatch.syspath_prepend(str(script.parent))
    arguments = ["--output_dir", str(tmp_path), "--num_queries", "3", "--benchmarks", "cirr", "coco"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'cirr'} (" in printed and "num_queries=3" in printed and "split=val" in printed
    with pytest.raises(SystemExit, match="cirr is not empty, and what lies there would mix"):
        runpy.run_path(str(script), run_name="__main__")


def test_pictures_hold_the_boxes_of_all_tasks(tmp_path):
    """Real boxes of two tasks in one picture: it is as large as the larger of them needs."""
    source = tmp_path / "source"
    (source / "genecis").mkdir(parents=True)
    for task, edge in (("focus_attribute", 60), ("change_attribute", 200)):
        items = [{"image_id": number, "instance_bbox": [edge, 5, 30, edge]} for number in range(17)]
        record = {"condition": "colour", "reference": items[0], "target": items[1], "gallery": items[2:]}
        save_json(source / "genecis" / f"{task}.json", [record])
    layouts()["genecis"](tmp_path / "made", source, None)
    benchmark = load_genecis(tmp_path / "made", tasks=("focus_attribute", "change_attribute"))
    sizes = {benchmark.load_image(image_id).size for image_id in benchmark.gallery}
    assert sizes == {(102, 102), (205, 205)}  # the larger stops at the edge that its own box sets


def test_layouts_of_real_annotations_are_consistent(tmp_path):
    """The first queries of each with all they need: the strict loaders find every picture."""
    for name, lay_out in layouts().items():
        source = real("coco_mini" if name == "coco" else name)
        lay_out(tmp_path / name, source, 7)
        options = {"metrics": ("recall@1",)} if name == "coco" else {}
        options |= {"tasks": ("focus_object", "change_object")} if name == "genecis" else {}
        benchmark = BENCHMARKS[name](tmp_path / name, **options)
        whole = BENCHMARKS[name](source, images="unchecked", **options) if name != "circo" else None
        for group, rows in benchmark.groups.items():
            assert len(rows) == (77 if name == "coco" else 7)
            if whole is not None:
                expected = [query for query in whole.queries if query.group == group]
                assert [benchmark.queries[row] for row in rows] == expected[: len(rows)]
        fakely(benchmark).evaluate()
