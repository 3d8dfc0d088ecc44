"""Faults in the middle of a training: what is saved, what is said, and that it goes on as if nothing had been."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_from_disk
from helpers import tiny_text_model, tiny_tokenizer, tiny_trainer, tiny_triplets
from PIL import Image
from processes import leave, run_on_processes
from test_features import IDS, benchmark_of
from transformers import TrainerCallback
from world_models import random_retriever

from rtd_hf import CIREvaluator, CLIPTextModelForRTD, UnreadableImagesError, precompute_anchors
from rtd_hf.data_files import DataFiles, files_of
from rtd_hf.interruptions import check_checkpoint, last_checkpoint


STEPS = 6


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def adapters(dropout=0.5):
    from peft import LoraConfig

    names = list(CLIPTextModelForRTD.lora_target_modules)
    return LoraConfig(r=2, lora_alpha=4, lora_dropout=dropout, target_modules=names)


def trainer_for(folder, **options):
    """A run that of itself saves nothing, with dropout, so that random states count."""
    options = {"save_steps": 100, "eval_rows": 8, "peft_config": adapters(), **options}
    return tiny_trainer(folder, max_steps=STEPS, **options)


def weights_of(trainer):
    return {name: weight.clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of the run that nothing happens to."""
    trainer = trainer_for(tmp_path_factory.mktemp("whole"), save_strategy="no")
    trainer.train()
    return weights_of(trainer)


def goes_on(folder, step, **options):
    """The weights after the training went on from the checkpoint that a fault left."""
    assert last_checkpoint(folder) == str(folder / f"checkpoint-{step}")
    check_checkpoint(folder / f"checkpoint-{step}")
    trainer = trainer_for(folder, **options)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    assert trainer.state.global_step == STEPS
    return weights_of(trainer)


# ---------------------------------------------------------------------------------------------------------- evaluators
class Evaluator:
    """Measures, or fails, at its n-th call."""

    def __init__(self, answer, *, call=2):
        self.answer, self.call, self.calls = answer, call, 0

    def __call__(self, encoder):
        self.calls += 1
        if self.calls < self.call:
            return {"score": 1.0}
        return self.answer()


def broken():
    raise FileNotFoundError("picture 17 is gone")


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (broken, FileNotFoundError, "picture 17 is gone"),
        (lambda: {"score": float("nan")}, ValueError, "measured nan for `score`, with which no best checkpoint"),
        (lambda: {"score": float("-inf")}, ValueError, "measured -inf for `score`"),
        (lambda: {"score": "high"}, TypeError, "must return numbers, but `score` is 'high'"),
        (lambda: {"score": torch.ones(2)}, TypeError, "must return numbers, but `score` is tensor"),
        (lambda: [1.0], TypeError, "must return a mapping from names to numbers.*returned a list"),
        (lambda: {"loss": 1.0}, ValueError, "measures `loss`, but `eval_loss` is there already.*name of its own"),
    ],
)
def test_an_evaluator_that_fails_loses_no_training(tmp_path, answer, kind, said):
    options = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_for(tmp_path, evaluators=[Evaluator(answer)], **options)
    with pytest.raises(kind, match=said) as caught:
        trainer.train()
    notes = "\n".join(caught.value.__notes__)
    assert "the evaluator `Evaluator` (1 of 1) after step 4, on process 0" in notes
    assert f"state of step 4 was saved. The last whole checkpoint is `{tmp_path}/checkpoint-4`" in notes
    assert "--resume_from_checkpoint last" in notes and "--eval_on_start true" in notes
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # nobody listens any more
    if answer is broken:
        # An evaluation draws a number itself, so it is compared with a run that has them.
        other = trainer_for(tmp_path / "other", evaluators=[Evaluator(broken, call=99)], save_strategy="no", **options)
        other.train()
        assert same(goes_on(tmp_path, 4, evaluators=[Evaluator(broken, call=99)], **options), weights_of(other))


def test_two_evaluators_with_one_name(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1, eval_rows=8, evaluators=[lambda e: {"r": 1}, lambda e: {"r": 2}])
    with pytest.raises(ValueError, match="measures `r`, but `eval_r` is there already, from another evaluator"):
        trainer.evaluate()
    trainer.evaluators = trainer.evaluators[:1]
    found = trainer.evaluate()  # a tensor without dimensions is a number as well
    assert found["eval_r"] == 1.0 and not (tmp_path / "checkpoint-0").exists()


