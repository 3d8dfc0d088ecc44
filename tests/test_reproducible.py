"""The same weights again: from the recipe alone, with any number of workers; rows and noise by seed, step, rank."""

import json
import platform
import runpy
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from helpers import tiny_trainer, tiny_triplets
from processes import leave, run_on_processes

from rtd_hf.trainer import RTDTrainer


EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS, ROWS = 8, 27


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def trained(folder, *, dataset=None, **options):
    """Eight steps, of which six are an epoch."""
    trainer = tiny_trainer(folder, max_steps=STEPS, eval_rows=4, save_strategy="no", **options)
    if dataset is not None:
        trainer.train_dataset = dataset
    trainer.train()
    return weights_of(trainer)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The weights of a training that reads its rows itself."""
    return trained(tmp_path_factory.mktemp("alone"))


# ------------------------------------------------------------------------------------------------------------- workers
@pytest.mark.parametrize(
    "options",
    [
        {"dataloader_num_workers": 1},
        {"dataloader_num_workers": 3},
        {"dataloader_num_workers": 3, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4},
    ],
    ids=["one", "three", "three-that-stay"],
)
def test_workers_change_no_bit(alone, tmp_path, options):
    assert same(trained(tmp_path, **options), alone)


def test_another_seed_is_another_training(alone, tmp_path):
    assert not same(trained(tmp_path, seed=43), alone)


def test_rows_that_are_streamed_are_read_in_their_order_by_any_number_of_workers(tmp_path):
    rows = tiny_triplets(40)
    in_order = {"train_sampling_strategy": "sequential"}
    expected = trained(tmp_path / "map", dataset=Dataset.from_list(rows), **in_order)
    for number in (0, 1, 3):
        stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=1)
        assert same(trained(tmp_path / str(number), dataset=stream, dataloader_num_workers=number), expected), number


# ------------------------------------------------------------------------------------------ seed, step, rank, and rows
class Seen(RTDTrainer):
    """Keeps of every batch its rows and its noise."""

    def _noise_like(self, embeds):
        noise = super()._noise_like(embeds)
        if self.model.training:
            self.noises = [*getattr(self, "noises", []), noise]
        return noise


def record(folder, *, stream=None, **options):
    """The references and the noise of each step of this process."""
    import rtd_hf.trainer

    original, rtd_hf.trainer.RTDTrainer = rtd_hf.trainer.RTDTrainer, Seen
    try:
        trainer = tiny_trainer(folder, max_steps=STEPS, eval_rows=4, save_strategy="no", **options)
    finally:
        rtd_hf.trainer.RTDTrainer = original
    if stream is not None:
        trainer.train_dataset = Dataset.from_list(stream).to_iterable_dataset()
    rows, collate = [], trainer.data_collator

    def collated(batch):
        rows.append([row["reference_caption"] for row in batch])
        return collate(batch)

    trainer.data_collator = collated
    trainer.train()
    return rows[:STEPS], trainer.noises


def test_rows_follow_the_seed_and_not_what_was_drawn_before(tmp_path):
    first, _ = record(tmp_path)
    torch.manual_seed(99)
    again, noise = record(tmp_path)
    other, other_noise = record(tmp_path, seed=43)
    assert again == first != other
    assert sorted(sum(first[:6], []))[:3] != sum(first[:6], [])[:3]  # shuffled
    assert first[:6] != first[6:] + first[:4] and len({*sum(first[:6], [])}) == 24  # an epoch has no row twice
    assert all(not torch.equal(a, b) for a, b in zip(noise, other_noise, strict=True))
    assert all(not torch.equal(noise[i], noise[j]) for i in range(STEPS) for j in range(i))


def test_the_order_of_rows_is_its_own_seeds(tmp_path):
    first, noise = record(tmp_path)
    other, same_noise = record(tmp_path, data_seed=7)
    assert first != other
    assert all(torch.equal(a, b) for a, b in zip(noise, same_noise, strict=True))


@pytest.mark.slow
def test_processes_share_the_rows_of_one_and_draw_noise_of_their_own(tmp_path):
    run_on_processes(2, Path(__file__), str(tmp_path))
    found = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    whole, _ = record(tmp_path / "whole", per_device_train_batch_size=8)
    _, alone = record(tmp_path / "alone")
    for step in range(3):  # an epoch of 27 rows has three steps of eight
        halves = [one["rows"][step] for one in found]
        assert not {*halves[0]} & {*halves[1]} and sorted(sum(halves, [])) == sorted(whole[step])
        assert not torch.equal(found[0]["noise"][step], found[1]["noise"][step])
        # The first process draws what a process alone would: the key holds seed, step and rank, and nothing else.
        assert torch.equal(found[0]["noise"][step], alone[step])
        # A stream is read by each, who takes its own part.
        captions = [row["reference_caption"] for row in tiny_triplets(80)[8 * step : 8 * step + 8]]
        assert [one["stream"][step] for one in found] == [captions[:4], captions[4:]]


def main(folder):
    """What each process of the test above runs."""
    rows, noise = record(Path(folder) / "two")
    stream, _ = record(Path(folder) / "stream", stream=tiny_triplets(80))
    torch.save(
        {"rows": rows, "noise": noise, "stream": stream}, Path(folder) / f"rank{torch.distributed.get_rank()}.pt"
    )
    leave()


# ---------------------------------------------------------------------------------------------------- the recipe alone
def script(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / "train_rtd.py"), *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    try:
        runpy.run_path(str(EXAMPLES / "train_rtd.py"), run_name="__main__")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "utils"]:
            sys.modules.pop(name)


@pytest.mark.parametrize(
    "more",
    [[], pytest.param(["--use_peft", "--lora_r", "2", "--lora_dropout", "0.1"], marks=pytest.mark.slow)],
    ids=["full", "lora"],
)
def test_the_recipe_alone_gives_the_same_bits(tmp_path, monkeypatch, more):
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    arguments = (
        "--max_steps 5 --num_triplets 300 --warmup_steps 1 --per_device_train_batch_size 12 --num_eval_triplets 8 "
        "--eval_steps 2 --logging_steps 1 --noise_scale 0.7 --seed 11 --learning_rate 3e-3 --weight_decay 0.2 "
        "--disable_tqdm true --eval_on_start false --dataloader_num_workers 1 --gradient_accumulation_steps 2 "
        "--watch_alignment shapes,num_images=20"
    ).split()
    # The benchmarks take most of the time, and say nothing here.
    recipe = yaml.safe_load((EXAMPLES / "recipes" / "shapes.yaml").read_text())
    for name in ("benchmarks", "preservation", "validation_benchmark"):
        recipe.pop(name)
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    rules = ["--stop_when", "eval_shapes_captions_caption_similarity<0.2", "grad_norm>1e9:2"]
    script("--config", "mine.yaml", *arguments, *more, *rules, "--output_dir", "first", monkeypatch=monkeypatch)
    Path("mine.yaml").unlink()
    Path("alone.yaml").write_text((Path("first") / "recipe.yaml").read_text())
    written = json.loads((Path("first") / "metrics.json").read_text())
    found = load_file("first/model.safetensors")
    shutil.rmtree("first")  # no `training_args.bin`, no checkpoint
    torch.manual_seed(1234)
    script("--config", "alone.yaml", "--output_dir", "second", monkeypatch=monkeypatch)
    again = json.loads((Path("second") / "metrics.json").read_text())
    assert same(load_file("second/model.safetensors"), found)
    assert again["curve"] == written["curve"] and again["data"] == written["data"]
    assert again["environment"]["versions"] == written["environment"]["versions"]
    check_fingerprint(again)
    second = yaml.safe_load((Path("second") / "recipe.yaml").read_text())
    assert {**second, "output_dir": "first"} == yaml.safe_load(Path("alone.yaml").read_text())


def check_fingerprint(metrics):
    """What the run was made with and on: enough to say why another one differs, and nothing about who made it."""
    environment, data = metrics["environment"], metrics["data"]
    packages = "torch transformers accelerate datasets tokenizers peft numpy pyarrow pillow safetensors".split()
    assert {name: environment["versions"][name] for name in packages} == {name: version(name) for name in packages}
    assert environment["threads"] == torch.get_num_threads() and environment["processes"] == 1
    assert environment["device"] == "cpu" and environment["python"] == platform.python_version()
    assert torch.backends.cpu.get_cpu_capability() in environment["arithmetic"]
    assert data["rows"] == 300 and data["held back"] == 8
    assert len(data["sha256"]) == 64 and data["text encoder"] != data["projection"]
    from rtd_hf import ImageToWordProjection
    from rtd_hf.files import hash_weights
    from rtd_hf.shapes import ASSETS

    projection = ImageToWordProjection.from_pretrained(ASSETS / "lincir")
    assert data["projection"] == hash_weights(projection.state_dict()) and len(data["text encoder"]) == 32
    assert "git" not in json.dumps({**metrics, "card": None}).lower().replace("digit", "")


if __name__ == "__main__":
    main(*sys.argv[1:])
