import dataclasses
import logging
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from world_models import random_retriever

from rtd_hf.benchmarks import BENCHMARKS, CIRBenchmark, CIRQuery, CIRResult
from rtd_hf.evaluator import CIREvaluator
from rtd_hf.features import GalleryFeatures
from rtd_hf.metrics import paired_bootstrap
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.texts import join_captions


NAMES = ["shapes", "shapes_many", "shapes_categories"]
COMPOSERS = ["projection", "image", "text", "sum", "caption"]


# ---------------------------------------- the protocol once more, by sorting in float64
def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def ranking(benchmark: CIRBenchmark, query: CIRQuery, vector: np.ndarray, images: dict) -> list[str]:
    """All images that a query is ranked against, best first."""
    pool = [i for i in benchmark.gallery_of(query.group) if not (benchmark.exclude_reference and i == query.reference)]
    return sorted(pool, key=lambda image_id: -float(images[image_id] @ vector))


def expected_values(benchmark: CIRBenchmark, vectors: np.ndarray, images: dict) -> dict[str, list[float]]:
    """Every metric of every query in percent, neither grouped nor weighted."""
    values: dict[str, list[float]] = {metric: [] for metric in benchmark.metrics}
    for query, vector in zip(benchmark.queries, vectors, strict=True):
        order = ranking(benchmark, query, vector, images)
        for metric in benchmark.metrics:
            name, k = metric.split("@")
            if name == "recall":
                value = query.targets[0] in order[: int(k)]
            elif name == "recall_subset":
                value = query.targets[0] in [i for i in order if i in query.candidates][: int(k)]
            else:
                hits = [image_id in query.targets for image_id in order[: int(k)]]
                precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
                value = sum(precisions) / min(len(query.targets), int(k))
            values[metric].append(100.0 * value)
    return values


def expected_metrics(benchmark: CIRBenchmark, values: dict[str, list[float]]) -> dict[str, float]:
    """The metrics: a plain mean, or per group and then the mean over the groups."""
    metrics = {}
    groups = list(dict.fromkeys(query.group for query in benchmark.queries))
    for metric, per_query in values.items():
        means = []
        for group in groups:
            means.append(np.mean([v for v, q in zip(per_query, benchmark.queries, strict=True) if q.group == group]))
            if group:
                metrics[f"{benchmark.name}_{group}_{metric}"] = means[-1]
        metrics[f"{benchmark.name}_{metric}"] = np.mean(means)
    return metrics


# ---------------------------------------- doubles
class Retriever:
    """Stands in for [`CIREncoder`]: features out of names and texts, and every call is counted."""

    def __init__(self, dim: int = 12, overrides: dict[str, torch.Tensor] | None = None):
        self.dim, self.overrides, self.calls = dim, overrides or {}, []
        self.projection = ImageToWordProjection.build("lincir", 4)

    def feature(self, name: str) -> torch.Tensor:
        if name in self.overrides:
            return self.overrides[name]
        return torch.randn(self.dim, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))

    def embed_gallery(self, ids, load, *, name, folder, strict):
        self.calls.append("images")
        return GalleryFeatures(torch.stack([3 * self.feature(load(image_id)) for image_id in ids]), {})

    def encode_texts(self, texts, *, text_encoder=None):
        self.calls.append("texts")
        prefix = "" if text_encoder is None else text_encoder
        lists = [(text,) if isinstance(text, str) else join_captions(text, "both") for text in texts]
        means = [torch.stack([F.normalize(self.feature(prefix + t), dim=0) for t in entry]).mean(0) for entry in lists]
        return F.normalize(torch.stack(means), dim=-1)

    def compose(self, image_embeds, texts, *, benchmark):
        self.calls.append("compose")
        return image_embeds, texts

    def encode_prompts(self, prompts, *, text_encoder=None):
        self.calls.append("queries")
        image_embeds, texts = prompts
        return F.normalize(image_embeds / 3 + 2 * self.encode_texts(texts, text_encoder=text_encoder), dim=-1)


def named(benchmark: CIRBenchmark) -> CIRBenchmark:
    """The same benchmark with the names of its images as images."""
    return dataclasses.replace(benchmark, load_image=str)


def toy(**options) -> CIRBenchmark:
    queries = [CIRQuery("q", "r", ("text",), ("t",))]
    return CIRBenchmark(
        **{
            "name": "toy",
            "queries": queries,
            "gallery": ("r", "t", "u", "v"),
            "load_image": str,
            "metrics": ("recall@1", "recall@2", "map@2"),
            **options,
        }
    )


