"""The fast forms of a run end where the plain form ends: packed rows, mini-batches, anchors computed ahead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers import tiny_text_model, tiny_tokenizer, tiny_triplets
from test_trainer import make_trainer, run, same, weights_of

import rtd_hf
from rtd_hf import CLIPTextModelForRTD, RTDTrainer, precompute_anchors


def trained(folder, **options):
    """By plain gradient descent: AdamW steps in the direction of rounding errors too, where a gradient is zero."""
    torch.manual_seed(7)  # the adapters are drawn before the trainer seeds
    return run(folder, rows=24, **{"per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.1, **options})


def distance(left, right):
    """The largest difference of any weight."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def store(folder, model=None, rows=24, **options):
    model = model or tiny_text_model(CLIPTextModelForRTD)
    return precompute_anchors(tiny_triplets(rows), model, tiny_tokenizer(), folder, **options)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("form", ["packed", "mini-batches of 3", "mini-batches of 1", "anchors ahead"])
def test_a_fast_run_ends_where_the_plain_one_ends(tmp_path, form, lora):
    plain = trained(tmp_path / "plain", packing=False, lora=lora)
    start = trained(tmp_path / "start", packing=False, lora=lora, learning_rate=0.0)
    options = {"mini_batch_size": int(form[-1])} if form.startswith("mini") else {}
    if form == "anchors ahead":
        options = {"anchors": store(tmp_path / "anchors")}
    fast = trained(tmp_path / "fast", lora=lora, **options)
    moved = distance(plain, start)
    assert moved > 0.01
    assert distance(fast, plain) < 1e-4 * moved


def test_losses_of_the_forms_agree_step_by_step(tmp_path):
    def losses(**options):
        trainer = make_trainer(tmp_path, rows=24, per_device_train_batch_size=8, **options)
        trainer.train()
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]

    plain = losses(packing=False)
    assert len(plain) == 3 and len(set(plain)) == 3
    for options in ({}, {"mini_batch_size": 3}, {"anchors": store(tmp_path / "anchors")}):
        assert losses(**options) == pytest.approx(plain, rel=1e-5)


# --------------------------------------------------------------------------------------------- anchors computed ahead
def test_with_anchors_the_frozen_encoder_is_neither_kept_nor_run(tmp_path, monkeypatch):
    anchors = store(tmp_path / "anchors")
    trainer = make_trainer(tmp_path, anchors=anchors, rows=24)
    assert trainer.anchor_model is None
    batch = trainer.data_collator(tiny_triplets(4))
    assert not [name for name in batch if name.startswith("anchor_")]
    captions = [row[f"{kind}_caption"] for kind in ("target", "reference") for row in tiny_triplets(4)]
    assert torch.equal(batch["anchors"], anchors.lookup(captions))
    calls = []
    monkeypatch.setattr(
        trainer.model, "forward", lambda *a, f=trainer.model.forward, **k: calls.append(1) or f(*a, **k)
    )
    trainer.train()
    assert len(calls) == 3


def test_noise_on_anchors_computed_ahead_is_drawn_anew_in_every_epoch(tmp_path):
    trainer = make_trainer(tmp_path, anchors=store(tmp_path / "anchors"), rows=24)
    seen = []
    trainer.project_references = lambda model, inputs, anchors: (
        seen.append(trainer._noise_like(anchors)) or trainer.projection(anchors.chunk(2)[1])
    )
    trainer.train()
    assert not torch.equal(seen[0], seen[1])


def test_anchors_of_another_encoder_are_refused(tmp_path):
    other = tiny_text_model(CLIPTextModelForRTD)
    with torch.no_grad():
        other.text_projection.weight[0, 0] += 1
    with pytest.raises(ValueError, match="encoder"):
        make_trainer(tmp_path, anchors=store(tmp_path / "anchors", other))


def test_a_caption_without_an_anchor_stops_the_run(tmp_path):
    rows = [{**row, "target_caption": "never seen before"} for row in tiny_triplets(24)]
    trainer = make_trainer(tmp_path, anchors=store(tmp_path / "anchors"), train_dataset=Dataset.from_list(rows))
    with pytest.raises(ValueError, match="never seen before|precompute_anchors"):
        trainer.train()


def test_moving_targets_are_encoded_although_there_are_anchors(tmp_path):
    anchors = store(tmp_path / "anchors")
    moving = trained(tmp_path / "one", anchored=False, anchors=anchors)
    plain = trained(tmp_path / "two", anchored=False, packing=False)
    apart = distance(plain, trained(tmp_path / "three", anchors=anchors))
    assert apart > 1e-3
    assert distance(moving, plain) < 1e-3 * apart


