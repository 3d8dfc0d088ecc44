"""Runs that are told to stop, and runs that are killed: what they leave behind, and where they go on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interruption_worker import KILLS, STEPS, trainer_for
from processes import leave, run_on_processes
from transformers import TrainerCallback

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


def main(folder: str) -> None:
    """What each process of the test above runs: the second is told, the first is not."""
    trainer = trainer_for(Path(folder) / "run", callbacks=[Signal(3, rank=1)])
    trainer.train()
    found = {"step": trainer.state.global_step, "preempted": trainer.preempted}
    torch.save(found, Path(folder) / f"rank{trainer.args.process_index}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