# ---------------------------------------- figures
@pytest.mark.parametrize("composer", COMPOSERS)
@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_sorting(name, composer):
    benchmark, retriever = named(BENCHMARKS[name](num_queries=150)), Retriever()
    evaluator = CIREvaluator(benchmark, retriever)
    images = {i: unit(retriever.feature(i).double().numpy()) for i in benchmark.gallery}
    references = np.stack([images[query.reference] for query in benchmark.queries])
    raw = np.stack([retriever.feature(query.reference).double().numpy() for query in benchmark.queries])
    texts = retriever.encode_texts([query.texts for query in benchmark.queries]).double().numpy()
    captions = retriever.encode_texts([query.target_caption for query in benchmark.queries]).double().numpy()
    vectors = {
        "projection": unit(raw + 2 * texts),
        "image": references,
        "text": texts,
        "sum": unit(references + texts),
        "caption": captions,
    }[composer]
    values = expected_values(benchmark, vectors, images)
    result = evaluator.evaluate(composer=composer)
    assert result.metrics == pytest.approx(expected_metrics(benchmark, values), abs=1e-3)
    assert result.num_queries == 150 and result.num_tied == 0
    for metric in benchmark.metrics:
        own = values[metric]
        if not benchmark.galleries:
            assert result.per_query[f"{name}_{metric}"].tolist() == pytest.approx(own, abs=1e-3)
        for group in benchmark.galleries:
            of_group = [v for v, query in zip(own, benchmark.queries, strict=True) if query.group == group]
            assert result.per_query[f"{name}_{group}_{metric}"].tolist() == pytest.approx(of_group, abs=1e-3)
    assert any(0 < value < 100 for value in result.metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_real_models_are_those_of_sorting(name):
    benchmark, retriever = BENCHMARKS[name](num_queries=24), random_retriever()
    embeds = retriever.embed_images([benchmark.load_image(image_id) for image_id in benchmark.gallery])
    images = dict(zip(benchmark.gallery, unit(embeds.double().numpy()), strict=True))
    rows = [benchmark.gallery.index(query.reference) for query in benchmark.queries]
    queries = retriever.encode_queries(embeds[rows], [query.texts for query in benchmark.queries])
    evaluator = CIREvaluator(benchmark, retriever)
    expected = expected_metrics(benchmark, expected_values(benchmark, queries.double().numpy(), images))
    assert evaluator() == pytest.approx(expected, abs=1e-3)
    assert len({*evaluator().values()}) > 2
    other = random_retriever().text_encoder
    with torch.no_grad():
        other.text_projection.weight.neg_()
    expected = expected_metrics(benchmark, expected_values(benchmark, -queries.double().numpy(), images))
    assert evaluator(other) == pytest.approx(expected, abs=1e-3) != evaluator()


def test_the_first_target_alone_counts_for_the_recall():
    first, second, query = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.1]), torch.tensor([1.0, 0.0])
    overrides = {"r": -query, "t": first, "u": second, "v": -second, "text": query}
    evaluator = CIREvaluator(
        toy(queries=[CIRQuery("q", "r", ("text",), ("t", "u"))], exclude_reference=True), Retriever(2, overrides)
    )
    # Ranked u, t, v: recall asks for t, mAP for both.
    assert evaluator.evaluate(composer="text").metrics == {"toy_recall@1": 0, "toy_recall@2": 100, "toy_map@2": 100}


def test_the_reference_is_ranked_only_where_the_protocol_says_so():
    query, near = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.2])
    overrides = {"r": query, "t": near, "u": -query, "v": -near, "text": query}
    for exclude, recall in ((False, 0), (True, 100)):
        evaluator = CIREvaluator(toy(exclude_reference=exclude), Retriever(2, overrides))
        assert evaluator.evaluate(composer="text").metrics["toy_recall@1"] == recall
        assert evaluator.evaluate(composer="text").metrics["toy_recall@2"] == 100


