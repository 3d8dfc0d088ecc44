"""Submissions to the servers of CIRR and CIRCO: official examples pass, ours pass, damaged ones do not."""

import copy
import gzip
import json

import pytest
from benchmark_files import fakely, load_json, real, save_json

from rtd_hf.benchmarks import load_circo, load_cirr, score_rankings
from rtd_hf.submissions import (
    read_submission,
    validate_circo_submission,
    validate_cirr_submission,
    write_circo_submission,
    write_cirr_submission,
)


# ---------------------------------------- the official examples
def test_official_files_of_cirr_pass():
    root, demo = real("cirr"), real("cirr") / "demo_files"
    recall = validate_cirr_submission(demo / "test1_pred_ranks_recall.json.gz", root, metric="recall")
    assert (recall.kind, recall.num_queries, recall.length) == ("cirr recall", 4148, 50)
    assert recall.num_bytes == 4_192_413  # unpacked, as the server gets it
    subset = validate_cirr_submission(demo / "test1_pred_ranks_recall_subset.json", root)
    assert (subset.kind, subset.num_queries, subset.length) == ("cirr recall_subset", 4148, 3)
    with pytest.raises(ValueError, match="`metric` must be 'recall', got 'recall_subset'"):
        validate_cirr_submission(demo / "test1_pred_ranks_recall_subset.json", root, metric="recall")
    with pytest.raises(ValueError, match="4181 of 4181 queries are not answered .*4148 keys are no queries"):
        validate_cirr_submission(demo / "test1_pred_ranks_recall_subset.json", root, split="val")


def test_official_files_of_circo_pass():
    examples = real("circo") / "submission_examples"
    report = validate_circo_submission(examples / "submission_test.json", real("circo"))
    assert (report.kind, report.num_queries, report.length, report.num_bytes) == ("circo", 800, 50, 319_356)
    assert report.notes == ["the ids were not compared with the gallery, because nothing below `root` lists it"]
    assert validate_circo_submission(examples / "submission_val.json", real("circo"), split="val").num_queries == 220
    with pytest.raises(ValueError, match="580 of 800 queries are not answered"):
        validate_circo_submission(examples / "submission_val.json", real("circo"))


def test_size_of_a_whole_cirr_file(tmp_path):
    """Written by us, the official lists have the size that the facts give for compact files."""
    benchmark = load_cirr(real("cirr"), split="test1", images="unchecked")
    lists = read_submission(real("cirr") / "demo_files" / "test1_pred_ranks_recall.json.gz", benchmark)
    report = write_cirr_submission(lists, tmp_path / "ours.json", benchmark=benchmark)
    assert report.num_bytes == (tmp_path / "ours.json").stat().st_size == 3_980_862
    indented = tmp_path / "indented.json"
    indented.write_text(json.dumps(load_json(tmp_path / "ours.json"), indent=4))
    with pytest.raises(ValueError, match=r"the file has \d+ bytes, the server takes 5000000; write it"):
        validate_cirr_submission(indented, real("cirr"))


# ---------------------------------------- our own
@pytest.fixture
def cirr(trees):
    return load_cirr(trees / "cirr", split="test1")


@pytest.fixture
def circo(trees):
    return load_circo(trees / "circo", split="test")


def test_search_makes_sound_submissions(trees, cirr, circo, tmp_path):
    for metric, length, subset in (("recall", 50, False), ("recall_subset", 3, True)):
        found = fakely(cirr).search(length, subset=subset)
        path = tmp_path / "new folder" / f"{metric}.json"
        report = write_cirr_submission(found, path, benchmark=cirr, metric=metric)
        assert validate_cirr_submission(path, trees / "cirr", metric=metric) == report
        content = load_json(path)
        assert list(content) == ["version", "metric", *(query.id for query in cirr.queries)]
        assert content["version"] == "rc2" and content["metric"] == metric
        assert [content[query.id] for query in cirr.queries] == found
        assert b" " not in path.read_bytes()
        assert read_submission(path, cirr) == found

    found = fakely(circo).search(50)
    path = tmp_path / "circo.json"
    report = write_circo_submission(found, path, benchmark=circo)
    assert report == validate_circo_submission(path, trees / "circo") and report.notes == []
    content = load_json(path)
    assert list(content) == [str(number) for number in range(len(circo.queries))]
    assert all(type(item) is int for ids in content.values() for item in ids)
    assert read_submission(path, circo) == found
    assert not list(tmp_path.rglob("*.tmp"))


