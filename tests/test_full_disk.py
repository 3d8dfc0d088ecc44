"""A disk that is full, a real one where it can be mounted: what is said, what stays whole, and that it goes on."""

import json
import logging
import math
import os
import random
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_projection, tiny_text_model, tiny_tokenizer, tiny_trainer, tiny_triplets
from transformers import CLIPImageProcessorPil, TrainerCallback

from rtd_hf import CLIPTextModelForRTD, precompute_anchors, write_repository, write_triplets
from rtd_hf.faults import checkpoint_bytes
from rtd_hf.feature_files import FeatureFolder, Features
from rtd_hf.files import NoRoomError, lacks_room, room_for, whole_file
from rtd_hf.interruptions import check_checkpoint, last_checkpoint


PAGE = 4096
PLENTY = 64 << 20


class Disk:
    """A file system of its own, whose size can be changed while it is used."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, capture_output=True, text=True)

    def resize(self, size: int) -> None:
        done = self.run("mount", "-o", f"remount,size={size}", str(self.folder))
        assert done.returncode == 0, done.stderr

    def leave(self, pages: int) -> None:
        """Makes it as large as what lies there, and some pages more."""
        used = os.statvfs(self.folder)
        self.resize((used.f_blocks - used.f_bfree + pages) * used.f_frsize)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    done = disk.run("mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", str(folder))
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}; files are limited instead")
    (folder / "first").write_bytes(b"x")  # of size 0 a tmpfs has no bounds
    yield disk
    disk.run("umount", "-l", str(folder))


@contextmanager
def files_up_to(size: int):
    """No file can become larger: what a quota and a full disk look like where nothing can be mounted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class At(TrainerCallback):
    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.action()


def trainer_for(folder, **options):
    return tiny_trainer(folder, max_steps=6, eval_rows=8, **{"save_steps": 2, "save_total_limit": 1, **options})


def weights_of(trainer):
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run whose disk never was full: its weights, and the last checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = trainer_for(folder)
    trainer.train()
    assert [one.name for one in folder.glob("checkpoint-*")] == ["checkpoint-6"]
    return weights_of(trainer), folder / "checkpoint-6"


