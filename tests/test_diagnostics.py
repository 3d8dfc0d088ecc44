"""Diagnoses against their formulas written out, cases by hand, and the evaluator's own figures."""

import copy
import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from backbone_models import gemma_tokenizer, tiny_backbone
from helpers import tiny_text_model, tiny_tokenizer, tiny_trainer
from world_models import random_retriever

from rtd_hf.alignment import ImageAlignment
from rtd_hf.benchmarks import BENCHMARKS, CIRBenchmark, CIRQuery
from rtd_hf.diagnostics import (
    TEXT_CHANGES,
    Diagnosis,
    LayerChanges,
    ModalityGap,
    QueryPerturbations,
    TaskDiscrepancy,
    TripletQuality,
    changed_texts,
    compare_distributions,
    layer_changes,
    linear_cka,
    mean_states,
    modality_gap,
)
from rtd_hf.diagnostics.gap import roc_area
from rtd_hf.evaluator import CIREvaluator
from rtd_hf.metrics import paired_bootstrap
from rtd_hf.models import CLIPTextModelForRTD, SiglipTextModelForRTD
from rtd_hf.noise import draw_noise
from rtd_hf.preservation import CaptionedImages, load_shapes_captions
from rtd_hf.shapes.edits import sample_triplet


def moved(model, amount=0.3):
    """The same encoder after something like a training."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in other.parameters():
            weight += amount * weight.std().nan_to_num(0.1) * torch.randn(weight.shape, generator=generator)
    return other


def evaluator(name="shapes", number=9, method="lincir", **options) -> CIREvaluator:
    return CIREvaluator(BENCHMARKS[name](num_queries=number, **options), random_retriever(method))


# --------------------------------------------------------------------------------------------------- task discrepancy
class TestTaskDiscrepancy:
    def test_formula(self):
        scored = evaluator()
        retriever, benchmark, trained = scored.retriever, scored.benchmark, moved(scored.retriever.text_encoder)
        found = TaskDiscrepancy(scored).measure(trained)
        place = {name: row for row, name in enumerate(benchmark.gallery)}
        images = retriever.encode_images([benchmark.load_image(name) for name in benchmark.gallery]).double().numpy()
        captions = retriever.encode_texts([query.target_caption for query in benchmark.queries]).double().numpy()
        queries = scored.encode(trained).double().numpy()
        rows = {
            "query_to_caption": [(queries[i], captions[i]) for i in range(9)],
            "query_to_image": [(queries[i], images[place[q.targets[0]]]) for i, q in enumerate(benchmark.queries)],
            "query_to_reference": [(queries[i], images[place[q.reference]]) for i, q in enumerate(benchmark.queries)],
            "caption_to_image": [(captions[i], images[place[q.targets[0]]]) for i, q in enumerate(benchmark.queries)],
        }
        expected = {f"shapes_{name}": np.mean([a @ b for a, b in pairs]) for name, pairs in rows.items()}
        for name in ("query_to_caption", "query_to_image"):
            others = [rows[name][i][0] @ rows[name][j][1] for i in range(9) for j in range(9) if i != j]
            expected[f"shapes_{name}_margin"] = expected[f"shapes_{name}"] - np.mean(others)
        assert dict(found.metrics) == pytest.approx(expected, abs=1e-5)
        assert len({round(value, 3) for value in expected.values()}) == 6  # no two that could be exchanged

    def test_captions_stay_those_of_the_frozen_encoder(self):
        scored = evaluator()
        watched = TaskDiscrepancy(scored)
        before = watched()
        for weight in scored.retriever.text_encoder.parameters():
            weight.data *= 1.5
        after = watched()
        assert after["shapes_caption_to_image"] == before["shapes_caption_to_image"]
        assert after["shapes_query_to_caption"] != pytest.approx(before["shapes_query_to_caption"], abs=1e-3)

    def test_histograms_hold_every_query(self):
        found = TaskDiscrepancy(evaluator()).measure()
        series = found.series
        for name, counts in series["counts"].items():
            values = found.values[f"shapes_{name}"].clamp(-1, 1).numpy()
            assert counts == np.histogram(values, bins=40, range=(-1, 1))[0].tolist()
        assert {sum(counts) for counts in series["counts"].values()} == {9}
        assert len(series["edges"]) == 1 + len(series["counts"]["query_to_caption"])
        json.dumps(series, allow_nan=False)

    def test_change_has_the_paired_interval(self):
        watched = TaskDiscrepancy(evaluator())
        before, after = watched.measure(), watched.measure(moved(watched.evaluator.retriever.text_encoder))
        change = after.change_from(before)
        for name in ("shapes_query_to_image", "shapes_query_to_caption_margin"):
            interval = paired_bootstrap(before.values[name], after.values[name])
            assert change[name] == {"change": interval.gain, "low": interval.low, "high": interval.high}
            assert change[name]["change"] == pytest.approx(after.metrics[name] - before.metrics[name], abs=1e-6)
        assert change.keys() == after.metrics.keys()

    def test_other_queries_are_refused(self):
        one, other = Diagnosis("a", {}, {}, {"x": torch.ones(3)}), Diagnosis("a", {}, {}, {"x": torch.ones(4)})
        with pytest.raises(ValueError, match="`before` must be the same diagnosis of the same queries"):
            one.change_from(other)

    def test_what_it_cannot_measure_is_said(self):
        scored = evaluator(number=3)
        bare = [dataclasses.replace(query, target_caption="") for query in scored.benchmark.queries]
        scored.benchmark = dataclasses.replace(scored.benchmark, queries=bare)
        with pytest.raises(ValueError, match="3 of 3 queries of `shapes` have no target caption"):
            TaskDiscrepancy(scored)
        with pytest.raises(ValueError, match="one query only"):
            TaskDiscrepancy(evaluator(number=1))

    @pytest.mark.parametrize("method", ["context_i2w", "fti4cir"])
    def test_projections_with_patches_and_several_captions(self, method):
        metrics = TaskDiscrepancy(evaluator("shapes_categories", 6, method))()
        assert all(-1 <= value <= 1.0001 for name, value in metrics.items() if not name.endswith("margin"))


# ------------------------------------------------------------------------------------------------------- modality gap
class TestGap:
    def test_frechet_of_gaussians(self):
        # Rows whose mean and covariance are known exactly: +-e_i sqrt(D) a_i have mean 0 and covariance diag(a_i^2).
        scales, others = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 1.0, 0.5])
        corners = torch.cat([torch.eye(3), -torch.eye(3)]).double() * 3**0.5
        found = compare_distributions(corners * scales, corners * others + torch.tensor([1.0, 0.0, 2.0]))
        expected = (5 + 1 + 1 + 0) / (1 + 4 + 0.25)  # |mean|^2 + sum (a - b)^2, over tr S1
        assert found["frechet"] == pytest.approx(expected, rel=1e-9)

    def test_frechet_of_covariances_that_do_not_commute(self):
        generator = torch.Generator().manual_seed(0)
        first, second = (
            torch.randn(50, 4, generator=generator) @ torch.randn(4, 4, generator=generator) for _ in "ab"
        )
        covariances = [np.cov(rows.double().numpy().T, bias=True) for rows in (first, second)]
        roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real).sum()
        means = np.square((first.double().mean(0) - second.double().mean(0)).numpy()).sum()
        distance = means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
        found = compare_distributions(first, second)["frechet"]
        assert found == pytest.approx(distance / np.trace(covariances[0]), rel=1e-9)

    @pytest.mark.parametrize("width", [3, 40])  # more rows than columns, and fewer
    def test_equal_sets(self, width):
        rows = torch.randn(30, width)
        found = compare_distributions(rows, rows.clone())
        # 225 pairs, of which the 15 of equal rows are ties but for the last bit.
        assert found["frechet"] == pytest.approx(0, abs=1e-9)
        assert found["separability"] == pytest.approx(0.5, abs=0.5 * 15 / 225 + 1e-9)
        assert found["pair_cosine"] == pytest.approx(1) and found["norm_ratio"] == pytest.approx(1)

    @pytest.mark.parametrize("width", [3, 60])
    def test_separability(self, width):
        generator = torch.Generator().manual_seed(0)
        rows, others = (torch.randn(80, width, generator=generator) for _ in "ab")
        apart = compare_distributions(rows, others + 20)["separability"]
        alike = compare_distributions(rows, others)["separability"]
        assert apart == 1.0 and 0.3 < alike < 0.7

    def test_separability_written_out(self):
        generator = torch.Generator().manual_seed(2)
        first, second = (torch.randn(31, 6, generator=generator).double() + shift for shift in (0, 0.4))
        learnt = np.concatenate([first[::2], second[::2]])
        labels = np.array([1.0] * 16 + [-1.0] * 16)
        mean = learnt.mean(0)
        centred = learnt - mean
        ridge = 1e-2 * np.mean((centred**2).sum(1)) * np.eye(6)
        weights = np.linalg.solve(centred.T @ centred + ridge, centred.T @ labels)
        good, bad = ((part[1::2].numpy() - mean) @ weights for part in (first, second))
        area = np.mean([[1.0 if a > b else 0.5 * (a == b) for b in bad] for a in good])
        assert 0.5 < area < 1 and len(good) == 15
        assert compare_distributions(first, second)["separability"] == pytest.approx(area, abs=1e-9)

    def test_both_ways_to_the_weights_are_one(self):
        """Columns of zeros decide which system is solved, and nothing else."""
        generator = torch.Generator().manual_seed(0)
        rows, others = (torch.randn(40, 5, generator=generator) + shift for shift in (0, 0.7))
        wide = [torch.nn.functional.pad(each, (0, 200)) for each in (rows, others)]
        narrow = compare_distributions(rows, others)["separability"]
        assert 0.5 < narrow < 1 and compare_distributions(*wide)["separability"] == narrow

    def test_roc_area_by_counting(self):
        generator = torch.Generator().manual_seed(1)
        good, bad = (torch.randint(0, 6, (size,), generator=generator).double() for size in (23, 17))
        counted = sum((a > b) + 0.5 * (a == b) for a in good.tolist() for b in bad.tolist()) / (23 * 17)
        assert roc_area(good, bad) == pytest.approx(counted, abs=1e-12) and counted != 0.5
        assert roc_area(torch.tensor([2.0]), torch.tensor([1.0])) == 1.0

    def test_norms_and_cosines(self):
        first, second = torch.randn(9, 4), torch.randn(9, 4)
        found = compare_distributions(first, second)
        cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in zip(first, second, strict=True)]
        assert found["pair_cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
        ratio = np.mean([b.norm().item() for b in second]) / np.mean([a.norm().item() for a in first])
        assert found["norm_ratio"] == pytest.approx(ratio, abs=1e-6)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="one shape"):
            compare_distributions(torch.randn(5, 3), torch.randn(6, 3))
        with pytest.raises(ValueError, match="not all the same"):
            compare_distributions(torch.ones(5, 3), torch.randn(5, 3))
        with pytest.raises(ValueError, match="must be finite"):
            compare_distributions(torch.randn(5, 3), torch.full((5, 3), torch.nan))
        with pytest.raises(ValueError, match="20 pictures at least"):
            modality_gap(load_shapes_captions(num_images=19), random_retriever())
        with pytest.raises(ValueError, match="`scales` must not be empty"):
            modality_gap(load_shapes_captions(num_images=20), random_retriever(), scales=())

    def test_rows_are_those_of_the_projections_own_words(self):
        data, retriever = load_shapes_captions(num_images=24), random_retriever()
        found = modality_gap(data, retriever, kinds=["gaussian"], scales=[0.5, 1.0], seed=5)
        assert [(row["kind"], row["scale"]) for row in found.series["rows"]] == [
            ("none", 0.0), ("gaussian", 0.5), ("gaussian", 1.0)
        ]  # fmt: skip
        images = retriever.embed_images([data.load_image(name) for name in data.images])
        texts = retriever.embed_texts([captions[0] for captions in data.captions])
        texts = texts + torch.randn(texts.shape, generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            words = [retriever.projection(each)[:, 0] for each in (images, texts)]
        row = found.series["rows"][2]
        for name, value in compare_distributions(*words).items():
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-5)
        assert row["input_frechet"] == pytest.approx(compare_distributions(images, texts)["frechet"], rel=1e-4)
        best = min(found.series["rows"][1:], key=lambda one: one["frechet"])
        assert found.metrics["best_scale_gaussian"] == best["scale"]
        assert found.metrics["best_gaussian_separability"] == best["separability"]
        json.dumps(found.as_dict(), allow_nan=False)

    def test_while_a_projection_is_trained(self):
        data, retriever = load_shapes_captions(num_images=20), random_retriever()
        watched = ModalityGap(data, retriever, kinds=["gaussian"], scales=[0.5])
        before = watched()
        plain = modality_gap(data, retriever, kinds=["gaussian"], scales=[0.5]).metrics
        assert before == {f"shapes_captions_gap_{name}": value for name, value in plain.items()}
        retriever.projection.train()
        with torch.no_grad():
            for weight in retriever.projection.parameters():
                weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        after = watched(retriever.text_encoder)
        assert retriever.projection.training and after.keys() == before.keys()
        plain = modality_gap(data, retriever, kinds=["gaussian"], scales=[0.5]).metrics
        assert after == {f"shapes_captions_gap_{name}": value for name, value in plain.items()}
        assert abs(after["shapes_captions_gap_without_frechet"] - before["shapes_captions_gap_without_frechet"]) > 1e-3

    def test_one_word_is_the_mean_of_those_used(self):
        from rtd_hf.diagnostics.gap import _mean_word

        words = torch.tensor([[[2.0, 0], [4, 2], [0, 0]], [[1, 1], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]])
        assert _mean_word(words).tolist() == [[3, 1], [1, 1], [0, 0]]

    def test_projection_that_reads_texts(self):
        found = modality_gap(load_shapes_captions(num_images=20), random_retriever("pic2word"), scales=[0.5])
        assert len(found.series["rows"]) == 3

    def test_projection_that_makes_no_words_of_texts(self):
        with pytest.raises(ValueError, match="makes no words of texts"):
            modality_gap(load_shapes_captions(num_images=20), random_retriever("context_i2w"))

    def test_noise(self):
        plain, scaled = (
            draw_noise((4000, 8), kind=kind, scale=2.0, generator=torch.Generator().manual_seed(0))
            for kind in ("gaussian", "scaled_gaussian")
        )
        assert plain.std().item() == pytest.approx(2, rel=0.02)
        assert scaled.std().item() == pytest.approx(2 * (1 / 3) ** 0.5, rel=0.03)  # sqrt(E u^2)
        factors = (scaled / plain).median(1).values  # one for each row
        assert (scaled / plain).sub(factors[:, None]).abs().max() < 1e-4 and 0 <= factors.min() < factors.max() <= 1
        assert not draw_noise((3, 2), kind="gaussian", scale=0).any()
        with pytest.raises(ValueError, match="`kind` must be one of"):
            draw_noise((3, 2), kind="pink", scale=1)


# ------------------------------------------------------------------------------------------------------------- layers
class TestLayers:
    def test_known_changes(self):
        frozen = tiny_text_model(CLIPTextModelForRTD)
        trained = copy.deepcopy(frozen)
        with torch.no_grad():
            for name, weight in trained.named_parameters():
                if "layers.1.mlp" in name:
                    weight *= 1.5
                elif "text_projection" in name:
                    weight *= 0.9
        found = layer_changes(frozen, trained)
        changes = {(row["layer"], row["kind"]): row["change"] for row in found.series["weights"]}
        expected = dict.fromkeys(changes, 0.0) | {(1, "mlp"): 0.5, (2, "projection"): 0.1}
        assert changes == pytest.approx(expected, abs=1e-6)
        assert changes.keys() == {
            (-1, "embeddings"), (2, "norms"), (2, "projection"),
            *((layer, kind) for layer in (0, 1) for kind in ("attention", "mlp", "norms")),
        }  # fmt: skip
        assert found.metrics["most_changed_layer"] == 1
        weights = dict(frozen.named_parameters())
        change = sum((trained.get_parameter(name) - weight).square().sum() for name, weight in weights.items())
        whole = sum(weight.square().sum() for weight in weights.values())
        assert found.metrics["relative_change"] == pytest.approx((change / whole).sqrt().item(), rel=1e-5)

    def test_states_are_what_the_layers_give(self):
        model, tokenizer = tiny_text_model(CLIPTextModelForRTD), tiny_tokenizer()
        texts = ["a red dog", "the green car on the grass", "more"]
        found = mean_states(model, texts, tokenizer, batch_size=2)
        assert [tuple(states.shape) for states in found] == [(3, 32)] * 3
        for row, text in enumerate(texts):  # alone, without padding
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            hidden = super(CLIPTextModelForRTD, model).forward(input_ids=ids, output_hidden_states=True).hidden_states
            for states, expected in zip(found, hidden, strict=True):
                assert states[row] == pytest.approx(expected[0].mean(0).detach(), abs=1e-4)

    def test_untrained_is_unchanged(self):
        model, tokenizer = tiny_text_model(CLIPTextModelForRTD), tiny_tokenizer()
        texts = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("dog", "car", "tree")]
        found = layer_changes(model, copy.deepcopy(model), texts=texts, tokenizer=tokenizer)
        assert found.metrics["relative_change"] == 0 and found.metrics["cka_last"] == pytest.approx(1)
        assert [row["layer"] for row in found.series["states"]] == [-1, 0, 1]
        other = layer_changes(model, moved(model), texts=texts, tokenizer=tokenizer)
        assert other.series["states"][-1]["cosine"] < 0.999 and other.metrics["cka_last"] < 0.999

    def test_while_an_encoder_is_trained(self, tmp_path):
        texts, found = ["a red dog", "a blue car", "two trees"], {}
        frozen = tiny_text_model(CLIPTextModelForRTD)
        trainer = tiny_trainer(
            tmp_path, max_steps=3, eval_rows=4, eval_strategy="steps", eval_steps=3, save_strategy="no"
        )
        trainer.evaluators = (LayerChanges(trainer.model, texts=texts, tokenizer=tiny_tokenizer()),)
        assert [value for name, value in trainer.evaluators[0](frozen).items() if "change" in name].count(0.0) == 5
        trainer.train()
        for entry in trainer.state.log_history:
            found |= {name: value for name, value in entry.items() if name.startswith("eval_layers_")}
        plain = layer_changes(frozen, trainer.trained_encoder(), texts=texts, tokenizer=tiny_tokenizer())
        assert {name: found[f"eval_layers_{name}"] for name in plain.metrics} == pytest.approx(plain.metrics, rel=1e-5)
        assert found["eval_layers_relative_change"] > 1e-3
        places = {-1: "first", 0: "0", 1: "1", 2: "last"}
        weights = dict(frozen.named_parameters())
        for layer, change in plain.series["whole"]:
            assert found[f"eval_layers_{places[layer]}_change"] == pytest.approx(change, rel=1e-5)
        own = [name for name in weights if ".layers.1." in name]
        trained = trainer.trained_encoder()
        moved_by = sum((trained.get_parameter(name) - weights[name]).square().sum() for name in own)
        share = (moved_by / sum(weights[name].square().sum() for name in own)).sqrt().item()
        assert found["eval_layers_1_change"] == pytest.approx(share, rel=1e-4)

    def test_cka(self):
        generator = torch.Generator().manual_seed(0)
        rows, others = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in "ab")
        rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
        assert linear_cka(rows, 3 * rows @ rotation + 7) == pytest.approx(1)
        x, y = rows - rows.mean(0), others - others.mean(0)
        written = (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
        assert linear_cka(rows, others) == pytest.approx(written.item()) and written < 0.9
        assert linear_cka(rows, torch.ones(12, 5)) == pytest.approx(0, abs=1e-6)

    def test_siglip(self):
        frozen = tiny_backbone(SiglipTextModelForRTD, max_position_embeddings=64)
        found = layer_changes(frozen, moved(frozen), texts=["a red dog", "a blue car"], tokenizer=gemma_tokenizer())
        places = {(row["layer"], row["kind"]) for row in found.series["weights"]}
        assert places >= {(-1, "embeddings"), (0, "attention"), (1, "mlp"), (2, "projection"), (2, "norms")}
        assert not any(kind == "other" for _, kind in places) and len(found.series["states"]) == 3

    def test_adapters_are_merged_on_a_copy(self):
        from peft import LoraConfig, get_peft_model

        frozen = tiny_text_model(CLIPTextModelForRTD)
        targets = list(frozen.lora_target_modules)
        adapted = get_peft_model(copy.deepcopy(frozen), LoraConfig(r=2, target_modules=targets))
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
        found = layer_changes(frozen, adapted)
        merged = copy.deepcopy(adapted).merge_and_unload()
        assert found.metrics == layer_changes(frozen, merged).metrics and found.metrics["relative_change"] > 0.01
        assert any("lora_B" in name for name, _ in adapted.named_parameters())  # still there

    def test_bad_input(self):
        model = tiny_text_model(CLIPTextModelForRTD)
        with pytest.raises(ValueError, match="`frozen` and `trained` must have the same weights"):
            layer_changes(model, tiny_text_model(CLIPTextModelForRTD, num_hidden_layers=3))
        with pytest.raises(ValueError, match="`tokenizer` is missing"):
            layer_changes(model, model, texts=["a"])
        broken = copy.deepcopy(model)
        broken.text_projection.weight.data[0, 0] = torch.nan
        with pytest.raises(ValueError, match="`text_projection.weight` holds NaN"):
            layer_changes(model, broken)


# -------------------------------------------------------------------------------------------------------------- texts
ODD = ["", " ", "a", "is", "is blue", "make it {red} {0}", "日本語のテキスト", "é\u0301 ß İ", "🙂 🙃"]
ODD += ["a\tb\nc", "x" * 500, "% $ \\"]


class TestTexts:
    @pytest.mark.parametrize("change", list(TEXT_CHANGES))
    def test_never_fails_and_draws_the_same_again(self, change):
        texts = [(text,) for text in ODD] + [("is long", "has sleeves")]
        found = changed_texts(texts, change)
        assert found == changed_texts(texts, change) and list(map(len, found)) == list(map(len, texts))
        assert all(isinstance(text, str) for entry in found for text in entry)

    @pytest.mark.parametrize("change", [name for name in TEXT_CHANGES if name not in ("dropped",)])
    def test_an_ordinary_text_is_changed(self, change):
        texts = [("is large and orange instead of purple",), ("has another colour behind it",)]
        assert all(changed_texts(texts, change)[row] != texts[row] for row in range(2))

    @pytest.mark.parametrize("change", ["typos", "shuffled", "swapped", "ambiguous"])
    def test_another_seed_draws_others(self, change):
        texts = [(f"number {row} is somewhat larger than before",) for row in range(9)]
        assert changed_texts(texts, change, seed=1) != changed_texts(texts, change)

    def test_by_hand(self):
        def once(change, text, others=("other words",)):
            return changed_texts([(text,), *((other,) for other in others)], change)[0][0]

        assert once("dropped", "is blue") == ""
        assert once("swapped", "is blue") == "other words"
        assert once("negated", "is blue") == "is not blue" and once("negated", "Has two dogs") == "Has not two dogs"
        assert once("negated", "make it red") == "do not make it red" and once("negated", "two dogs") == "not two dogs"
        assert sorted(once("shuffled", "one two three").split()) == ["one", "three", "two"]
        assert once("contradiction", "is blue") == "is blue and other words"
        assert once("capitals", "is blue") == "IS BLUE" and once("fullwidth", "a b") == "ａ ｂ"
        assert once("lookalikes", "ace") != "ace" and once("lookalikes", "ace").isalpha()
        assert "is blue" in once("verbose", "is blue") and len(once("verbose", "is blue").split()) > 12
        assert once("suffix", "is blue").startswith("is blue ") and len(once("suffix", "is blue").split()) == 8
        assert "it make" not in once("paraphrase", "make it red") and "make it red" in once(
            "paraphrase", "make it red"
        )

    def test_typos_are_one_letter_in_half_of_the_longer_words(self):
        words = ["letters"] * 2000 + ["abc"] * 50
        (changed,) = changed_texts([(" ".join(words),)], "typos")[0]
        found = changed.split()
        assert found[2000:] == words[2000:]
        assert 0.4 < np.mean([word != "letters" for word in found[:2000]]) < 0.53  # `tt` exchanged is no typo
        assert {len(word) for word in found[:2000]} == {6, 7, 8} and all(word[0] == "l" for word in found[:2000])

    def test_no_text_is_without_a_typo(self):
        """But those that have short words only."""
        texts = [("is striped",)] * 40
        assert all(len(entry[0]) in (9, 10, 11) and entry not in texts for entry in changed_texts(texts, "typos"))
        assert changed_texts([("is a cat",)], "typos") == [("is a cat",)]

    def test_a_text_of_another_query_is_another_text(self):
        texts = [("is blue",)] * 30 + [("is red",)]
        assert set(changed_texts(texts, "swapped")[:30]) == {("is red",)}
        for alone in ([("is blue",)], [("is blue",), ("is blue",)], [("is blue", "is red")]):
            with pytest.raises(ValueError, match="no other query has another text"):
                changed_texts(alone, "swapped")
        assert changed_texts([("is blue",)], "negated") == [("is not blue",)]

    def test_unknown(self):
        with pytest.raises(KeyError, match="typos"):
            changed_texts([("a",)], "typo")


# ------------------------------------------------------------------------------------------------------ perturbations
class TestPerturbations:
    @pytest.mark.parametrize("name", ["shapes", "shapes_many", "shapes_categories"])
    def test_unchanged_is_the_evaluators_recall(self, name):
        """With as many queries in each group: the evaluator weighs groups the same."""
        scored = evaluator(name, 12)
        found = QueryPerturbations(scored, changes=["negated"]).measure()
        assert found.metrics[f"{name}_unchanged_recall@10"] == pytest.approx(scored()[f"{name}_recall@10"])
        assert 0 < found.metrics[f"{name}_unchanged_recall@10"] < 100

    def test_changed_is_the_recall_of_a_benchmark_with_these_texts(self):
        scored = evaluator(number=12)
        trained = moved(scored.retriever.text_encoder)
        found = QueryPerturbations(scored, changes=["swapped", "dropped"], seed=4).measure(trained)
        texts = changed_texts([query.texts for query in scored.benchmark.queries], "swapped", seed=4)
        queries = [
            dataclasses.replace(query, texts=own) for query, own in zip(scored.benchmark.queries, texts, strict=True)
        ]
        other = CIREvaluator(dataclasses.replace(scored.benchmark, queries=queries), scored.retriever)
        recall, before = other(trained)["shapes_recall@10"], scored(trained)["shapes_recall@10"]
        assert found.metrics["shapes_swapped_recall@10"] == pytest.approx(recall, abs=1e-4)
        assert found.metrics["shapes_swapped_loss"] == pytest.approx(before - recall, abs=1e-4)
        vectors = [one.encode(trained).double() for one in (scored, other)]
        assert found.metrics["shapes_swapped_cosine"] == pytest.approx((vectors[0] * vectors[1]).sum(1).mean().item())
        ranks = [one.ranks(vector.float()) for one, vector in zip((scored, other), vectors, strict=True)]
        steps = sorted(abs(np.log2(b / a)) for a, b in zip(*(r.tolist() for r in ranks), strict=True))
        assert found.metrics["shapes_swapped_moved"] == pytest.approx(steps[5], rel=1e-5)  # torch's lower median
        row = found.series["rows"][0]
        hits = [100.0 * (rank <= 10) for rank in ranks]
        interval = paired_bootstrap(hits[1], hits[0])
        assert (row["low"], row["high"]) == (interval.low, interval.high)
        assert row["examples"][0] == [scored.benchmark.queries[0].texts[0], texts[0][0]]

    def test_a_change_that_changes_nothing_costs_nothing(self):
        scored = evaluator()  # the tokenizer of the world lowers letters
        found = QueryPerturbations(scored, changes=["capitals"]).measure().metrics
        assert found["shapes_capitals_loss"] == 0 and found["shapes_capitals_cosine"] == pytest.approx(1)

    def test_ranks_are_those_of_the_recall(self):
        scored = evaluator(number=12)
        ranks = scored.ranks(scored.encode())
        for k in (1, 5, 10):
            assert 100 * (ranks <= k).double().mean().item() == pytest.approx(scored()[f"shapes_recall@{k}"], abs=1e-4)
        assert len(set(ranks.tolist())) > 3

    def test_own_candidates_are_asked_for_the_first(self):
        pictures = load_shapes_captions(num_images=5)
        queries = [
            CIRQuery(f"{row}", "00000", (text,), (f"0000{row}",), ("00001", "00002", "00003"))
            for row, text in ((1, "is blue"), (2, "is red"))
        ]
        benchmark = CIRBenchmark(
            "toy", queries, pictures.images, pictures.load_image, ("recall@1",), search_candidates=True
        )
        scored = CIREvaluator(benchmark, random_retriever())
        found = QueryPerturbations(scored, changes=["swapped"])
        assert found()["toy_unchanged_recall@1"] == scored()["toy_recall@1"]
        assert "toy_unchanged_recall@2" in QueryPerturbations(scored, changes=["swapped"], k=2)()

    @pytest.mark.parametrize("method", ["context_i2w", "fti4cir"])
    def test_projections_with_patches_and_several_captions(self, method):
        scored = evaluator("shapes_categories", 3, method)
        metrics = QueryPerturbations(scored, changes=["dropped", "swapped"])()
        assert metrics["shapes_categories_swapped_cosine"] < 0.9999

    def test_every_change_together(self):
        found = QueryPerturbations(evaluator(number=4)).measure()
        assert [row["change"] for row in found.series["rows"]] == list(TEXT_CHANGES)
        assert {row["group"] for row in found.series["rows"]} == {"composition", "robustness"}
        assert found.change_from(found)["shapes_typos_loss"] == {"change": 0, "low": 0, "high": 0}
        json.dumps(found.as_dict(), allow_nan=False)

    def test_bad_input(self):
        scored = evaluator(number=3)
        with pytest.raises(ValueError, match="`k` must be at least 1"):
            QueryPerturbations(scored, k=0)
        hidden = [dataclasses.replace(query, targets=()) for query in scored.benchmark.queries]
        options = {"queries": hidden, "hidden_targets": True, "metrics": ("recall@1",)}
        scored.benchmark = dataclasses.replace(scored.benchmark, **options)
        with pytest.raises(ValueError, match="targets"):
            QueryPerturbations(scored)


# ----------------------------------------------------------------------------------------------------------- triplets
class TestTriplets:
    def rows(self, number=9):
        rng = random.Random(0)
        return [sample_triplet(rng) for _ in range(number)]

    def test_formula(self):
        retriever, rows = random_retriever(), self.rows()
        other = moved(retriever.text_encoder)
        watched = TripletQuality(rows, retriever)
        for encoder in (None, other):
            reference, told, target = (
                retriever.encode_texts([row[f"{name}_caption"] for row in rows], text_encoder=encoder)
                for name in ("reference", "conditioning", "target")
            )
            way = torch.nn.functional.normalize(target - reference, dim=-1)
            found = watched(encoder)
            assert found["triplets_moved_as_told"] == pytest.approx((way * told).sum(1).mean().item(), abs=1e-5)
            assert found["triplets_reference_target"] == pytest.approx(
                (reference * target).sum(1).mean().item(), abs=1e-5
            )
        first, then = watched.measure(), watched.measure(other)
        assert first.metrics != then.metrics
        change = then.change_from(first)["triplets_moved_as_told"]
        assert change["change"] == pytest.approx(
            then.metrics["triplets_moved_as_told"] - first.metrics["triplets_moved_as_told"]
        )
        assert all(sum(counts) == len(rows) for counts in then.series["counts"].values())
        json.dumps(then.as_dict(), allow_nan=False)

    def test_a_draw_and_other_names_of_columns(self):
        from datasets import Dataset

        retriever, rows = random_retriever(), self.rows(30)
        drawn = TripletQuality(rows, retriever, number=7)
        places = [next(at for at, row in enumerate(rows) if row.items() >= one.items()) for one in drawn.rows]
        assert len(places) == 7 and places == sorted(set(places)) != list(range(7))
        assert TripletQuality(rows, retriever, number=7, seed=1).rows != drawn.rows
        aliases = {"reference_caption": "input", "conditioning_caption": "edit", "target_caption": "output"}
        dataset = Dataset.from_list(rows).rename_columns(aliases)
        assert TripletQuality(dataset, retriever, number=7).rows == drawn.rows

    def test_bad_input(self):
        retriever = random_retriever()
        with pytest.raises(ValueError, match="`triplets` not empty"):
            TripletQuality([], retriever)
        with pytest.raises(ValueError, match=r"1 of 9 rows do not, first row 4"):
            TripletQuality([*self.rows(4), self.rows(1)[0] | {"target_caption": None}, *self.rows(4)], retriever)


# ---------------------------------------------------------------------------------------------------------- alignment
def test_alignment_per_picture_has_the_same_means():
    data = load_shapes_captions(num_images=12)
    captions = tuple((*own, *("a red star", "a blue dog")[: row % 3]) for row, own in enumerate(data.captions))
    data = CaptionedImages("toy", data.images, captions, data.load_image)
    retriever = random_retriever()
    watched, trained = ImageAlignment(data, retriever), moved(retriever.text_encoder)
    before, after = watched.evaluate(), watched.evaluate(trained)
    assert after.metrics == pytest.approx(watched(trained), abs=1e-9)
    gain = after.gain_over(before)["toy_image_alignment"]
    assert gain["gain"] == pytest.approx(watched(trained)["toy_image_alignment_change"], abs=1e-9)
    assert gain["low"] < gain["gain"] < gain["high"] and len(after.per_query["toy_image_alignment"]) == 12


@pytest.mark.gpu
def test_on_a_gpu():
    scored = evaluator()
    retriever = scored.retriever
    frozen = copy.deepcopy(retriever.text_encoder)
    discrepancy = TaskDiscrepancy(scored)
    here = discrepancy(), modality_gap(load_shapes_captions(num_images=20), retriever, scales=[1.0]).metrics
    for part in (retriever.text_encoder, retriever.vision_model, retriever.projection):
        part.to("cuda")
    there = discrepancy(), modality_gap(load_shapes_captions(num_images=20), retriever, scales=[1.0]).metrics
    for one, other in zip(here, there, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    texts = ["a red star", "a blue square"]
    found = layer_changes(frozen, retriever.text_encoder, texts=texts, tokenizer=retriever.tokenizer)
    assert found.metrics["relative_change"] == 0 and found.metrics["cka_last"] == pytest.approx(1, abs=1e-3)


def test_random_is_not_touched():
    random.seed(5)
    state = random.getstate()
    changed_texts([("is blue",), ("is red",)], "typos")
    assert random.getstate() == state