def test_lists_by_query(cirr, circo, tmp_path):
    found = fakely(cirr).search(50)
    by_query = {query.id: ids for query, ids in zip(cirr.queries, found, strict=True)}
    write_cirr_submission(found, tmp_path / "rows.json", benchmark=cirr)
    write_cirr_submission(by_query, tmp_path / "keys.json", benchmark=cirr)
    assert (tmp_path / "rows.json").read_bytes() == (tmp_path / "keys.json").read_bytes()
    with pytest.raises(ValueError, match="a list for each of the 30 queries of `cirr`, got 29"):
        write_cirr_submission(found[1:], tmp_path / "short.json", benchmark=cirr)
    by_query.pop(cirr.queries[4].id)
    with pytest.raises(ValueError, match=f"1 of 30 queries are not answered .first {cirr.queries[4].id}"):
        write_cirr_submission(by_query, tmp_path / "short.json", benchmark=cirr)
    with pytest.raises(ValueError, match="`metric` must be 'mrr', got 'mrr'|`metric` must be"):
        write_cirr_submission(found, tmp_path / "short.json", benchmark=cirr, metric="mrr")
    assert not (tmp_path / "short.json").exists()


def test_lists_of_a_split_with_targets_are_scored(trees, tmp_path):
    benchmark = load_circo(trees / "circo")
    evaluator = fakely(benchmark)
    write_circo_submission(evaluator.search(50), tmp_path / "val.json", benchmark=benchmark)
    validate_circo_submission(tmp_path / "val.json", trees / "circo", split="val")
    result = score_rankings(benchmark, read_submission(tmp_path / "val.json", benchmark))
    assert result.metrics == pytest.approx(evaluator.evaluate().metrics)
    with pytest.raises(ValueError, match="is no sound submission, 1 problems: 1 of 30 queries are not answered"):
        content = load_json(tmp_path / "val.json")
        content.pop("7")
        save_json(tmp_path / "part.json", content)
        read_submission(tmp_path / "part.json", benchmark)


# ---------------------------------------- damage
def first_list(content: dict) -> list:
    return content["12060"] if "12060" in content else content["0"]


def damages_of_cirr(benchmark) -> dict:
    query, other = benchmark.queries[0], benchmark.queries[5]
    outside = next(name for name in benchmark.gallery if name not in (*query.candidates, query.reference))
    return {
        "version": (lambda c: c.update(version="rc1"), "`version` must be 'rc2', got 'rc1'"),
        "no version": (lambda c: c.pop("version"), "`version` must be 'rc2', got None"),
        "metric": (lambda c: c.update(metric="Recall"), "`metric` must be 'recall' or 'recall_subset', got 'Recall'"),
        "no metric": (lambda c: c.pop("metric"), "`metric` must be .*, got None"),
        "metrics": (lambda c: c.update(metric=["recall"]), r"`metric` must be .*, got \['recall'\]"),
        "missing query": (lambda c: c.pop(other.id), f"1 of 30 queries are not answered .first {other.id}"),
        "unknown query": (
            lambda c: c.update({"999": first_list(c)}),
            "1 keys are no queries of this split",
        ),
        "integer id": (lambda c: first_list(c).__setitem__(0, 3), "the list of 12060 must be a list of str"),
        "no list": (lambda c: c.update({"12060": "test1-0-0-img0"}), "the list of 12060 must be a list of str"),
        "short": (lambda c: first_list(c).pop(), "the list of 12060 has .* ids instead of"),
        "long": (lambda c: first_list(c).append("x"), "the list of 12060 has .* ids instead of"),
        "repeated": (lambda c: first_list(c).__setitem__(1, first_list(c)[0]), "holds '.*' more than once"),
        "unknown id": (lambda c: first_list(c).__setitem__(0, "dev-0-0-img0"), "'dev-0-0-img0', which is not in the"),
        "file name": (lambda c: first_list(c).__setitem__(0, first_list(c)[0] + ".png"), "png', which is not in the"),
        "reference": (
            lambda c: first_list(c).__setitem__(0, query.reference),
            "the list of 12060 holds its ref",
        ),
        "outside": (
            lambda c: first_list(c).__setitem__(0, outside),
            f"'{outside}', which is not in the query's",
        ),
    }


KINDS_OF_CIRR = [
    *("version", "no version", "metric", "no metric", "metrics", "missing query", "unknown query", "integer id"),
    *("no list", "short", "long", "repeated", "unknown id", "file name", "reference", "outside"),
]


# Every picture of the gallery may be in a list of the whole ranking: there is no "outside" but unknown names.
@pytest.mark.parametrize(
    ("kind", "metric"), [(k, "recall_subset") for k in KINDS_OF_CIRR] + [(k, "recall") for k in KINDS_OF_CIRR[:-1]]
)
def test_damaged_cirr(kind, metric, cirr, trees, tmp_path):
    subset = metric == "recall_subset"
    found = fakely(cirr).search(3 if subset else 50, subset=subset)
    write_cirr_submission(found, tmp_path / "sound.json", benchmark=cirr, metric=metric)
    content = load_json(tmp_path / "sound.json")
    damages = damages_of_cirr(cirr)
    assert list(damages) == KINDS_OF_CIRR
    change, message = damages[kind]
    damaged = copy.deepcopy(content)
    change(damaged)
    assert damaged != content
    save_json(tmp_path / "damaged.json", damaged)
    validate_cirr_submission(tmp_path / "sound.json", trees / "cirr")
    with pytest.raises(ValueError, match=message) as caught:
        validate_cirr_submission(tmp_path / "damaged.json", trees / "cirr")
    assert "damaged.json is no sound submission" in str(caught.value)