def test_groups_of_different_sizes_count_the_same_and_queries_keep_their_order():
    up, down = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    overrides = {"t": up, "u": down, "r": torch.tensor([0.0, 1.0]), "v": torch.tensor([0.1, -1.0])}
    # Three queries of one group, one of the other between them; hit, hit, miss (the other group), miss.
    plan = [("x", "hit"), ("x", "hit"), ("y", "miss"), ("x", "miss")]
    overrides |= {"hit": up, "miss": down}
    queries = [CIRQuery(str(i), "r", (text,), ("t",), group=group) for i, (group, text) in enumerate(plan)]
    for galleries in ({}, {"x": ("t", "u", "v"), "y": ("u", "t")}):
        evaluator = CIREvaluator(
            toy(queries=queries, metrics=("recall@1",), galleries=galleries), Retriever(2, overrides)
        )
        result = evaluator.evaluate(composer="text")
        assert result.metrics == pytest.approx(
            {"toy_x_recall@1": 200 / 3, "toy_y_recall@1": 0, "toy_recall@1": 100 / 3}, abs=1e-4
        )
        assert (result.per_query["toy_recall@1"] > 0).tolist() == [True, True, False, False]
        assert result.per_query["toy_x_recall@1"].tolist() == [100, 100, 0]


def test_metrics_are_the_means_of_the_values_per_query():
    for name in NAMES:
        result = CIREvaluator(named(BENCHMARKS[name](num_queries=30)), Retriever()).evaluate()
        assert result.metrics.keys() == result.per_query.keys()
        for metric, values in result.per_query.items():
            assert result.metrics[metric] == pytest.approx(values.mean().item())
            assert metric.startswith(f"{name}_")
            assert len(values) == (10 if metric.split("_recall")[0] != name and name == "shapes_categories" else 30)


# ---------------------------------------- behaviour
def test_images_are_encoded_once_and_texts_every_time():
    retriever = Retriever()
    evaluator = CIREvaluator(named(BENCHMARKS["shapes"](num_queries=20)), retriever)
    assert retriever.calls == []
    for composer in COMPOSERS:
        evaluator.evaluate(composer=composer)
    before = evaluator()
    assert retriever.calls.count("images") == 1 and retriever.calls.count("queries") == 2
    assert evaluator("another encoder: ") != before and evaluator() == before
    evaluator.search(3)
    assert retriever.calls.count("images") == 1


def test_ties_are_counted_reported_and_settled_as_asked(caplog):
    query, far = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.3])
    overrides = {"r": far, "t": query, "u": query, "v": far, "text": query}
    figures = {}
    for ties in ("pessimistic", "optimistic", "mean"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="rtd_hf.evaluator"):
            result = CIREvaluator(toy(), Retriever(2, overrides), ties=ties).evaluate(composer="text")
        assert result.num_tied == 1
        (record,) = caplog.records
        assert record.levelno == logging.WARNING and f"ties='{ties}'" in record.message
        assert "1 of 1 queries of `toy`" in record.message
        figures[ties] = result.metrics["toy_recall@1"]
    assert figures == {"pessimistic": 0, "optimistic": 100, "mean": 100}  # the expected rank 0.5 is below 1
    caplog.clear()
    CIREvaluator(toy(), Retriever()).evaluate()
    assert not caplog.records


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    broken = torch.tensor([value, *[0.0] * 11])
    with pytest.raises(ValueError, match="`gallery` must be finite, got NaN or infinity in 1 of 4 rows"):
        CIREvaluator(toy(), Retriever(overrides={"u": broken})).evaluate()
    for composer in ("projection", "text"):
        with pytest.raises(ValueError, match="`queries` must be finite"):
            CIREvaluator(toy(), Retriever(overrides={"text": broken})).evaluate(composer=composer)


def test_a_model_in_training_stays_in_training():
    retriever = random_retriever()
    encoder = random_retriever().text_encoder.train()
    encoder.text_model.encoder.layers[1].eval()
    modes = [module.training for module in encoder.modules()]
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    evaluator = CIREvaluator(BENCHMARKS["shapes"](num_queries=5), retriever)
    for composer in COMPOSERS:
        evaluator.evaluate(encoder, composer=composer)
    evaluator.search(2, text_encoder=encoder)
    assert [module.training for module in encoder.modules()] == modes and any(modes)
    assert all(torch.equal(weights[name], tensor) for name, tensor in encoder.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in encoder.parameters())


