"""Run by `test_interruptions.py`: trains, is killed twenty times at random moments, and goes on until the end."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from datasets import disable_progress_bars
from helpers import tiny_trainer

from rtd_hf.interruptions import last_checkpoint


STEPS, KILLS = 24, 20


def trainer_for(folder: Path, **more):
    """A run that saves after each step and evaluates after every second one."""
    saving = {"save_steps": 1, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 2}
    return tiny_trainer(folder, max_steps=STEPS, eval_rows=8, **{**saving, **more})


def attempt(folder: Path) -> None:
    """Trains from the last whole checkpoint to the end, and says so with a file."""
    trainer = trainer_for(folder)
    (folder / "began").touch()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    torch.save(dict(trainer.trained_encoder().state_dict()), folder / "end.part")
    os.replace(folder / "end.part", folder / "end.pt")


def main(root: str) -> None:
    """Forks each attempt, for imports take longer than a training."""
    rng, kills, unfinished, run = random.Random(0), 0, 0, 0
    while kills < KILLS:
        run += 1
        folder = Path(root) / f"run{run}"
        folder.mkdir()
        while not (folder / "end.pt").exists():
            (folder / "began").unlink(missing_ok=True)
            child = os.fork()
            if child == 0:
                attempt(folder)
                os._exit(0)
            while not (folder / "began").exists():
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.8))
            if kills < KILLS:
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            kills += os.WIFSIGNALED(status)
            if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
                raise SystemExit(f"attempt failed with {status}")
            latest = max((int(one.name.rpartition("-")[2]) for one in folder.glob("checkpoint-*")), default=0)
            whole = last_checkpoint(folder)
            unfinished += bool(latest) and whole != str(folder / f"checkpoint-{latest}")
    sys.stdout.write(f"{kills} kills, {run} runs, {unfinished} half-written checkpoints\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bars()
    main(sys.argv[1])
