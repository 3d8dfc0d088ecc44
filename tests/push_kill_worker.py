"""Run by `test_push_kills.py`: publishes, or trains and pushes, is killed at random moments, and does it again."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import disable_progress_bars
from helpers import tiny_trainer
from transformers import CLIPImageProcessorPil

from rtd_hf import push_repository
from rtd_hf.interruptions import last_checkpoint


STEPS = 6


def trainer_for(folder: Path, repo: str | None, **more):
    """A run that saves after each step, and pushes it where there is a repository."""
    options = {"save_steps": 1, "save_total_limit": 1, "eval_rows": 8}
    if repo:
        options |= {"push_to_hub": True, "hub_model_id": repo, "hub_strategy": "checkpoint"}
        options |= {"hub_always_push": True, "hub_license": "mit"}
    return tiny_trainer(folder, max_steps=STEPS, **{**options, **more})


def publish(folder: Path, repo: str, end: Path, began: Callable[[], None]) -> None:
    began()
    push_repository(folder, repo, license="mit")
    end.touch()


def train(folder: Path, repo: str, end: Path, began: Callable[[], None]) -> None:
    trainer = trainer_for(folder, repo)
    began()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    trainer.push_to_hub(image_processor=processor, base_model="them/clip")
    torch.save(dict(trainer.trained_encoder().state_dict()), f"{end}.part")
    os.replace(f"{end}.part", end)


def main(job: str, repo: str, kills: int, longest: float, folders: list[Path]) -> None:
    """Each folder in turn, until it is done; forks each attempt, for imports take longer than all else."""
    rng, killed, attempts = random.Random(1), 0, 0
    for folder in folders:
        end, mark = Path(f"{folder}.end"), Path(f"{folder}.began")
        wanted = killed + kills // len(folders)
        while not end.exists():
            attempts += 1
            mark.unlink(missing_ok=True)
            child = os.fork()
            if child == 0:
                {"publish": publish, "train": train}[job](folder, repo, end, mark.touch)
                os._exit(0)
            while not mark.exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
            if killed < wanted:
                time.sleep(rng.uniform(0.0, longest))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed += os.WIFSIGNALED(status)
            if not os.WIFSIGNALED(status) and status:
                raise SystemExit(f"attempt {attempts} failed with {status}")
            if end.exists() and killed < wanted:
                end.unlink()  # it was done before the kill: once more
    sys.stdout.write(f"{killed} kills in {attempts} attempts\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bars()
    job, repo, kills, longest, *folders = sys.argv[1:]
    main(job, repo, int(kills), float(longest), [Path(folder) for folder in folders])