def test_wrong_options():
    evaluator = CIREvaluator(toy(), Retriever())
    with pytest.raises(ValueError, match="`composer` must be projection, image, .* or caption, .* got 'magic'"):
        evaluator.evaluate(composer="magic")
    with pytest.raises(ValueError, match="`toy` has no target captions"):
        evaluator.evaluate(composer="caption")
    with pytest.raises(ValueError, match="`ties` must be one of .*, got 'random'"):
        CIREvaluator(toy(), Retriever(), ties="random")


# ---------------------------------------- search
@pytest.mark.parametrize("name", NAMES)
def test_search_is_the_head_of_the_ranking(name):
    benchmark, retriever = named(BENCHMARKS[name](num_queries=30)), Retriever()
    evaluator = CIREvaluator(benchmark, retriever)
    images = {i: unit(retriever.feature(i).double().numpy()) for i in benchmark.gallery}
    raw = np.stack([retriever.feature(query.reference).double().numpy() for query in benchmark.queries])
    texts = retriever.encode_texts([query.texts for query in benchmark.queries]).double().numpy()
    expected = [
        ranking(benchmark, query, vector, images)[:7]
        for query, vector in zip(benchmark.queries, unit(raw + 2 * texts), strict=True)
    ]
    assert evaluator.search(7) == expected
    rows = [29, 3, 14, 3]
    assert evaluator.search(7, rows=rows) == [expected[row] for row in rows]
    found = [query.reference in ids for query, ids in zip(benchmark.queries, evaluator.search(40), strict=True)]
    assert any(found) != benchmark.exclude_reference
    assert evaluator.search(7, text_encoder="another encoder: ") != expected


def test_search_and_recall_agree():
    benchmark = named(BENCHMARKS["shapes"](num_queries=40))
    evaluator = CIREvaluator(benchmark, Retriever())
    hits = [
        100.0 * (query.targets[0] in ids) for query, ids in zip(benchmark.queries, evaluator.search(10), strict=True)
    ]
    assert evaluator.evaluate().per_query["shapes_recall@10"].tolist() == hits


def test_search_for_more_than_there_is():
    with pytest.raises(ValueError, match="`k` must not exceed"):
        CIREvaluator(toy(exclude_reference=True), Retriever()).search(4)


# ---------------------------------------- gains
def test_gains_are_paired():
    evaluator = CIREvaluator(named(BENCHMARKS["shapes_categories"](num_queries=90)), Retriever())
    before, after = evaluator.evaluate(composer="text"), evaluator.evaluate(composer="image")
    gains = after.gain_over(before)
    assert gains.keys() == before.metrics.keys()
    for name, gain in gains.items():
        assert gain["gain"] == pytest.approx(after.metrics[name] - before.metrics[name], abs=1e-3)
        assert gain["low"] <= gain["gain"] <= gain["high"]
        assert tuple(gain.values()) == paired_bootstrap(before.per_query[name], after.per_query[name], seed=0)
    assert any(gain["low"] < gain["high"] for gain in gains.values())
    assert after.gain_over(before, seed=1) != gains == after.gain_over(before)
    assert all(gain == {"gain": 0, "low": 0, "high": 0} for gain in before.gain_over(before).values())


def test_a_sure_gain_is_sure():
    before = CIRResult({"m": torch.zeros(50)}, 0, 50)
    after = CIRResult({"m": torch.full((50,), 100.0)}, 0, 50)
    assert after.gain_over(before) == {"m": {"gain": 100.0, "low": 100.0, "high": 100.0}}
    with pytest.raises(ValueError, match="one value per query, in the same order"):
        after.gain_over(CIRResult({"m": torch.zeros(49)}, 0, 49))


@pytest.mark.parametrize("method", ["pic2word", "context_i2w", "fti4cir"])
def test_references_are_read_in_parts_and_once(method):
    benchmark = BENCHMARKS["shapes"](num_queries=23)
    retriever = random_retriever(method, batch_size=7)
    evaluator = CIREvaluator(benchmark, retriever)
    images = [benchmark.load_image(query.reference) for query in benchmark.queries]
    expected = retriever.encode_queries(retriever.embed_references(images), [q.texts for q in benchmark.queries])
    queries = evaluator._compose("projection", benchmark.queries, None)
    torch.testing.assert_close(queries, expected, rtol=1e-4, atol=2e-5)

    kept = evaluator._composed(benchmark.queries)
    assert evaluator._composed(benchmark.queries) is kept
    with torch.no_grad():
        next(retriever.projection.parameters()).mul_(0.5)  # as an optimizer does
    assert evaluator._composed(benchmark.queries) is not kept
