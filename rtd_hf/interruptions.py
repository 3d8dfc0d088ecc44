"""Runs that are stopped: by a signal, which they obey after the step, or by a kill, which leaves half a checkpoint."""

import json
import os
import shutil
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .distributed import any_process


logger = logging.get_logger(__name__)

# BSD's EX_TEMPFAIL, "try again later": what a script ends with that was told to stop and can go on.
PREEMPTED_EXIT_CODE = 75
_STATE, _ZIPPED = "trainer_state.json", (".pt", ".pth", ".bin")
_SHARDS = (".metadata", "*_states.pt")  # of FSDP, of DeepSpeed


class StopOnSignal(TrainerCallback):
    """
    On SIGTERM, with which schedulers announce that a machine is taken away, the step is finished, a checkpoint is
    saved, and the training ends. One process that is told is enough: all agree after each step.

    Attributes:
        told (`bool`): Whether this process was.
        stopped (`bool`): Whether the training ended because of it, with a checkpoint.
    """

    def __init__(self):
        self.stopped = self.told = False
        self._previous: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Listens from here; handlers can be set in the main thread only."""
        self.stopped = self.told = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, number: int, frame: Any) -> None:
        self.told = True

    def on_step_end(self, args, state, control, **kwargs):
        """Saves and ends the training where any process was told to."""
        if any_process(self.told, device=args.device):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        """Keeps HF from what it does at the end of a training, which this is not: load the best weights and, with
        `save_total_limit=1`, delete the checkpoint that was just saved."""
        if self.stopped:
            state.best_model_checkpoint = None  # what was written knows it

    def on_train_end(self, args, state, control, **kwargs):
        """Listens no more."""
        self.restore()

    def restore(self) -> None:
        """Puts the handler back that was there before."""
        if self._previous is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


def check_checkpoint(folder: str | os.PathLike, *, processes: int = 1) -> None:
    """
    Makes sure that a training can go on from a checkpoint: that all of it was written.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint.
        processes (`int`, *optional*, defaults to 1): Of the run that wrote it; each leaves a state of its own.

    Raises:
        ValueError: Something is missing or cut off; the message says what.
    """
    folder = Path(folder)
    try:
        json.loads((folder / _STATE).read_text(encoding="utf-8"))  # written last
        for file in folder.iterdir():
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
            elif file.suffix in _ZIPPED and not zipfile.is_zipfile(file):
                raise ValueError(f"`{file.name}` is cut off")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ValueError(
            f"The checkpoint `{folder}` is not whole ({error}), as when a run is killed while it saves. Go on from an "
            f"earlier one, or from `last`, which passes over such checkpoints."
        ) from error
    states = len(list(folder.glob("rng_state_*.pth")))  # a process alone has no number
    if 0 < states < processes:
        raise ValueError(
            f"The checkpoint `{folder}` holds the random states of {states} processes, fewer than the {processes} of "
            f"this run. It is not whole, or was written by fewer processes: start as many as then."
        )


def remove_unfinished(folder: str | os.PathLike, step: int) -> None:
    """
    Removes what kills and full disks left of checkpoints, so that it neither takes room nor counts as one.

    To be called before a checkpoint is written, which is no whole one either while it is: if one of that name was
    there, it loses the file that makes it whole, so that a kill does not leave a mixture that looks like one.

    Args:
        folder (`str` or `os.PathLike`): The run's output folder.
        step (`int`): Of the checkpoint that is going to be written.
    """
    for number, checkpoint in _checkpoints(folder).items():
        if number == step:
            (checkpoint / _STATE).unlink(missing_ok=True)
        elif not _is_finished(checkpoint):
            logger.warning(f"`{checkpoint}` was never finished, and is removed.")
            shutil.rmtree(checkpoint, ignore_errors=True)


def _is_finished(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return True


def check_origin(checkpoint: str | os.PathLike, output_dir: str | os.PathLike) -> None:
    """
    Refuses state in shards that lies elsewhere than in the run's own folder: torch reads it by unpickling, which runs
    what somebody else may have put into it. All other state is read without.

    Args:
        checkpoint (`str` or `os.PathLike`): What is to be resumed.
        output_dir (`str` or `os.PathLike`): The run's folder.

    Raises:
        ValueError: It holds shards and lies elsewhere.
    """
    folder = Path(checkpoint)
    inside = folder.resolve().is_relative_to(Path(output_dir).resolve())
    if inside or not any(any(folder.rglob(pattern)) for pattern in _SHARDS):
        return
    raise ValueError(
        f"The checkpoint `{folder}` holds weights or optimizer state in shards, which torch unpickles: it would run "
        f"whatever its author wrote. If that was you, move it into `output_dir` ({output_dir}) and resume it there; "
        f"if not, start from its weights, which are safe, as `clip_model`."
    )


def _checkpoints(folder: str | os.PathLike) -> dict[int, Path]:
    """The checkpoints of a run by their steps, whole or not."""
    found = {}
    for checkpoint in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = checkpoint.name.rpartition("-")[2]
        if number.isdigit() and checkpoint.is_dir():
            found[int(number)] = checkpoint
    return found


def last_checkpoint(folder: str | os.PathLike, *, processes: int = 1) -> str | None:
    """
    The latest checkpoint of a run that is whole; later ones that are not are named in a warning.

    Args:
        folder (`str` or `os.PathLike`): The run's output folder.
        processes (`int`, *optional*, defaults to 1): Of the run.

    Returns:
        `str`, or `None` where there is none.
    """
    found = _checkpoints(folder)
    for number in sorted(found, reverse=True):
        try:
            check_checkpoint(found[number], processes=processes)
        except ValueError as error:
            logger.warning(f"{error}")
            continue
        return str(found[number])
    return None
