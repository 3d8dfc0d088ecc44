"""Metrics against hand-made examples and the numbers of CIRCO's official script, intervals against the normal law."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from test_ranking import LargestTensor, random_task

from rtd_hf.hf_metrics import MeanAveragePrecisionAtK, RecallAtK, RecallSubsetAtK
from rtd_hf.metric_spaces import CLASSES, push_metric_space, write_metric_space
from rtd_hf.metrics import (
    NOT_RANKED,
    Ranks,
    average_precision_at_k,
    paired_bootstrap,
    rank_targets,
    ranks_of_lists,
    recall_at_k,
    top_k,
)


CIRCO = Path(__file__).resolve().parents[2] / "shared" / "annotations" / "circo"


# ------------------------------------------------------------------------------------------------------------- metrics


def test_hand_examples_of_average_precision():
    # 1-based ranks 1 and 4 found of 3 targets; rank 2 of one; ranks 1 to 5 found of 6 targets.
    ranks = torch.tensor([[3, 0, 77, -1, -1, -1], [1, -1, -1, -1, -1, -1], [0, 1, 2, 3, 4, 99]])
    torch.testing.assert_close(average_precision_at_k(ranks, 5), torch.tensor([0.5, 0.5, 1.0]))
    torch.testing.assert_close(average_precision_at_k(ranks, 1), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(average_precision_at_k(ranks, 100)[0].item(), (1 + 2 / 4 + 3 / 78) / 3)
    assert average_precision_at_k(Ranks(ranks, torch.zeros(3)), 5).equal(average_precision_at_k(ranks, 5))


@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_average_precision_is_the_official_sum(k):
    """Precision at each of the first K places that holds a target, as CIRCO's script computes it."""
    queries, gallery, targets, _ = random_task(num_items=60, max_targets=12)
    ranks = rank_targets(queries, gallery, targets).ranks
    expected = []
    for row in ranks.tolist():
        places = {rank for rank in row if rank >= 0}
        hits, total = 0, 0.0
        for place in range(k):
            hits += place in places
            total += hits / (place + 1) if place in places else 0
        expected.append(total / min(len(places), k))
    torch.testing.assert_close(average_precision_at_k(ranks, k), torch.tensor(expected))


def test_recall_counts_any_target():
    ranks = torch.tensor([[5, 0], [1, -1], [4, 9], [-1, 5]])
    assert recall_at_k(ranks, 1).tolist() == [1, 0, 0, 0]
    assert recall_at_k(ranks, 5).tolist() == [1, 1, 1, 0]
    assert recall_at_k(ranks[:3, :1], 5).tolist() == [0, 1, 1]
    assert recall_at_k(Ranks(ranks.float() + 0.5, torch.zeros(4)), 1).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("metric", [recall_at_k, average_precision_at_k])
def test_a_query_without_ranks_is_refused(metric):
    with pytest.raises(ValueError, match=r"`ranks` .* got rows \[1\] without"):
        metric(torch.tensor([[0, -1], [-1, -1]]), 5)
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        metric(torch.tensor([0, 1]), 5)
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1, got 0"):
        metric(torch.tensor([[0]]), 0)


def test_ranks_of_lists():
    found = ranks_of_lists([["b", "a", "c"], []], [["c", "x", "b"], ["a"]])
    assert found.tolist() == [[2, NOT_RANKED, 0], [NOT_RANKED, -1, -1]]
    assert recall_at_k(found, 10**9).tolist() == [1, 0]
    assert average_precision_at_k(found, 10).tolist() == pytest.approx([(1 + 2 / 3) / 3, 0])
    with pytest.raises(ValueError, match="`predictions` must not list an id twice, but does for query 1"):
        ranks_of_lists([[1], [2, 2]], [[1], [1]])
    with pytest.raises(ValueError, match="`references` must not list an id twice, but does for query 0"):
        ranks_of_lists([[1]], [[3, 3]])
    with pytest.raises(ValueError, match="at least one target per query, but has none for query 1"):
        ranks_of_lists([[1], [1]], [[3], []])
    with pytest.raises(ValueError, match="one list per query, at least one, got 2 and 1"):
        ranks_of_lists([[1], [1]], [[3]])


@pytest.fixture(scope="module")
def circo():
    annotations = CIRCO / "annotations" / "val.json"
    submission = CIRCO / "submission_examples" / "submission_val.json"
    if not (annotations.is_file() and submission.is_file()):
        pytest.skip("CIRCO's annotations are not beside the repository")
    records = json.loads(annotations.read_text())
    lists = json.loads(submission.read_text())
    return records, [lists[str(record["id"])] for record in records]