# --------------------------------------------------------------------------------------------------- steps and memory
def test_a_step_that_fails_is_repeated_to_the_last_bit(tmp_path, whole):
    trainer = trainer_for(tmp_path)
    encode = trainer.encode_queries

    def fails(*arguments):
        queries = encode(*arguments)  # dropout is drawn
        if trainer.state.global_step == 3:
            raise RuntimeError("the driver is gone")
        return queries

    trainer.encode_queries = fails
    with pytest.raises(RuntimeError, match="the driver is gone"):
        trainer.train()
    assert same(goes_on(tmp_path, 3), whole)


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_memory_that_does_not_suffice(tmp_path, mini_batch_size):
    trainer = tiny_trainer(tmp_path, max_steps=4, eval_rows=8, save_steps=1, mini_batch_size=mini_batch_size)
    encode = trainer.encode_queries
    trainer.encode_queries = lambda *rest: (
        torch.empty(1 << 50) if trainer.state.global_step == 2 else encode(*rest)  # a petabyte
    )
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        trainer.train()
    said = f"Set `mini_batch_size` to {1 if mini_batch_size else 2} (now {mini_batch_size or 'all'} of the 4 triplets"
    assert said in "\n".join(caught.value.__notes__)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_what_cannot_be_saved_is_not(tmp_path):
    trainer = trainer_for(tmp_path / "numbers")
    trainer.encode_queries = lambda *rest: torch.full((8, 24), float("nan"), requires_grad=True)
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert last_checkpoint(tmp_path / "numbers") is None

    class Breaks(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise OSError("in the middle of it")

    trainer = trainer_for(tmp_path / "moving", callbacks=[Breaks()], save_steps=2)
    with pytest.raises(OSError, match="in the middle of it") as caught:
        trainer.train()
    assert last_checkpoint(tmp_path / "moving") == str(tmp_path / "moving" / "checkpoint-2")
    assert "checkpoint-2` goes on" in caught.value.__notes__[-1] or "checkpoint-2'" in caught.value.__notes__[-1]
    assert "was saved" not in caught.value.__notes__[-1]

    trainer = trainer_for(tmp_path / "arguments")
    with pytest.raises(ValueError, match="checkpoint") as caught:
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    assert not hasattr(caught.value, "__notes__")


# ------------------------------------------------------------------------------------------------------------- workers
def kill_workers():
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.3)


def test_a_worker_that_is_killed(tmp_path, whole):
    trainer = trainer_for(tmp_path, dataloader_num_workers=1, callbacks=[At(3, kill_workers)])
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*(killed|exited)") as caught:
        trainer.train()
    notes = "\n".join(caught.value.__notes__)
    assert "Lower `dataloader_num_workers` (now 1)" in notes and "state of step" in notes
    step = int(Path(last_checkpoint(tmp_path)).name.rpartition("-")[2])
    assert step in (2, 3)  # the signal may come before the third step has ended
    assert same(goes_on(tmp_path, step), whole)


def test_a_scheduler_that_tells_workers_too(tmp_path, whole):
    def everybody():
        # Not by this process: what comes from their parent, workers take for the end of their work.
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)
        time.sleep(0.3)

    trainer = trainer_for(tmp_path, dataloader_num_workers=1, callbacks=[At(3, everybody)])
    trainer.train()
    assert trainer.preempted and trainer.state.global_step == 3
    assert same(goes_on(tmp_path, 3), whole)


def test_a_worker_that_raises(tmp_path, whole):
    rows = Dataset.from_list(tiny_triplets(27))
    trainer = trainer_for(tmp_path, dataloader_num_workers=1)

    def bad(batch):
        if any("blue" in text for text in batch["reference_caption"]):
            raise KeyError("row 7 has no caption")
        return batch

    trainer.train_dataset = rows.with_transform(bad)
    with pytest.raises(KeyError, match="row 7 has no caption") as caught:
        trainer.train()
    step = trainer.state.global_step
    if step:
        assert f"state of step {step} was saved" in caught.value.__notes__[-1]
        assert same(goes_on(tmp_path, step), whole)


# --------------------------------------------------------------------------------------------------------- data files
@pytest.fixture
def on_disk(tmp_path):
    """A memory-mapped data set, its file, and a trainer for it."""
    Dataset.from_list(tiny_triplets(27)).save_to_disk(tmp_path / "rows")
    rows = load_from_disk(tmp_path / "rows")
    (file,) = files_of(rows)
    return rows, file


def test_a_data_file_that_is_cut_off(tmp_path, on_disk, whole):
    rows, file = on_disk
    content = file.read_bytes()
    trainer = trainer_for(tmp_path / "run", callbacks=[At(3, lambda: os.truncate(file, 1000))])
    trainer.train_dataset = rows
    trainer._progress.data_files = DataFiles([rows])
    with pytest.raises(
        OSError, match=rf"`{file}`.*was cut off: it has 1,000 bytes, and had {len(content):,}"
    ) as caught:
        trainer.train()
    assert "state of step 3 was saved" in caught.value.__notes__[-1]
    file.write_bytes(content)
    assert same(goes_on(tmp_path / "run", 3), whole)


def test_a_data_file_that_is_deleted_or_replaced(tmp_path, on_disk, whole, caplog, monkeypatch):
    import logging

    rows, file = on_disk
    monkeypatch.setattr(logging.getLogger("rtd_hf"), "propagate", True)
    trainer = trainer_for(tmp_path / "run", callbacks=[At(2, file.unlink)], save_strategy="no")
    trainer.train_dataset = rows
    trainer._progress.data_files = DataFiles([rows])
    trainer.train()
    assert same(weights_of(trainer), whole)
    assert sum("was deleted. This run goes on" in line for line in caplog.messages) == 1
    watch = DataFiles([])
    watch._known = {file: os.stat(tmp_path)}
    file.write_bytes(b"")
    watch.check()
    assert any("was replaced" in line for line in caplog.messages)


