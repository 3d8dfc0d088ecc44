"""The trainer around the step: what moves, what is saved, resuming, noise, logs, errors, one process against two."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers import tiny_projection, tiny_text_model, tiny_tokenizer, tiny_triplets
from processes import leave, run_on_processes
from transformers import CLIPTextModel, CLIPTextModelWithProjection, TrainerCallback, TrainingArguments

import rtd_hf.trainer
from rtd_hf.anchors import precompute_anchors
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.texts import clean_caption
from rtd_hf.trainer import RTDTrainer
from rtd_hf.training_args import RTDTrainingArguments


LORA_KINDS = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def lora_config(**options):
    from peft import LoraConfig

    return LoraConfig(r=2, lora_alpha=4, target_modules=list(CLIPTextModelForRTD.lora_target_modules), **options)


def make_trainer(folder, *, lora=False, model=None, rows=12, trainer_class=RTDTrainer, **options):
    """A trainer of a tiny encoder on 12 triplets: 3 steps of 4 an epoch, on the CPU."""
    parts = ("eval_dataset", "evaluators", "callbacks", "projection", "data_collator", "train_dataset", "anchors")
    given = {name: options.pop(name) for name in parts if name in options}
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    defaults_of_parts = {"projection": tiny_projection(), "train_dataset": Dataset.from_list(tiny_triplets(rows))}
    return trainer_class(
        tiny_text_model(CLIPTextModelForRTD) if model is None else model,
        RTDTrainingArguments(output_dir=str(folder), **{**defaults, **options}),
        processing_class=tiny_tokenizer(),
        peft_config=lora_config(**(lora if isinstance(lora, dict) else {})) if lora else None,
        **{**defaults_of_parts, **given},
    )


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def collated(trainer, rows=4):
    return trainer.data_collator(tiny_triplets(rows))


def plain_embeds(model):
    rows = tiny_tokenizer()(["a red dog on the grass", "is blue"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**rows).text_embeds


class StopAt(TrainerCallback):
    """Saves and ends the run after a step, with the schedule of the longer run."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True