DAMAGES_OF_CIRCO = {
    "missing query": (lambda c: c.pop("29"), "1 of 30 queries are not answered .first 29"),
    "cut at the end": (lambda c: [c.pop(str(n)) for n in range(10, 30)], "20 of 30 queries are not answered"),
    "unknown query": (lambda c: c.update({"030": first_list(c)}), "1 keys are no queries of this split .first '030'"),
    "short": (lambda c: first_list(c).pop(), "the list of 0 has 49 ids instead of 50"),
    "long": (lambda c: first_list(c).append(1), "the list of 0 has 51 ids instead of 50"),
    "no list": (lambda c: c.update({"0": None}), "the list of 0 has 0 ids instead of 50"),
    "repeated": (lambda c: first_list(c).__setitem__(1, first_list(c)[0]), "the list of 0 holds .* more than once"),
    "repeated as text": (lambda c: first_list(c).__setitem__(1, f"00{first_list(c)[0]}"), "more than once"),
    "unknown id": (lambda c: first_list(c).__setitem__(0, 999_999), "999999, which is not in the gallery"),
    "a word": (lambda c: first_list(c).__setitem__(0, "a1"), "the list of 0 must be a list of int"),
    "a fraction": (lambda c: first_list(c).__setitem__(0, 1.5), "the list of 0 must be a list of int"),
    "a truth": (lambda c: first_list(c).__setitem__(0, True), "the list of 0 must be a list of int"),
}


@pytest.mark.parametrize("kind", DAMAGES_OF_CIRCO)
def test_damaged_circo(kind, circo, trees, tmp_path):
    change, message = DAMAGES_OF_CIRCO[kind]
    write_circo_submission(fakely(circo).search(50), tmp_path / "sound.json", benchmark=circo)
    content = load_json(tmp_path / "sound.json")
    change(content)
    save_json(tmp_path / "damaged.json", content)
    with pytest.raises(ValueError, match=message):
        validate_circo_submission(tmp_path / "damaged.json", trees / "circo")
    if kind != "unknown query":
        with pytest.raises(ValueError, match=message.replace("damaged.json", "rankings")):
            write_circo_submission(
                {key: ids or [] for key, ids in content.items()}, tmp_path / "again.json", benchmark=circo
            )
        assert not (tmp_path / "again.json").exists()


def test_texts_are_read_as_numbers_and_the_reference_may_be_there(circo, trees, tmp_path):
    """What SEARLE, LinCIR and RTD write passes at the server."""
    found = fakely(circo).search(50)
    content = {query.id: [f"{int(i):012d}" for i in ids] for query, ids in zip(circo.queries, found, strict=True)}
    query = circo.queries[0]
    if int(query.reference) not in map(int, content["0"]):
        content["0"][0] = query.reference
    save_json(tmp_path / "texts.json", content)
    report = validate_circo_submission(tmp_path / "texts.json", trees / "circo")
    assert report.notes == ["1500 ids are strings; the server reads them, but its examples hold integers"]


def test_files_that_are_none(circo, trees, tmp_path):
    with pytest.raises(FileNotFoundError, match="no submission at .*gone.json"):
        validate_circo_submission(tmp_path / "gone.json", trees / "circo")
    save_json(tmp_path / "list.json", [1, 2])
    with pytest.raises(ValueError, match="must hold an object of lists by query"):
        validate_circo_submission(tmp_path / "list.json", trees / "circo")
    write_circo_submission(fakely(circo).search(50), tmp_path / "sound.json", benchmark=circo)
    data = (tmp_path / "sound.json").read_bytes()
    (tmp_path / "cut.json").write_bytes(data[:-9])
    with pytest.raises(ValueError, match="cut.json .* cannot be read"):
        validate_circo_submission(tmp_path / "cut.json", trees / "circo")
    # A query that is answered twice: JSON readers keep the last without a word.
    (tmp_path / "twice.json").write_bytes(data[:-1] + b',"3":[1]}')
    with pytest.raises(ValueError, match="1 keys stand twice in it .first '3'"):
        validate_circo_submission(tmp_path / "twice.json", trees / "circo")
    (tmp_path / "sound.json.gz").write_bytes(gzip.compress(data))
    assert validate_circo_submission(tmp_path / "sound.json.gz", trees / "circo").num_bytes == len(data)
    with pytest.raises(FileNotFoundError, match="annotations of the split 'test' of `circo` not found"):
        validate_circo_submission(tmp_path / "sound.json", trees / "cirr")


def test_a_file_that_is_too_large(cirr, trees, tmp_path, monkeypatch):
    monkeypatch.setattr("rtd_hf.submissions.CIRR_MAX_BYTES", 1000)
    found = fakely(cirr).search(50)
    with pytest.raises(ValueError, match=r"rankings is no sound submission.*bytes, the server takes 1000"):
        write_cirr_submission(found, tmp_path / "large.json", benchmark=cirr)
    assert not (tmp_path / "large.json").exists()