def test_circo_demo_submission_scores_as_published(circo):
    records, lists = circo
    ranks = ranks_of_lists(lists, [record["gt_img_ids"] for record in records])
    target = ranks_of_lists(lists, [[record["target_img_id"]] for record in records])
    mean_ap = [round(100 * average_precision_at_k(ranks, k).mean().item(), 2) for k in (5, 10, 25, 50)]
    recall = [round(100 * recall_at_k(target, k).mean().item(), 2) for k in (5, 10, 25, 50)]
    assert len(records) == 220 and mean_ap == [0.49, 0.52, 0.54, 0.60] and recall == [0.91, 0.91, 1.36, 3.64]
    by_aspect = {
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
    precision = 100 * average_precision_at_k(ranks, 10)
    for aspect, expected in by_aspect.items():
        rows = [aspect in record["semantic_aspects"] for record in records]
        assert round(precision[torch.tensor(rows)].mean().item(), 2) == expected


# ----------------------------------------------------------------------------------------------------- evaluate.Metric


def test_hub_style_metrics_agree_with_the_functions(tmp_path):
    queries, gallery, targets, _ = random_task(num_items=60)
    ranks = rank_targets(queries, gallery, targets)
    predictions = top_k(queries, gallery, 50).indices.tolist()
    references = [[item for item in row if item >= 0] for row in targets.tolist()]
    recall = RecallAtK(cache_dir=str(tmp_path)).compute(predictions=predictions, references=references, k=[1, 10])
    assert recall == pytest.approx({f"recall@{k}": recall_at_k(ranks, k).mean().item() for k in (1, 10)})
    metric = MeanAveragePrecisionAtK(cache_dir=str(tmp_path))
    # In two batches, and with names in place of numbers.
    names = [[f"image-{item}" for item in row] for row in predictions]
    wanted = [[f"image-{item}" for item in row] for row in references]
    metric.add_batch(predictions=names[:10], references=wanted[:10])
    metric.add_batch(predictions=names[10:], references=wanted[10:])
    expected = {f"map@{k}": average_precision_at_k(ranks, k).mean().item() for k in (5, 10, 25, 50)}
    assert metric.compute() == pytest.approx(expected) and expected["map@50"] > 0.01


def test_hub_style_metrics_by_hand(tmp_path):
    recall, mean_ap = RecallAtK(cache_dir=str(tmp_path)), MeanAveragePrecisionAtK(cache_dir=str(tmp_path))
    lists = {"predictions": [["b", "a"], ["c", "d"]], "references": [["a"], ["c"]]}
    assert recall.compute(**lists, k=[1, 2]) == {"recall@1": 0.5, "recall@2": 1.0}
    assert mean_ap.compute(predictions=[[4, 7, 8, 5]], references=[[4, 5, 6]], k=5) == {"map@5": 0.5}
    assert mean_ap.compute(predictions=[[]], references=[["a"]], k=5) == {"map@5": 0.0}
    assert "CIRCO" in mean_ap.citation or "baldrati" in mean_ap.citation
    assert "map@k" in mean_ap.inputs_description and recall.name == "recall_at_k"
    with pytest.raises(ValueError, match="`predictions` must not list an id twice"):
        recall.compute(predictions=[["a", "a"]], references=[["a"]])


def test_groups_aspects_and_what_is_excluded(tmp_path):
    recall = RecallAtK(cache_dir=str(tmp_path))
    lists = {"predictions": [["r", "a"], ["a"], ["b", "a"], ["a"]], "references": [["a"]] * 4}
    # Hits at 1: no, yes, no, yes; without "r", "-", "b", "a": yes, yes, yes, no.
    groups = ["x", "x", "x", "y"]
    assert recall.compute(**lists, k=1, groups=groups) == pytest.approx(
        {"recall@1": (1 / 3 + 1) / 2, "x_recall@1": 1 / 3, "y_recall@1": 1.0}
    )
    found = recall.compute(**lists, k=1, excluded=["r", "-", "b", "a"], aspects=[["p", "q"], [], ["p"], ["q", "q"]])
    assert found == {"recall@1": 0.75, "p_recall@1": 1.0, "q_recall@1": 0.5}
    with pytest.raises(ValueError, match="`groups` must hold one entry per query, got 1 for 4"):
        recall.compute(**lists, k=1, groups=["x"])


def test_recall_of_the_subset_is_that_of_ranking_candidates(tmp_path):
    queries, gallery, targets, _ = random_task(num_queries=12, num_items=60, max_targets=1)
    others = torch.stack([torch.randperm(60)[:8] for _ in queries])
    others[others == targets] = -1
    candidates = torch.cat([others, targets], dim=1)
    ranks = rank_targets(queries, gallery, targets, candidates=candidates)
    predictions = top_k(queries, gallery, 60).indices.tolist()
    allowed = [[item for item in row if item >= 0] for row in candidates.tolist()]
    metric = RecallSubsetAtK(cache_dir=str(tmp_path))
    found = metric.compute(predictions=predictions, references=targets.tolist(), candidates=allowed)
    expected = {f"recall_subset@{k}": recall_at_k(ranks, k).mean().item() for k in (1, 2, 3)}
    assert found == pytest.approx(expected) and 0 < found["recall_subset@3"] < 1
    with pytest.raises(ValueError, match="`candidates` must hold the ids of each query's group"):
        metric.compute(predictions=predictions, references=targets.tolist())


def test_metric_spaces_load_from_their_folders(tmp_path, monkeypatch):
    import evaluate

    lists = {"predictions": [["b", "a"], ["c", "d"]], "references": [["a"], ["c"]]}
    expected = {
        "recall_at_k": ({}, {"recall@1": 0.5}),
        "recall_subset_at_k": ({"candidates": [["a"], ["d", "c"]]}, {"recall_subset@1": 1.0}),
        "mean_average_precision_at_k": ({}, {"map@1": 0.5}),
    }
    assert set(expected) == set(CLASSES)
    for name, (more, figures) in expected.items():
        folder = write_metric_space(name, tmp_path / name, namespace="someone")
        assert write_metric_space(name, tmp_path / name) == folder  # a second time just works
        metric = evaluate.load(str(folder), cache_dir=str(tmp_path / "cache"))
        assert metric.compute(**lists, **more, k=1) == figures
        readme = (folder / "README.md").read_text()
        front = yaml.safe_load(readme.split("---")[1])
        assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and "metric" in front["tags"]
        assert (folder / "requirements.txt").read_text() == "evaluate\nrtd_hf\n"
        compile((folder / "app.py").read_text(), "app.py", "exec")
        example = readme.split("evaluate.load(")[1].split("```")[0].partition("\n")[2]
        assert eval(example, {"metric": metric})  # what the README shows does run
    pushed = []
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, *args, **options: pushed.append((args, options))
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: pushed.append(options))
    push_metric_space(tmp_path / "recall_at_k", "someone")
    (name, options), upload = pushed
    assert name == ("someone/recall_at_k",) and options["private"] and options["space_sdk"] == "gradio"
    assert upload["repo_type"] == "space" and upload["repo_id"] == "someone/recall_at_k"
    with pytest.raises(ValueError, match="`name` must be one of recall_at_k"):
        write_metric_space("recall", tmp_path / "recall")
    with pytest.raises(ValueError, match="`folder` must end in 'recall_at_k'"):
        write_metric_space("recall_at_k", tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="holds no metric"):
        push_metric_space(tmp_path / "none", "someone")