class Recording(RTDTrainer):
    """Keeps the loss, the mean cosine to the targets, and the mode of every call of `compute_loss`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        triplets = len(inputs["text_ids"]) // 2
        queries, targets = outputs["queries"][:triplets].detach(), outputs["anchors"][:triplets].detach()
        cosines = (queries * targets).sum(dim=1) / queries.norm(dim=1) / targets.norm(dim=1)
        self.seen = [*getattr(self, "seen", []), (model.training, loss.item(), cosines.tolist())]
        return (loss, outputs) if return_outputs else loss


# --------------------------------------------------------------------------------------------- what moves and what not
def test_every_parameter_moves_and_the_anchor_and_the_projection_do_not(tmp_path):
    # Without weight decay, so that what moves has a gradient.
    trainer = make_trainer(tmp_path, weight_decay=0.0, max_steps=4)
    start, projection = weights_of(trainer.model), weights_of(trainer.projection)
    trainer.train()
    end = weights_of(trainer.model)
    # `k_proj.bias` adds the same number to all scores of a query, which the softmax takes out: no gradient.
    still = {name for name in start if torch.equal(start[name], end[name]) and not name.endswith("k_proj.bias")}
    assert still == set()
    assert same(weights_of(trainer.anchor_model), start) and same(weights_of(trainer.projection), projection)
    for frozen in (trainer.anchor_model, trainer.projection):
        assert not frozen.training
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_lora_moves_the_adapters_alone(tmp_path):
    model = tiny_text_model(CLIPTextModelForRTD)
    base = weights_of(model)
    trainer = make_trainer(tmp_path, lora={"lora_dropout": 0.5}, model=model, weight_decay=0.0, max_steps=4)
    assert trainer.anchor_model is None
    start, projection = weights_of(trainer.model), weights_of(trainer.projection)
    trainer.train()
    end = weights_of(trainer.model)
    adapters = {name for name in start if "lora_" in name}
    assert len(adapters) == 2 * 2 * len(CLIPTextModelForRTD.lora_target_modules)
    assert {name for name in start if not torch.equal(start[name], end[name])} == adapters
    assert same(weights_of(trainer.projection), projection)
    frozen = {name.removeprefix("base_model.model.").replace(".base_layer", ""): end[name] for name in end}
    assert same({name: frozen[name] for name in base}, base)


@pytest.mark.parametrize("trained", [False, True], ids=["init", "trained"])
def test_lora_anchor_is_the_base_model_exactly(tmp_path, trained):
    base = copy.deepcopy(tiny_text_model(CLIPTextModelForRTD))
    trainer = make_trainer(tmp_path, lora={"lora_dropout": 0.5})
    if trained:
        trainer.train()
    trainer.model.train()
    batch = collated(trainer)
    anchors = trainer.encode_anchors(trainer.model, batch)
    assert trainer.model.training  # the mode that the queries need
    rows = {name.removeprefix("anchor_"): value for name, value in batch.items() if name.startswith("anchor_")}
    with torch.no_grad():
        expected = base(**rows).text_embeds
        assert torch.equal(anchors, expected)
        captions = [row[f"{kind}_caption"] for kind in ("target", "reference") for row in tiny_triplets(4)]
        padded = trainer.data_collator.prompts.encode(captions)["input_ids"]
        torch.testing.assert_close(base(padded).text_embeds, expected)
        assert torch.equal(trainer.model.eval()(**rows).text_embeds, expected) != trained
    assert all(parameter.requires_grad for name, parameter in trainer.model.named_parameters() if "lora_" in name)


def test_an_encoder_with_adapters_is_taken_as_one(tmp_path):
    from peft import get_peft_model

    def trained(folder, adapted_before):
        torch.manual_seed(7)  # the adapters are drawn at random
        model = tiny_text_model(CLIPTextModelForRTD)
        if adapted_before:
            model = get_peft_model(model, lora_config())
        trainer = make_trainer(folder, model=model, lora=not adapted_before)
        trainer.train()
        trainer.save_model()
        assert (folder / "merged" / "model.safetensors").is_file() and trainer.anchor_model is None
        return weights_of(trainer.model)

    assert same(trained(tmp_path / "before", True), trained(tmp_path / "by-the-trainer", False))


def test_ablation_without_anchor_sends_gradient_through_the_targets(tmp_path):
    def targets_of(**options):
        trainer = make_trainer(tmp_path, **options)
        trainer.model.train()
        _, outputs = trainer.compute_loss(trainer.model, collated(trainer), return_outputs=True)
        return outputs["anchors"]

    moving, frozen = targets_of(anchored=False), targets_of()
    assert moving.requires_grad and not frozen.requires_grad
    torch.testing.assert_close(moving, frozen)  # before the first step both encoders are the same


# ------------------------------------------------------------------------------------------------ defaults and folders
def check_plain_folder(folder, expected):
    """The folder loads as both stock classes, nothing missing, with the embeddings `expected`."""
    whole, report = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    bare, report = CLIPTextModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and set(report["unexpected_keys"]) == {"text_projection.weight"}
    rows = tiny_tokenizer()(["a red dog on the grass", "is blue"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(whole(**rows).text_embeds, expected, rtol=1e-5, atol=1e-5)
        embeds = bare(**rows).pooler_output @ whole.text_projection.weight.T
    torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("legacy_eos", [False, True], ids=["eos", "legacy-eos"])
def test_default_arguments_work_untouched(tmp_path, legacy_eos):
    trainer = RTDTrainer(
        tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos),
        RTDTrainingArguments(output_dir=str(tmp_path)),
        projection=tiny_projection(),
        processing_class=tiny_tokenizer(),
        train_dataset=Dataset.from_list(tiny_triplets(300)),
        eval_dataset=Dataset.from_list(tiny_triplets(9)),  # less than a batch
        callbacks=[StopAt(2)],
    )
    result = trainer.train()
    assert result.global_step == 2 and 0 < result.training_loss < 20
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_loss"] < 20
    assert -1 <= metrics["eval_target_similarity"] <= 1
    checkpoint = tmp_path / "checkpoint-2"
    assert {"model.safetensors", "config.json", "tokenizer.json", "optimizer.pt"} <= set(os.listdir(checkpoint))
    check_plain_folder(checkpoint, plain_embeds(trainer.model.cpu()))


@LORA_KINDS
def test_every_checkpoint_loads_in_plain_transformers(tmp_path, lora):
    class Remember(TrainerCallback):
        embeds = {}

        def on_save(self, args, state, control, model, **kwargs):
            was_training = model.training
            self.embeds[f"checkpoint-{state.global_step}"] = plain_embeds(model)
            model.train(was_training)

    options = {"save_strategy": "steps", "save_steps": 1, "callbacks": [Remember()]}
    trainer = make_trainer(tmp_path, lora=lora, learning_rate=1e-2, **options)
    trainer.train()
    trainer.save_model()
    folders = {**Remember.embeds, ".": plain_embeds(trainer.model)}
    assert sorted(folders) == [".", "checkpoint-1", "checkpoint-2", "checkpoint-3"]
    for name, expected in folders.items():
        folder = tmp_path / name
        assert (folder / "adapter_model.safetensors").is_file() == lora
        check_plain_folder(folder / "merged" if lora else folder, expected)
    assert (folders["checkpoint-1"] - folders["checkpoint-2"]).abs().max() > 1e-3


@LORA_KINDS
def test_the_best_model_by_an_evaluator_is_loaded_at_the_end(tmp_path, lora):
    scores, weights, encoders = iter([10.0, 30.0, 20.0]), [], []

    def evaluator(model):
        encoders.append(model)
        weights.append(weights_of(model))
        return {"shapes_recall@10": next(scores)}

    trainer = make_trainer(
        tmp_path,
        lora=lora,
        eval_dataset=tiny_triplets(5),
        evaluators=[evaluator],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        metric_for_best_model="shapes_recall@10",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.best_metric == 30.0 and trainer.state.best_global_step == 2
    assert same(weights_of(trainer.model), weights[1]) and not same(weights[1], weights[2])
    logged = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert [row["eval_shapes_recall@10"] for row in logged] == [10.0, 30.0, 20.0]
    assert all(0 < row["eval_loss"] < 20 for row in logged)
    assert all(encoder is trainer.model for encoder in encoders)


def test_the_evaluation_reads_every_row_and_weighs_it_once(tmp_path):
    trainer = make_trainer(tmp_path, trainer_class=Recording, per_device_eval_batch_size=4)
    metrics = trainer.evaluate(Dataset.from_list(tiny_triplets(9)))
    losses, cosines = [loss for _, loss, _ in trainer.seen], [cosines for _, _, cosines in trainer.seen]
    assert [len(batch) for batch in cosines] == [4, 4, 1]
    assert metrics["eval_loss"] == pytest.approx((4 * losses[0] + 4 * losses[1] + losses[2]) / 9, rel=1e-5)
    assert metrics["eval_target_similarity"] == pytest.approx(sum(map(sum, cosines)) / 9, rel=1e-4)
    assert not any(training for training, _, _ in trainer.seen)
    assert trainer.args.dataloader_drop_last


def test_predictions_are_one_line_a_triplet(tmp_path):
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=4, noise_type="none")
    rows = tiny_triplets(5)
    queries, anchors = trainer.predict(Dataset.from_list(rows)).predictions
    assert queries.shape == anchors.shape == (5, 2, 24)
    _, expected = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows), return_outputs=True)
    for found, part in ((queries, expected["queries"]), (anchors, expected["anchors"])):
        full, bare = part.detach().chunk(2)
        torch.testing.assert_close(torch.from_numpy(found), torch.stack([full, bare], dim=1), rtol=1e-4, atol=1e-5)


def test_several_evaluation_sets(tmp_path):
    sets = DatasetDict({"near": Dataset.from_list(tiny_triplets(4)), "far": Dataset.from_list(tiny_triplets(6))})
    metrics = make_trainer(tmp_path, eval_dataset=sets).evaluate()
    assert {"eval_near_loss", "eval_near_target_similarity", "eval_far_loss"} <= set(metrics)


# ------------------------------------------------------------------------------------------------- repeat, and resume
def run(folder, *, stop=None, resume=None, **options):
    options = {"max_steps": 7, "learning_rate": 1e-2, "lr_scheduler_type": "linear", **options}
    trainer = make_trainer(folder, callbacks=[StopAt(stop)] if stop else [], **options)
    trainer.train(resume_from_checkpoint=resume)
    return weights_of(trainer.model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": False},
        {"lora": {"lora_dropout": 0.3}, "mini_batch_size": 3},
        {"gradient_accumulation_steps": 2, "rows": 24},
    ],
    ids=["full", "padded", "lora-mini-batches", "accumulation"],
)
@pytest.mark.parametrize("stop", [3, 5], ids=["after-an-epoch", "inside-an-epoch"])
def test_same_run_same_weights_also_when_stopped_and_resumed(tmp_path, options, stop):
    def seeded(name, **more):
        torch.manual_seed(7)  # the adapters are drawn before the trainer seeds
        return run(tmp_path / name, **options, **more)

    whole = seeded("whole")
    assert same(seeded("again"), whole)
    assert not same(seeded("other", seed=43), whole)
    stopped = seeded("stopped", stop=stop)
    assert not same(stopped, whole)
    torch.manual_seed(1234)  # a new process has another state
    checkpoint = str(tmp_path / "stopped" / f"checkpoint-{stop}")
    assert same(run(tmp_path / "stopped", resume=checkpoint, **options), whole)


def test_evaluation_does_not_change_the_training(tmp_path):
    evaluated = run(tmp_path / "evaluated", eval_dataset=tiny_triplets(9), eval_strategy="steps", eval_steps=1)
    assert same(evaluated, run(tmp_path / "plain"))


def test_noise_reaches_the_weights(tmp_path):
    assert not same(run(tmp_path / "noise"), run(tmp_path / "none", noise_type="none"))


# -------------------------------------------------------------------------------------------------------------- noise
def draw(trainer, *, rows=4, width=24, step=0, training=True, again=True):
    trainer.state.global_step = step
    trainer.model.train(training)
    if again:
        trainer._draw_key = ("", -1)
    return trainer._noise_like(torch.full((rows, width), 9.0))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scaled_gaussian_noise_is_the_published_one(tmp_path, scale):
    """r + sigma * u * epsilon with one u of U(0, 1) a row."""
    noise = draw(make_trainer(tmp_path, noise_scale=scale), rows=2000, width=4000) / scale
    # The root mean square of a row of 4,000 is its factor u within 1.1 % (one deviation); the factors are uniform.
    factors = noise.square().mean(dim=1).sqrt()
    quantiles = torch.arange(0.5, 2000) / 2000
    assert (factors.sort().values - quantiles).abs().max() < 0.04
    # Divided by the factor, each row is standard normal: moments 0, 1, 0, 3.
    normal = noise / factors[:, None]
    for power, moment in ((1, 0.0), (3, 0.0), (4, 3.0)):
        assert normal.pow(power).mean() == pytest.approx(moment, abs=0.02)


def test_gaussian_noise_has_one_scale(tmp_path):
    noise = draw(make_trainer(tmp_path, noise_type="gaussian", noise_scale=0.5), rows=500, width=2000)
    assert ((noise.square().mean(dim=1).sqrt() - 0.5).abs() < 0.05).all()
    assert noise.mean() == pytest.approx(0, abs=2e-3) and (noise / 0.5).pow(4).mean() == pytest.approx(3, abs=0.03)


@pytest.mark.parametrize("options", [{"noise_type": "none"}, {"noise_scale": 0.0}], ids=str)
def test_noise_can_be_switched_off(tmp_path, options):
    assert not draw(make_trainer(tmp_path, **options)).any()


def test_noise_is_keyed_by_seed_step_micro_batch_mode_and_rank(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    noises = {
        "first": draw(trainer),
        "second micro-batch": draw(trainer, again=False),
        "next step": draw(trainer, step=1),
        "evaluation": draw(trainer, training=False),
        "other seed": draw(make_trainer(tmp_path, seed=1)),
    }
    monkeypatch.setattr(rtd_hf.trainer, "rank", lambda: 1)
    noises["other rank"] = draw(trainer)
    monkeypatch.undo()
    values = list(noises.values())
    for i, left in enumerate(values):
        assert left.any()
        for right in values[:i]:
            assert (left == right).float().mean() < 0.01
    # Nothing else counts: neither what was drawn before, nor the state of torch's own generator.
    torch.manual_seed(99)
    other = make_trainer(tmp_path)
    assert torch.equal(draw(other, step=1), noises["next step"])
    assert torch.equal(draw(other), noises["first"])
    assert torch.equal(draw(other, again=False), noises["second micro-batch"])


def test_truncated_texts_are_counted_in_the_log(tmp_path):
    rows = tiny_triplets(12)
    whole = make_trainer(tmp_path / "whole", train_dataset=rows, max_steps=2, logging_steps=1)
    whole.train()
    assert not any("truncated_texts" in row for row in whole.state.log_history)
    cut = make_trainer(tmp_path / "cut", train_dataset=rows, max_steps=2, logging_steps=1, max_length=9)
    cut.train()
    counts = [row["truncated_texts"] for row in cut.state.log_history if "truncated_texts" in row]
    assert len(counts) == 2 and 0 < counts[0] < counts[1]


def test_every_evaluation_has_the_same_noise(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=tiny_triplets(9), per_device_eval_batch_size=4)
    first, second = trainer.evaluate(), trainer.evaluate()
    trainer.state.global_step = 7
    assert first["eval_loss"] == second["eval_loss"] == trainer.evaluate()["eval_loss"]
    quiet = make_trainer(tmp_path, eval_dataset=tiny_triplets(9), per_device_eval_batch_size=4, noise_type="none")
    assert first["eval_loss"] != quiet.evaluate()["eval_loss"]


# ---------------------------------------------------------------------------------------- numbers that are not finite
def test_a_batch_that_gives_nan_stops_the_run_with_whole_weights(tmp_path):
    class Poisoned(RTDTrainer):
        def project_references(self, model, inputs, anchors):
            words = super().project_references(model, inputs, anchors)
            if self.state.global_step == 2:
                self.before = weights_of(self.model)
                return words * float("nan")
            return words

    trainer = make_trainer(tmp_path, trainer_class=Poisoned, max_steps=5, save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "The loss is nan after 2 steps" in message and str(tmp_path) in message
    # Eight queries; the anchors come from the frozen encoder, which knows no pseudo-words.
    assert "on process 0 the queries of rows 0, 1, 2, 3, 4, 5, 6, 7 are not finite" in message
    for option in ("`learning_rate` (now 0.001)", "`temperature` (now 0.07)", "`max_grad_norm` (now 1)"):
        assert option in message
    assert same(weights_of(trainer.model), trainer.before)
    assert all(torch.isfinite(tensor).all() for tensor in trainer.before.values())
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    # And the remedy works: the run goes on from the last checkpoint.
    resumed = make_trainer(tmp_path, max_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 5


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_nan_stops_the_run_with_whole_weights(tmp_path, max_grad_norm):
    class Poisoned(RTDTrainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)  # finite, and so are the embeddings
            if self.state.global_step == 2:
                self.before = weights_of(self.model)
                self.model.text_projection.weight.grad[3, 1] = float("inf")
            return loss

    trainer = make_trainer(tmp_path, trainer_class=Poisoned, max_steps=5, max_grad_norm=max_grad_norm)
    with pytest.raises(FloatingPointError, match=r"The gradient's norm is (nan|inf) after 2 steps.*`learning_rate`"):
        trainer.train()
    assert same(weights_of(trainer.model), trainer.before)


def test_queries_that_are_all_alike_show_in_the_log(tmp_path):
    class Collapsed(RTDTrainer):
        def encode_queries(self, model, inputs, words):
            queries = super().encode_queries(model, inputs, words)
            return queries[:1] + 1e-4 * queries

    healthy, collapsed = make_trainer(tmp_path), make_trainer(tmp_path, trainer_class=Collapsed)
    for trainer in (healthy, collapsed):
        trainer.train()
    found = [trainer.state.log_history[0]["query_similarity"] for trainer in (healthy, collapsed)]
    assert found[0] < 0.98 < 0.999 < found[1]


@LORA_KINDS
def test_weights_that_a_step_broke_are_not_saved(tmp_path, lora):
    trainer = make_trainer(tmp_path, lora=lora, learning_rate=1e39, save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match=r"not finite after 1 steps.*nothing was saved.*`learning_rate`"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_weights_that_are_nan_stop_the_run_at_the_next_loss(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e39)
    with pytest.raises(FloatingPointError, match="The loss is nan after 1 steps"):
        trainer.train()


# -------------------------------------------------------------------------------------------------------------- errors
def test_misnamed_column_is_named_before_training(tmp_path):
    good = Dataset.from_list(tiny_triplets(12))
    bad = good.rename_column("target_caption", "taget_caption")
    complaint = r"`target_caption` is missing.*did you mean `target_caption`.*says `taget_caption`"
    for given in ({"train_dataset": bad}, {"eval_dataset": bad}, {"eval_dataset": {"a": good, "b": bad}}):
        with pytest.raises(ValueError, match=complaint):
            make_trainer(tmp_path, **given)


def test_columns_by_their_other_names_train_the_same(tmp_path):
    names = {"reference_caption": "input", "conditioning_caption": "edit", "target_caption": "output"}
    renamed = Dataset.from_list(tiny_triplets(12)).rename_columns(names)
    assert same(run(tmp_path / "renamed", train_dataset=renamed), run(tmp_path / "plain"))


def test_projection_of_another_clip_is_refused(tmp_path):
    wrong = ImageToWordProjection.build("lincir", 48, 16)
    with pytest.raises(ValueError, match=r"`projection` maps 48 to 16 .*`model` has a joint space of 24 .* of 32"):
        make_trainer(tmp_path, projection=wrong)


def test_projection_of_another_base_model_is_refused_unless_forced(tmp_path):
    model, projection = tiny_text_model(CLIPTextModelForRTD), tiny_projection()
    model.config._name_or_path = model.name_or_path = "openai/clip-vit-base-patch32"
    projection.config.base_model = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    with pytest.raises(ValueError, match=r"fitted to `laion/.*loaded from `openai/.*`force_projection`"):
        make_trainer(tmp_path, model=model, projection=projection)
    make_trainer(tmp_path, model=model, projection=projection, force_projection=True)
    model.name_or_path = str(tmp_path)  # a folder may hold any model
    make_trainer(tmp_path, model=model, projection=projection)
    projection.config.base_model = model.name_or_path = "openai/clip-vit-base-patch32"
    make_trainer(tmp_path, model=model, projection=projection)


def test_plain_training_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`args` must be `RTDTrainingArguments`, got TrainingArguments"):
        RTDTrainer(
            tiny_text_model(CLIPTextModelForRTD),
            TrainingArguments(output_dir=str(tmp_path)),
            projection=tiny_projection(),
            processing_class=tiny_tokenizer(),
        )


def test_the_stock_class_is_refused_as_it_would_ignore_the_pseudo_words(tmp_path):
    with pytest.raises(TypeError, match=r"takes pseudo-words.*got CLIPTextModelWithProjection.*from_pretrained"):
        make_trainer(tmp_path, model=tiny_text_model())


def test_a_training_set_without_a_full_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`train_dataset` holds 3 rows, fewer than the 4 .*per_device_train_batch"):
        make_trainer(tmp_path, rows=3)
    trainer = make_trainer(tmp_path, rows=3, dataloader_drop_last=False, max_steps=1)
    assert trainer.train().global_step == 1


def test_a_projection_that_makes_no_words_of_texts_trains_with_literal_ones(tmp_path):
    projection = ImageToWordProjection.build("context_i2w", 24, 32, vision_hidden_size=16)
    plain = make_trainer(tmp_path, projection=projection, refined_concatenation=False)
    implied = make_trainer(tmp_path, projection=projection)
    for trainer in (plain, implied):
        trainer.train()
    assert same(weights_of(plain.model), weights_of(implied.model))


def with_surrogate():
    torch.manual_seed(0)
    options = {"vision_hidden_size": 16, "latent_depth": 1, "context_placeholder_id": 7}
    projection = ImageToWordProjection.build("context_i2w", 24, 32, **options)
    projection.fit_surrogate(torch.randn(40, 24), torch.randn(40, 32), torch.randn(40, 24), steps=3)
    return projection


@pytest.mark.parametrize("packing", [True, False])
@LORA_KINDS
def test_contexts_are_read_by_the_frozen_encoder(tmp_path, lora, packing):
    """One step: the words are the surrogate's of the reference and of the prompt with the token in it."""
    projection, seen = with_surrogate(), []

    class Watched(RTDTrainer):
        def encode_queries(self, model, inputs, words):
            seen.append(words)
            return super().encode_queries(model, inputs, words)

    options = {"projection": projection, "noise_scale": 0.0, "packing": packing, "max_steps": 2}
    trainer = make_trainer(tmp_path, lora=lora, trainer_class=Watched, learning_rate=0.1, **options)
    frozen, tokenizer = tiny_text_model(CLIPTextModelForRTD).eval(), tiny_tokenizer()
    placeholder = trainer.data_collator.prompts.placeholder_id
    batches = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(rows) or collate(rows)
    trainer.train()
    for rows, words in zip(batches, seen, strict=False):
        for row, word in zip(rows, words, strict=True):
            ids = tokenizer(f"a photo of $ , {row['conditioning_caption']}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                context = frozen(torch.where(ids == placeholder, 7, ids)).text_embeds
                reference = tokenizer(clean_caption(row["reference_caption"]), return_tensors="pt")["input_ids"]
                expected = projection.surrogate(frozen(reference).text_embeds, context)
            torch.testing.assert_close(word, expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 2 and trainer.state.global_step == 2
    if not lora:
        assert not same(weights_of(trainer.model), weights_of(frozen))


def test_contexts_are_read_with_anchors_computed_ahead_too(tmp_path):
    model, rows = tiny_text_model(CLIPTextModelForRTD), Dataset.from_list(tiny_triplets(12))
    anchors = precompute_anchors(rows, model, tiny_tokenizer(), tmp_path / "anchors")
    ahead = make_trainer(tmp_path / "a", projection=with_surrogate(), anchors=anchors, train_dataset=rows)
    plain = make_trainer(tmp_path / "b", projection=with_surrogate(), train_dataset=rows)
    losses = []
    for trainer in (ahead, plain):
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert len(set(losses[0])) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_one_process_with_several_gpus_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(RTDTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"sees 2 GPUs.*`accelerate launch`.*CUDA_VISIBLE_DEVICES"):
        make_trainer(tmp_path)


def test_text_longer_than_the_encoder_is_cut(tmp_path):
    model = tiny_text_model(CLIPTextModelForRTD, max_position_embeddings=16)
    rows = [{**row, "conditioning_caption": "is red " * 30} for row in tiny_triplets(8)]
    trainer = make_trainer(tmp_path, model=model, train_dataset=rows, max_steps=1)
    # One less than in the padded form, whose rows hold the inner EOS too: the same text is cut.
    assert trainer.data_collator(rows)["packed_rows"][0].longest[1] == 15
    assert trainer.train().global_step == 1
    trainer = make_trainer(tmp_path, model=model, train_dataset=rows, max_steps=1, packing=False)
    assert trainer.data_collator(rows)["input_ids"].shape == (8, 16)
    assert trainer.train().global_step == 1
    assert make_trainer(tmp_path, max_length=12, packing=False).data_collator(rows)["input_ids"].shape == (8, 12)


# ------------------------------------------------------------------------------------------ decay, logs, accumulation
def test_weight_decay_is_on_every_parameter(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.create_optimizer()
    groups = [group for group in trainer.optimizer.param_groups if group["params"]]
    assert [group["weight_decay"] for group in groups] == [0.01]
    assert len(groups[0]["params"]) == len(list(trainer.model.parameters()))
    # A token that no text holds has no gradient, so each step multiplies its row by 1 - lr * decay.
    trainer = make_trainer(tmp_path, learning_rate=0.1, weight_decay=0.5)
    row = trainer.model.get_input_embeddings().weight[tiny_tokenizer().convert_tokens_to_ids("triangle</w>")]
    start = row.detach().clone()
    trainer.train()
    torch.testing.assert_close(row.detach(), start * (1 - 0.1 * 0.5) ** 3)


def test_logs_are_means_since_the_last_one(tmp_path):
    trainer = make_trainer(tmp_path, trainer_class=Recording, max_steps=6, logging_steps=3, rows=24)
    trainer.train()
    assert len(trainer.seen) == 6 and all(training for training, _, _ in trainer.seen)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 2
    for row, seen in zip(logged, (trainer.seen[:3], trainer.seen[3:]), strict=True):
        assert row["loss"] == pytest.approx(sum(loss for _, loss, _ in seen) / 3, rel=1e-5)
        cosines = [cosine for _, _, batch in seen for cosine in batch]
        assert row["target_similarity"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-4)
        assert -1 <= row["target_similarity"] <= 1
    assert logged[0]["target_similarity"] != logged[1]["target_similarity"]


@pytest.mark.parametrize("refined_batch", [True, False])
def test_target_similarity_is_of_the_composed_prompts(tmp_path, refined_batch):
    trainer = make_trainer(tmp_path, trainer_class=Recording, refined_batch=refined_batch, max_steps=1)
    trainer.train()
    ((_, _, cosines),) = trainer.seen
    assert trainer.state.log_history[0]["target_similarity"] == pytest.approx(sum(cosines) / 4, rel=1e-4)


def test_no_key_of_a_batch_is_named_labels(tmp_path):
    trainer = make_trainer(tmp_path)
    assert "labels" not in collated(trainer) and trainer.label_names == []


def test_accumulation_averages_the_micro_batches(tmp_path):
    options = {"optim": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "max_steps": 1}
    options |= {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 2}
    trainer = make_trainer(tmp_path / "trained", trainer_class=Recording, **options)
    start = weights_of(trainer.model)
    trainer.train()

    by_hand = make_trainer(tmp_path / "by-hand")
    by_hand.model.train()
    losses = []
    for first in (0, 4):  # the noise of the second micro-batch is the second of the step
        batch = by_hand.data_collator(tiny_triplets(12)[first : first + 4])
        losses.append(by_hand.compute_loss(by_hand.model, batch))
    gradients = torch.autograd.grad(sum(losses) / 2, list(by_hand.model.parameters()))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(loss.item() for loss in losses) / 2, rel=1e-5)
    assert losses[0].item() != losses[1].item()
    for (name, weight), gradient in zip(trainer.model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(start[name] - weight.detach(), gradient, rtol=1e-3, atol=1e-5)
        assert gradient.abs().max() > 1e-3 or name.endswith("k_proj.bias")


def test_checkpointed_activations_and_bf16_train(tmp_path):
    plain = run(tmp_path / "plain", max_steps=2)
    checkpointed = run(tmp_path / "checkpointed", max_steps=2, gradient_checkpointing=True)
    bf16 = run(tmp_path / "bf16", max_steps=2, bf16=True)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-4, atol=1e-5)
        assert bf16[name].dtype == torch.float32 and torch.isfinite(bf16[name]).all()


# -------------------------------------------------------------------------------------------------- several processes
def train_for_processes(folder, batch_size, *, lora, **options):
    """Four AdamW steps over rows in their order; returns the weights and the losses of every step."""
    torch.manual_seed(7)
    trainer = make_trainer(
        folder,
        lora=lora,
        rows=24,
        max_steps=4,
        per_device_train_batch_size=batch_size,
        noise_type="none",
        train_sampling_strategy="sequential",
        eval_dataset=tiny_triplets(6),
        per_device_eval_batch_size=2,
        evaluators=[lambda model: {"scale": plain_embeds(model).norm().item()}],
        **options,
    )
    start = weights_of(trainer.model)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    logged = [{name: row[name] for name in ("loss", "target_similarity")} for row in rows]
    # Three batches of two, however many processes: a second process repeats one, which must not count twice.
    metrics = {name: value for name, value in trainer.evaluate().items() if name in ("eval_loss", "eval_scale")}
    return {"start": start, "end": weights_of(trainer.model), "logged": logged, "metrics": metrics}


@pytest.mark.slow
@pytest.mark.parametrize("mini_batches", [False, True], ids=["whole", "mini-batches"])
@LORA_KINDS
def test_two_processes_are_one_with_the_whole_batch(tmp_path, lora, mini_batches):
    kinds = [name for name, chosen in (("lora", lora), ("mini-batches", mini_batches)) if chosen]
    run_on_processes(2, Path(__file__), str(tmp_path), *kinds)
    halves = [torch.load(tmp_path / f"rank{number}.pt") for number in range(2)]
    assert all(half["world_size"] == 2 for half in halves)
    whole = train_for_processes(tmp_path / "whole", 6, lora=lora)
    assert len(whole["logged"]) == 4
    for half in halves:
        for found, expected in zip(half["logged"], whole["logged"], strict=True):
            assert found == pytest.approx(expected, rel=1e-5)
        assert half["metrics"] == pytest.approx(whole["metrics"], rel=1e-5)
        assert half["end"].keys() == whole["end"].keys()
        for name, weight in whole["end"].items():
            moved = (weight - whole["start"][name]).abs().max()
            if name.endswith("k_proj.bias"):
                continue  # no true gradient: Adam makes steps out of rounding errors
            assert (half["end"][name] - weight).abs().max() < 2e-6, name
            assert moved > 1e-3 or (lora and "lora_" not in name)
    assert same(halves[0]["end"], halves[1]["end"])


def main(folder, *kind):
    """What each process of the test above runs."""
    options = {"mini_batch_size": 2} if "mini-batches" in kind else {}
    found = train_for_processes(Path(folder) / "halves", 3, lora="lora" in kind, **options)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.save({**found, "world_size": world_size}, Path(folder) / f"rank{rank}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