@pytest.mark.parametrize("lora", [False, {"lora_dropout": 0.3}], ids=["full", "lora"])
def test_resumed_with_anchors_and_mini_batches(tmp_path, lora):
    options = {"anchors": store(tmp_path / "anchors"), "mini_batch_size": 3, "lora": lora}
    whole = trained(tmp_path / "whole", **options)
    assert not same(trained(tmp_path / "stopped", stop=3, **options), whole)
    resumed = trained(tmp_path / "stopped", resume=str(tmp_path / "stopped" / "checkpoint-3"), **options)
    assert same(resumed, whole)


def test_anchors_serve_the_evaluation_too(tmp_path):
    anchors = store(tmp_path / "anchors")
    results = []
    for options in ({"anchors": anchors}, {"packing": False}):
        trainer = make_trainer(tmp_path, eval_dataset=tiny_triplets(9), rows=24, **options)
        results.append(trainer.evaluate()["eval_loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


# ------------------------------------------------------------------------------------------------- dropout, and memory
def test_rows_draw_their_own_dropout(tmp_path):
    trainer = make_trainer(tmp_path, lora={"lora_dropout": 0.3})
    rows = trainer.data_collator(tiny_triplets(4))["packed_rows"][0]
    assert rows.num_nodes == rows.num_tokens  # nothing is shared
    rows = make_trainer(tmp_path, lora=True).data_collator(tiny_triplets(4))["packed_rows"][0]
    assert rows.num_nodes < rows.num_tokens


def test_an_encoder_that_takes_no_packed_rows_is_trained_in_the_padded_form(tmp_path):
    model = tiny_text_model(CLIPTextModelForRTD, attention_dropout=0.1)
    trainer = make_trainer(tmp_path, model=model)
    assert "input_ids" in trainer.data_collator(tiny_triplets(4))
    assert trainer.train().global_step == 3
    with pytest.raises(ValueError, match="`mini_batch_size` needs packed rows"):
        make_trainer(tmp_path, model=model, mini_batch_size=2)


class OutOfMemory(RTDTrainer):
    """A card that holds no more than two triplets at once."""

    def encode_queries(self, model, inputs, words):
        triplets = len(inputs["text_ids"]) // 2
        self.tried = [*getattr(self, "tried", []), triplets]
        if triplets > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().encode_queries(model, inputs, words)


def test_auto_find_batch_size_finds_one(tmp_path):
    trainer = make_trainer(tmp_path, trainer_class=OutOfMemory, auto_find_batch_size=True)
    start = weights_of(trainer.model)
    assert trainer.train().global_step == 3
    assert trainer.tried == [4, 3, 2, 2, 2]
    assert not same(weights_of(trainer.model), start)


MEMORY = """
import sys
from helpers import tiny_projection, tiny_text_model, tiny_tokenizer, tiny_triplets
from datasets import Dataset
import rtd_hf
from rtd_hf import CLIPTextModelForRTD, RTDTrainer, RTDTrainingArguments

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def train(folder):
    rows = Dataset.load_from_disk(folder)
    options = RTDTrainingArguments(output_dir="unused", max_steps=2, per_device_train_batch_size=4, use_cpu=True,
                                   save_strategy="no", report_to="none", disable_tqdm=True)
    RTDTrainer(tiny_text_model(CLIPTextModelForRTD), options, projection=tiny_projection(),
               processing_class=tiny_tokenizer(), train_dataset=rows).train()

small, large = sys.argv[1:]
train(small)
before = anonymous()
train(large)
print("grown", anonymous() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_grows_by_the_order_of_the_rows_alone(tmp_path):
    """The texts stay on the disk. What is kept of a row is its place in the shuffled order, 40 bytes or so."""
    number = 400_000
    rows = Dataset.from_list(tiny_triplets(24))
    rows.save_to_disk(tmp_path / "small")
    many = {name: list(rows[name]) * (number // 24) for name in rows.column_names}
    Dataset.from_dict(many).save_to_disk(tmp_path / "large")
    code = [sys.executable, "-c", MEMORY, str(tmp_path / "small"), str(tmp_path / "large")]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(rtd_hf.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.rsplit("grown ", 1)[1].split()[0])
    assert grown < 60 * number