def test_which_files_are_looked_after(tmp_path, on_disk):
    rows, file = on_disk
    model = tiny_text_model(CLIPTextModelForRTD)
    anchors = precompute_anchors(rows, model, tiny_tokenizer(), tmp_path / "anchors")
    assert {path.name for path in files_of(anchors)} == {"part-00000.arrow", "index-00001.arrow"}
    assert files_of({"a": rows.select(range(5)), "b": None}) == [file] == files_of(torch.utils.data.Subset(rows, [1]))
    assert files_of(Dataset.from_list(tiny_triplets(2))) == [] == files_of([1, 2])
    trainer = trainer_for(tmp_path / "run", save_strategy="no")
    assert trainer._progress.data_files.paths == ()
    trainer.data_collator.anchors = anchors
    assert len(type(trainer._progress)(DataFiles([anchors, rows])).data_files.paths) == 3
    part = next(path for path in files_of(anchors) if path.name.startswith("part"))
    watch = DataFiles([anchors])
    os.truncate(part, 100)
    with pytest.raises(OSError, match="part-00000.arrow.*was cut off"):
        watch.check()


def test_pictures_that_vanish(tmp_path):
    """Between evaluations nothing of them is read; before the first, the error names them."""
    for image_id in IDS:
        Image.new("RGB", (40, 40), (20 * IDS.index(image_id), 9, 0)).save(tmp_path / f"{image_id}.png")
    retriever = random_retriever()
    evaluator = CIREvaluator(benchmark_of(tmp_path), retriever, features=tmp_path / "features")
    first = evaluator()
    shutil.rmtree(tmp_path / "features")
    for image_id in IDS:
        (tmp_path / f"{image_id}.png").unlink()
    assert evaluator() == first
    trainer = trainer_for(
        tmp_path / "run",
        eval_strategy="steps",
        eval_steps=2,
        evaluators=[lambda encoder: CIREvaluator(benchmark_of(tmp_path), retriever)()],
    )
    with pytest.raises(UnreadableImagesError, match="p0") as caught:
        trainer.train()
    assert "state of step 2 was saved" in caught.value.__notes__[-1]


# --------------------------------------------------------------------------------------------------- several processes
class OnOne:
    """Fails on one process; the other is done, or waits for it in the middle of its own measuring."""

    def __init__(self, rank, *, waits=False):
        self.rank, self.waits = rank, waits

    def __call__(self, encoder):
        import torch.distributed as dist

        if dist.get_rank() == self.rank:
            raise FileNotFoundError(f"picture 17 is gone on process {self.rank}")
        if self.waits:
            dist.all_reduce(torch.zeros(3))
        return {"score": 1.0}


def fail_on_processes(folder: Path, case: str) -> None:
    measured = {"eval_strategy": "steps", "eval_steps": 2}
    if case == "worker":
        kill = [At(2, kill_workers)] if os.environ["RANK"] == "1" else []
        options = {"dataloader_num_workers": 1, "callbacks": kill}
    else:
        evaluators = {"alone": OnOne(1), "first": OnOne(0), "waits": OnOne(1, waits=True)}
        options = {"evaluators": [evaluators[case]], **measured}
    trainer = trainer_for(folder / case, peft_config=adapters(0.0), **options)
    trainer.train()


def compare_on_processes(folder: Path, case: str) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "peft_config": adapters(0.0)}
    ends = []
    for checkpoint in (None, last_checkpoint(folder / case, processes=2)):
        trainer = trainer_for(folder / "other", **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        ends.append(weights_of(trainer))
    torch.save(same(*ends), folder / f"same{trainer.args.process_index}.pt")
    leave()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("alone", "Process 1 could not go on after step 2. evaluator `OnOne`: FileNotFoundError: picture 17 is gone"),
        ("first", "Process 0 could not go on after step 2. evaluator `OnOne`: FileNotFoundError: picture 17 is gone"),
        ("waits", "picture 17 is gone on process 1"),
        ("worker", "A worker of the data loader was killed"),
    ],
)
def test_a_fault_on_one_of_two_processes_ends_both(tmp_path, case, said):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    start = time.monotonic()
    done = subprocess.run([*command, "fail", str(tmp_path), case], env=environment, capture_output=True, text=True,
                          timeout=150)  # fmt: skip
    seconds = time.monotonic() - start
    assert done.returncode == 1 and said in done.stderr, done.stderr[-5000:]
    assert "The state of step 2 was saved." in done.stderr
    assert seconds < 90  # most of it imports; gloo's own limit would be half an hour
    assert last_checkpoint(tmp_path / case, processes=2) == str(tmp_path / case / "checkpoint-2")
    if case == "waits":
        run_on_processes(2, Path(__file__), "compare", str(tmp_path), case)
        assert all(torch.load(tmp_path / f"same{number}.pt") for number in range(2))


if __name__ == "__main__":
    {"fail": fail_on_processes, "compare": compare_on_processes}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