# ----------------------------------------------------------------------------------------------------------- bootstrap


def test_bootstrap_interval_is_the_normal_one_for_many_queries():
    before = torch.rand(2000)
    after = before + 0.05 + 0.2 * torch.randn(2000)
    found = paired_bootstrap(before, after, num_samples=4000)
    gains = (after - before).double()
    error = gains.std(correction=0).item() / math.sqrt(2000)
    assert found.gain == pytest.approx(gains.mean().item())
    # The ends of 4,000 samples are known to about 4 % of the interval's half width.
    assert found.low == pytest.approx(found.gain - 1.96 * error, abs=0.12 * error)
    assert found.high == pytest.approx(found.gain + 1.96 * error, abs=0.12 * error)
    narrow = paired_bootstrap(before, after, num_samples=4000, confidence=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_bootstrap_is_paired():
    before = torch.rand(500)
    found = paired_bootstrap(before, before + 0.25, num_samples=50)
    assert tuple(found) == pytest.approx((0.25, 0.25, 0.25), abs=1e-6)


def test_bootstrap_repeats_itself_and_only_itself():
    before, after = torch.rand(300), torch.rand(300)
    first = paired_bootstrap(before, after, num_samples=200)
    torch.rand(7)
    assert paired_bootstrap(before, after, num_samples=200) == first
    assert paired_bootstrap(before, after, num_samples=200, seed=1) != first


def test_bootstrap_works_in_pieces():
    before = torch.zeros(3 * 2**20)
    after = before.clone()
    after[::2] = 1
    with LargestTensor() as largest:
        found = paired_bootstrap(before, after, num_samples=4)
    assert largest.size <= 2**22 and found.low < found.gain < found.high


def test_bootstrap_refuses_bad_inputs():
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(4,\)"):
        paired_bootstrap(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="must be finite, got 1 rows"):
        paired_bootstrap(torch.ones(3), torch.tensor([1.0, math.nan, 1.0]))
    with pytest.raises(ValueError, match="`confidence` must lie between 0 and 1"):
        paired_bootstrap(torch.ones(3), torch.ones(3), confidence=95)