def pages_of(folder: Path) -> list[int]:
    """Pages of a checkpoint's files, in the order in which they were written."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    return [math.ceil(path.stat().st_size / PAGE) for path in files]


@pytest.mark.parametrize("best", [False, True], ids=["last", "best"])
def test_a_checkpoint_that_does_not_fit(tmp_path, disk, whole, best):
    # The fourth step's is written before the second's is deleted; there is room for one and a half.
    half = sum(pages_of(whole[1])) // 2
    options = {"callbacks": [At(4, lambda: disk.leave(half))]}
    if best:
        options |= {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_for(disk.folder / "run", **options)
    with pytest.raises(NoRoomError) as caught:
        trainer.train()
    said, first = str(caught.value), disk.folder / "run" / "checkpoint-2"
    assert f"checkpoint of step 4 could not be written to `{disk.folder}/run/checkpoint-4`: the disk is full" in said
    assert f"It takes about {checkpoint_bytes(trainer.model, trainer.args) / 1e3:.1f} kB" in said
    (free,) = re.findall(r"([\d.]+) kB are free there now", said)
    assert (
        half * PAGE - 5 * PAGE <= 1000 * float(free) <= half * PAGE + PAGE
    )  # less what folders take, and the ends of pages
    assert "`save_total_limit` (now 1)" in said and f"The last whole checkpoint is `{first}`" in said
    assert "--resume_from_checkpoint last" in said and not getattr(caught.value, "__notes__", [])
    assert [path.name for path in (disk.folder / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    check_checkpoint(first)

    disk.resize(PLENTY)
    options.pop("callbacks")
    resumed = trainer_for(disk.folder / "run", **{**options, "load_best_model_at_end": False})
    resumed.train(resume_from_checkpoint=last_checkpoint(disk.folder / "run"))
    assert resumed.state.global_step == 6
    if not best:  # evaluations draw numbers, but nothing here is drawn from the same source
        assert same(weights_of(resumed), whole[0])


def test_whichever_file_it_is_that_does_not_fit(tmp_path, disk):
    tiny_trainer(tmp_path / "fits", max_steps=1, eval_rows=8, save_steps=1).train()
    pages = pages_of(tmp_path / "fits" / "checkpoint-1")
    found = []
    for number in range(len(pages)):
        folder = disk.folder / f"run{number}"
        trainer = tiny_trainer(folder, max_steps=1, eval_rows=8, save_steps=1)
        disk.leave(sum(pages[:number]) + pages[number] - 1)
        with pytest.raises(NoRoomError, match=r"step 1 could.*There is no whole checkpoint in"):
            trainer.train()
        found.append(list(folder.glob("checkpoint-*")))
        disk.resize(PLENTY)
    assert len(pages) >= 8 and found == [[]] * len(pages)


def test_a_limit_on_the_size_of_files(tmp_path, whole):
    """The same without a mount."""
    large = max(path.stat().st_size for path in whole[1].iterdir())  # the optimizer's state, written after the weights
    with files_up_to(PLENTY):
        trainer = trainer_for(
            tmp_path, callbacks=[At(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (large // 2, -1)))]
        )
        with pytest.raises(NoRoomError, match=r"step 4 could.*limit on the size of files.*checkpoint-2`"):
            trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-4").exists()
    resumed = trainer_for(tmp_path)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert same(weights_of(resumed), whole[0])


def test_the_rescue_of_another_error_does_not_fit(tmp_path, disk):
    def broken(encoder):
        disk.leave(8)
        raise FileNotFoundError("picture 17")

    trainer = tiny_trainer(
        disk.folder / "run", max_steps=4, eval_rows=8, save_steps=1, eval_strategy="steps", eval_steps=3,
        evaluators=[broken],
    )  # fmt: skip
    with pytest.raises(FileNotFoundError, match="picture 17") as caught:
        trainer.train()
    notes = "\n".join(caught.value.__notes__)
    assert "state of step 3 could not be saved: The checkpoint" in notes and "checkpoint-2` goes" not in notes
    assert f"The last whole checkpoint is `{disk.folder}/run/checkpoint-2`" in notes
    assert not (disk.folder / "run" / "checkpoint-3").exists()


# ---------------------------------------------------------------------------------------------- foreseen, not suffered
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_how_much_room_a_checkpoint_takes(tmp_path, lora):
    from peft import LoraConfig

    names = list(CLIPTextModelForRTD.lora_target_modules)
    config = LoraConfig(r=8, target_modules=names) if lora else None
    trainer = tiny_trainer(tmp_path, max_steps=1, eval_rows=8, save_steps=1, peft_config=config)
    trainer.train()
    suffixes = (".safetensors", ".pt")
    files = (tmp_path / "checkpoint-1").rglob("*")
    taken = sum(path.stat().st_size for path in files if path.suffix in suffixes and path.name != "scheduler.pt")
    heads = 60_000 if lora else 40_000  # of three or two files with many small tensors
    assert taken - heads < checkpoint_bytes(trainer.model, trainer.args) <= taken


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({}, 1),
        ({"save_total_limit": None}, 3),
        ({"save_steps": 1}, 2),
        ({"save_steps": 1, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}, 3),
        ({"save_strategy": "no"}, 0),
    ],
)
def test_a_disk_that_is_going_to_be_full(tmp_path, disk, monkeypatch, caplog, options, times):
    monkeypatch.setattr(logging.getLogger("rtd_hf"), "propagate", True)
    options = {"save_steps": 6, "save_total_limit": 1, **options} if "save_total_limit" not in options else {
        "save_steps": 2, **options}  # fmt: skip
    for enough in (False, True) if times else (True,):
        folder = disk.folder / f"run{enough}"
        trainer = trainer_for(folder, **options)
        needed = times * checkpoint_bytes(trainer.model, trainer.args)
        folder.mkdir(exist_ok=True)
        disk.leave(needed // PAGE + (2 if enough else -1))
        caplog.clear()
        trainer._progress.on_train_begin(trainer.args, state_of(trainer), None, model=trainer.model)
        said = [line for line in caplog.messages if "is going to keep up to" in line]
        assert len(said) == (1 if times and not enough else 0)
        if said:
            assert f"up to {times} checkpoints of about" in said[0] and "`save_total_limit`" in said[0]


def state_of(trainer):
    trainer.state.max_steps = 6
    trainer.state.num_train_epochs = 1
    trainer.state.save_steps, trainer.state.eval_steps = trainer.args.save_steps, trainer.args.eval_steps
    return trainer.state


# --------------------------------------------------------------------------------------------------- everything else
def anchors(folder):
    return precompute_anchors(tiny_triplets(27), tiny_text_model(CLIPTextModelForRTD), tiny_tokenizer(), folder / "a")


def rows(folder):
    rng = random.Random(0)  # or it would be compressed away
    return [{**row, "more": "".join(rng.choices("abcdefgh", k=5000))} for row in tiny_triplets(60)]


def repository(folder):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return write_repository(
        folder / "published", tiny_text_model(CLIPTextModelForRTD), tokenizer=tiny_tokenizer(),
        image_processor=processor, projection=tiny_projection(), metrics={}, recipe={}, license="mit",
        base_model="them/clip",
    )  # fmt: skip


def features(folder):
    cache = FeatureFolder(folder / "features", "gallery", ["a", "b"], {"encoder": "one"})
    generator = torch.Generator().manual_seed(0)
    found = Features(torch.randn(200, 400, generator=generator), np.zeros((200, 16), np.uint8))
    cache.write(["a", "b"], found)
    assert torch.equal(cache.read().image_embeds, found.image_embeds)


WRITERS = {
    "anchors": (anchors, "arrow` could not be written", 2),
    "parquet": (lambda folder: write_triplets(rows(folder), folder / "rows.parquet"), "rows.parquet` could not", 1),
    "jsonl": (lambda folder: write_triplets(rows(folder), folder / "rows.jsonl"), "rows.jsonl` could not", 12),
    "features": (features, "safetensors` could not be written", 12),
    "repository": (repository, "The trained encoder could not be written.*takes more than.*last checkpoint leads", 30),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_other_writers(disk, kind):
    write, said, pages = WRITERS[kind]
    disk.leave(pages)
    with pytest.raises(NoRoomError, match=said) as caught:
        write(disk.folder)
    assert "are free there now; nothing half-written was kept. Make room" in str(caught.value)
    assert not list(disk.folder.rglob("*.tmp")) and not list(disk.folder.rglob("README.md"))
    disk.resize(PLENTY)
    write(disk.folder)


@pytest.mark.parametrize("kind", ["jsonl", "features", "repository"])
def test_other_writers_without_a_mount(tmp_path, kind):
    write, said, _ = WRITERS[kind]
    with files_up_to(50_000), pytest.raises(NoRoomError, match=said):
        write(tmp_path)
    write(tmp_path)


CACHE = """
import sys
from utils.parts import load_triplets
from utils.arguments import one_screen_errors

