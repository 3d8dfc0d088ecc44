"""Runs that are told to stop, and runs that are killed: what they leave behind, and where they go on."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from interruption_worker import KILLS, STEPS, trainer_for
from processes import leave, run_on_processes
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from rtd_hf.distributed import any_process
from rtd_hf.interruptions import check_checkpoint, last_checkpoint


class Signal(TrainerCallback):
    """Has this process told to stop while a step is under way."""

    def __init__(self, step, rank=0):
        self.step, self.rank = step, rank

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1 and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: its folder with the last two checkpoints, and its weights."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = trainer_for(folder)
    trainer.train()
    assert not trainer.preempted
    return folder, dict(trainer.model.state_dict())


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_signal_ends_the_run_after_its_step(tmp_path, whole):
    before = signal.getsignal(signal.SIGTERM)
    trainer = trainer_for(tmp_path, callbacks=[Signal(5)], save_steps=100)  # of itself it would save nothing
    trainer.train()
    assert trainer.preempted and trainer.state.global_step == 5
    assert signal.getsignal(signal.SIGTERM) is before
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")

    resumed = trainer_for(tmp_path)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert resumed.state.global_step == STEPS and not resumed.preempted
    assert same(dict(resumed.model.state_dict()), whole[1])


def test_all_processes_stop_where_one_is_told(tmp_path):
    run_on_processes(2, Path(__file__), str(tmp_path))
    found = [torch.load(tmp_path / f"rank{number}.pt") for number in range(2)]
    assert [one["step"] for one in found] == [3, 3] and all(one["preempted"] for one in found)
    # The file that makes a checkpoint whole, and the deletion of earlier ones, wait for the slowest process.
    assert found[0]["saved"] == [True] * 3
    assert last_checkpoint(tmp_path / "run", processes=2) == str(tmp_path / "run" / "checkpoint-3")
    (tmp_path / "run" / "checkpoint-3" / "rng_state_1.pth").unlink()
    with pytest.raises(ValueError, match="random states of 1 processes, fewer than the 2"):
        check_checkpoint(tmp_path / "run" / "checkpoint-3", processes=2)


@pytest.mark.parametrize(
    "file", ["trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_checkpoint_that_was_cut_off_is_passed_over(whole, tmp_path, file, caplog):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    last, earlier = folder / f"checkpoint-{STEPS}", folder / f"checkpoint-{STEPS - 1}"
    assert last_checkpoint(folder) == str(last)
    check_checkpoint(last)
    content = (last / file).read_bytes()
    (last / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"`{last}` is not whole"):
        check_checkpoint(last)
    assert last_checkpoint(folder) == str(earlier)


def test_a_checkpoint_without_its_last_file_is_none(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").unlink()
    (folder / "checkpoint-best").mkdir()
    assert last_checkpoint(folder) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_any_process_on_one():
    assert any_process(True) is True and any_process(False) is False


# ------------------------------------------------------------------------------------- which checkpoints are kept
class Scores:
    """An evaluator whose score is best at a step."""

    def __init__(self, best):
        self.best, self.trainer = best, None

    def __call__(self, encoder):
        return {"score": -abs(self.trainer.state.global_step - self.best)}


def best_of(folder, best, **options):
    scores = Scores(best)
    choice = {"load_best_model_at_end": True, "metric_for_best_model": "eval_score", "greater_is_better": True}
    saving = {"save_steps": 2, "eval_steps": 2, "save_total_limit": 1}
    trainer = trainer_for(folder, evaluators=[scores], **{**choice, **saving, **options})
    trainer.args.max_steps = 8
    scores.trainer = trainer
    return trainer


def steps_in(folder):
    return sorted(int(path.name.rpartition("-")[2]) for path in Path(folder).glob("checkpoint-*"))


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_best_and_the_last_are_kept(tmp_path, limit):
    """Each time a checkpoint is there, the best so far and the newest are among them."""
    seen = []

    class Lists(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(steps_in(tmp_path))

    trainer = best_of(tmp_path, 4, save_total_limit=limit, callbacks=[Lists()])
    trainer.train()
    expected = {
        1: [[2], [4], [4, 6], [4, 8]],
        2: [[2], [2, 4], [4, 6], [4, 8]],
        3: [[2], [2, 4], [2, 4, 6], [4, 6, 8]],
    }
    assert seen == expected[limit]
    weights = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert same(weights, dict(trainer.model.state_dict()))  # and loaded
    assert steps_in(tmp_path) == ([4] if limit == 1 else expected[limit][-1])


@pytest.mark.parametrize("moved", [False, True], ids=["there", "moved"])
def test_a_signal_keeps_the_last_step_beside_the_best(tmp_path, moved):
    folder = tmp_path / "run"
    trainer = best_of(folder, 4, callbacks=[Signal(7)])
    trainer.train()
    assert trainer.preempted and steps_in(folder) == [4, 7]  # HF keeps one alone where a training is over
    state = json.loads((folder / "checkpoint-7" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(folder / "checkpoint-4") and state["best_global_step"] == 4
    if moved:  # to another machine, whose folders have other names
        folder = folder.rename(tmp_path / "elsewhere")
    resumed = best_of(folder, 4)
    resumed.train(resume_from_checkpoint=last_checkpoint(folder))
    assert resumed.state.global_step == 8 and resumed.state.best_model_checkpoint == str(folder / "checkpoint-4")
    assert steps_in(folder) == [4]
    assert same(load_file(folder / "checkpoint-4" / "model.safetensors"), dict(resumed.model.state_dict()))


def test_a_best_checkpoint_that_is_gone(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rtd_hf"), "propagate", True)
    trainer = best_of(tmp_path, 4, callbacks=[Signal(7)])
    trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = best_of(tmp_path, 4)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert any("checkpoint-4` with eval_score " in line and "is gone" in line for line in caplog.messages)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "checkpoint-8") and steps_in(tmp_path) == [8]


@pytest.mark.parametrize("limit", [None, 1])
def test_what_was_never_finished_is_removed_and_does_not_count(tmp_path, whole, limit):
    """No folder left by a kill survives the next save, nor does it push out a whole one, however new it looks."""
    trainer = trainer_for(tmp_path, callbacks=[Signal(5)], save_steps=100)
    trainer.train()
    for step, state in ((4, None), (9, None), (12, '{"global_step":')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"half")
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        os.utime(tmp_path / f"checkpoint-{step}", (time.time() + 3600,) * 2)  # the clock of another machine
    resumed = trainer_for(tmp_path, save_total_limit=limit, callbacks=[Signal(7)], save_steps=6)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert steps_in(tmp_path) == ([7] if limit else [5, 7])
    resumed = trainer_for(tmp_path)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert same(dict(resumed.model.state_dict()), whole[1])


def test_a_checkpoint_that_is_written_again_is_none_meanwhile(tmp_path):
    """A run that goes on from an earlier one writes over later ones; no kill must leave a mixture that looks whole."""
    trainer = trainer_for(tmp_path, save_steps=2, save_total_limit=None, callbacks=[Signal(4)])
    trainer.train()
    check_checkpoint(tmp_path / "checkpoint-4")
    found = []

    class Dies(Exception):
        pass

    again = trainer_for(tmp_path, save_steps=2, save_total_limit=None)

    def dies(*arguments):
        found.append(last_checkpoint(tmp_path))
        raise Dies

    again._save_optimizer_and_scheduler = dies
    with pytest.raises(Dies):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert found == [str(tmp_path / "checkpoint-2")]


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path, whole):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("interruption_worker.py")), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"{KILLS} kills" in done.stdout
    ends = list(tmp_path.glob("run*/end.pt"))
    assert ends and all(same(torch.load(end), whole[1]) for end in ends)


class Looks(TrainerCallback):
    """What of the other process is there when this one has saved."""

    def __init__(self, folder):
        self.folder, self.saved = Path(folder), []

    def on_save(self, args, state, control, **kwargs):
        self.saved.append((self.folder / f"checkpoint-{state.global_step}" / "rng_state_1.pth").is_file())


def main(folder: str) -> None:
    """What each process of the test above runs: the second is told, the first is not; the second is slow to save."""
    looks, save = Looks(Path(folder) / "run"), Trainer._save_rng_state
    trainer = trainer_for(Path(folder) / "run", callbacks=[Signal(3, rank=1), looks])

    def slow(*arguments):
        time.sleep(0.5 * trainer.args.process_index)
        return save(*arguments)

    Trainer._save_rng_state = slow
    trainer.train()
    found = {"step": trainer.state.global_step, "preempted": trainer.preempted, "saved": looks.saved}
    torch.save(found, Path(folder) / f"rank{trainer.args.process_index}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