with one_screen_errors():
    print(len(load_triplets(sys.argv[1], None, 0)))
"""


def test_the_cache_of_datasets(tmp_path, disk):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(tmp_path)))
    root = Path(__file__).parents[1]
    cache = disk.folder / "cache"
    environment = {
        **os.environ, "HF_DATASETS_CACHE": str(cache), "PYTHONPATH": f"{root}:{root / 'examples'}",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip

    def load():
        command = [sys.executable, "-c", CACHE, str(file)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    disk.leave(8)
    done = load()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "NoRoomError: The cache of `datasets` could not be written" in done.stderr
    assert f"`{cache}`" in done.stderr and "set `HF_DATASETS_CACHE` to a folder on another disk" in done.stderr
    disk.resize(PLENTY)
    assert load().stdout.strip() == "60"


def test_only_full_disks_are_full_disks(tmp_path):
    with pytest.raises(PermissionError), whole_file(tmp_path / "file"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(ValueError, match="other"), room_for("It", tmp_path):
        raise ValueError("other")
    assert not lacks_room(RuntimeError("CUDA out of memory")) and lacks_room(OSError(28, "No space left on device"))
    try:
        try:
            raise OSError(122, "Disk quota exceeded")
        except OSError as error:
            raise ValueError("generating") from error
    except ValueError as error:
        assert lacks_room(error)
