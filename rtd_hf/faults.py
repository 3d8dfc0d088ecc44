"""Trainings that something goes wrong in: their state is saved before the error leaves, which says where to go on."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput
from transformers.utils import logging

from .data_files import DataFiles
from .distributed import outcomes_of_all, rank, world_size
from .files import NoRoomError, first_line, free_bytes, lacks_room, readable_bytes, room_for
from .interruptions import StopOnSignal, check_checkpoint, check_origin, last_checkpoint, remove_unfinished
from .sharding import is_sharded


logger = logging.get_logger(__name__)

_STATE = "trainer_state.json"
_SECONDS_FOR_OTHERS = 10.0


class _Progress(TrainerCallback):
    """How far a training is, and so whether its state can be saved; and whether it could go on at all."""

    def __init__(self, data_files: DataFiles):
        self.data_files = data_files
        self.reset()

    def reset(self) -> None:
        """Nothing has begun."""
        self.began: int | None = None
        self.saving = False
        # The step that began, and that whose weights began to move: later ones than the step count says.
        self._begun, self._moved = -1, -1
        self._random: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Takes up what the checkpoint says of the best one, and looks whether there is room for more."""
        self.began = state.global_step
        _find_best(args, state)
        if args.should_save and model is not None:
            _warn_of_room(model, args, state)

    def on_step_begin(self, args, state, control, **kwargs):
        """Keeps what dropout is drawn from, so that a step that fails can be repeated to the last bit."""
        self._random = {"cpu": torch.get_rng_state()}
        if args.device.type == "cuda":
            self._random["cuda"] = torch.cuda.get_rng_state(args.device)
        self._begun = state.global_step + 1

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """From here on the weights are neither those of one step nor of the next, until HF counts it."""
        self._moved = state.global_step + 1

    def on_step_end(self, args, state, control, **kwargs):
        """The batch of the next step was read before, so no step is taken with what a file that was cut off gave."""
        self.data_files.check()

    def in_step(self, state) -> bool:
        """Whether a step has begun and is not finished."""
        return self._begun > state.global_step

    def weights_move(self, state) -> bool:
        """Whether that went as far as to the weights."""
        return self._moved > state.global_step

    def rewind(self, state) -> None:
        """Sets the random states back to the last step's end."""
        if self.in_step(state):
            torch.set_rng_state(self._random["cpu"])
            if "cuda" in self._random:
                torch.cuda.set_rng_state(self._random["cuda"])


class KeepsState:
    """HF's `Trainer` methods for when something goes wrong; for a trainer with `evaluators`, before `Trainer`.

    An error that ends a training (of an evaluator, of a worker of the data loader, of a file that vanished, of memory)
    first has the state of the last finished step saved as a checkpoint, and then leaves as it is, with notes on what
    to do and where the training goes on. On several processes each saves its own part without waiting for others,
    which may be blocked; weights in shards cannot be saved so, and the earlier checkpoint counts. Nothing is saved
    after an error of arithmetic (the state may be what is wrong), while weights move, and where there is no room.

    A checkpoint that does not fit on the disk is removed; earlier ones are deleted only when it is whole.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.interruption = StopOnSignal()
        self.add_callback(self.interruption)
        sources = (self.train_dataset, self.eval_dataset, getattr(self.data_collator, "anchors", None))
        self._progress = _Progress(DataFiles(sources))
        self.add_callback(self._progress)
        self._evaluations = 0

    @property
    def preempted(self) -> bool:
        """Whether SIGTERM ended the training; then a checkpoint of the last step was saved."""
        return self.interruption.stopped

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """HF's, of shards of this run only; what is wrong leaves behind a checkpoint, see [`KeepsState`]."""
        if resume_from_checkpoint and not isinstance(resume_from_checkpoint, bool):
            check_origin(resume_from_checkpoint, self.args.output_dir)
        self._progress.reset()
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        except Exception as error:
            if self._progress.began is None:  # of the arguments
                raise
            saved = self._rescue(error)
            if saved and self.interruption.told and "DataLoader worker" in str(error):
                # Schedulers tell all processes, and the workers of the data loader obey at once.
                self.interruption.stopped = True
                return TrainOutput(self.state.global_step, math.nan, {})
            raise
        finally:
            self.interruption.restore()

    # Saving

    def _save_checkpoint(self, model, trial) -> None:
        """HF's, in a clean folder, whole or not there."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            remove_unfinished(folder.parent, self.state.global_step)
        self._progress.saving = True
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            if not lacks_room(error):
                raise
            # What is removed may still be held open by who wrote it, and count as taken.
            written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            free = free_bytes(folder) + written
            if self.args.should_save:
                remove_unfinished(folder.parent, -1)
            raise self._no_room(error, folder, free) from error
        self._progress.saving = False

    def _save_rng_state(self, output_dir: str) -> None:
        """HF's, which all processes have done before the first makes the checkpoint whole and deletes earlier ones."""
        super()._save_rng_state(output_dir)
        if self._progress.saving:
            self.accelerator.wait_for_everyone()

    def _no_room(self, error: Exception, folder: Path, free: int) -> NoRoomError:
        needed = readable_bytes(checkpoint_bytes(self.model, self.args))
        limit = self.args.save_total_limit
        return NoRoomError(
            f"The checkpoint of step {self.state.global_step} could not be written to `{folder}`: the disk is full, "
            f"or a quota or a limit on the size of files is used up ({first_line(error)}). It takes about {needed}; "
            f"{readable_bytes(free)} are free there now that what was written of it is removed. Make room: "
            f"`save_total_limit` (now {limit or 'none'}) and `save_only_model` lower what a run keeps. "
            f"{self._where_to_go_on()}"
        )

    def _rescue(self, error: Exception) -> bool:
        """Saves the state of the last finished step, if that can be done, and notes on the error what was done."""
        progress, step = self._progress, self.state.global_step
        for note in (*_advice(error, self.args, in_step=progress.in_step(self.state)), progress.data_files.fault()):
            if note and note not in str(error):
                error.add_note(note)
        if isinstance(error, NoRoomError) and progress.saving:
            return False  # it says all this
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        hopeless = isinstance(error, ArithmeticError) or progress.saving or progress.weights_move(self.state)
        spread = is_sharded(self.model) or self.is_fsdp_enabled or self.is_deepspeed_enabled
        saved = False
        if step > progress.began and not hopeless and not spread and not (folder / _STATE).is_file():
            try:
                progress.rewind(self.state)
                with room_for(f"The checkpoint `{folder}`", folder):
                    self._save_alone(folder)
                saved = True
            except Exception as fault:
                if self.args.should_save:
                    remove_unfinished(folder.parent, -1)
                error.add_note(f"The state of step {step} could not be saved: {first_line(fault)}")
        if self.args.should_save:
            error.add_note(f"{f'The state of step {step} was saved. ' if saved else ''}{self._where_to_go_on()}")
        return saved

    def _save_alone(self, folder: Path) -> None:
        """What [`~Trainer._save_checkpoint`] does, but nothing that waits for other processes, nor for the Hub."""
        args = self.args
        if args.should_save:
            remove_unfinished(folder.parent, self.state.global_step)
            self.save_model(str(folder), _internal_call=True)
            if not args.save_only_model:
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
        if not args.save_only_model:
            self._save_rng_state(str(folder))
        if not args.should_save:
            return
        for callback in (*self.callback_handler.callbacks, self.control):
            kept = self.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and not isinstance(kept, list):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        if world_size() > 1 and not args.save_only_model:
            _wait_for(lambda: len(list(folder.glob("rng_state_*"))) >= world_size())
        self.state.save_to_json(str(folder / _STATE))
        check_checkpoint(folder, processes=1 if args.save_only_model else world_size())

    def _where_to_go_on(self) -> str:
        last = last_checkpoint(self.args.output_dir, processes=world_size())
        if last is None:
            return f"There is no whole checkpoint in `{self.args.output_dir}` to go on from."
        return (
            f"The last whole checkpoint is `{last}`: `--resume_from_checkpoint last` of the script, or "
            f"`train(resume_from_checkpoint={str(last)!r})`, goes on from there."
        )

    # Evaluators

    def _measure(self, metrics: dict[str, float], prefix: str, *arguments: Any) -> None:
        """Calls all evaluators and adds what they measured, under `prefix`, or raises on all processes.

        Args:
            metrics (`dict[str, float]`): What is known already, such as the loss.
            prefix (`str`): Such as `eval`.
            arguments: For the evaluators.

        Raises:
            TypeError, ValueError: An evaluator returned something else than new names with finite numbers.
            RuntimeError: An evaluator failed on another process.
        """
        if not self.evaluators:
            return
        self._evaluations += 1
        meeting = f"rtd_hf evaluation {self._evaluations}"
        for number, evaluator in enumerate(self.evaluators):
            name = _name_of(evaluator)
            try:
                _add(metrics, evaluator(*arguments), prefix, name)
            except Exception as error:
                error.add_note(
                    f"This was the evaluator {name} ({number + 1} of {len(self.evaluators)}) after step "
                    f"{self.state.global_step}, on process {rank()}. A training that goes on behind this step does "
                    f"not measure it again, unless you add `--eval_on_start true`."
                )
                outcomes_of_all(f"evaluator {name}: {type(error).__name__}: {error}", meeting, wait=False)
                raise
        for number, outcome in enumerate(outcomes_of_all("", meeting)):
            if outcome:
                raise RuntimeError(f"Process {number} could not go on after step {self.state.global_step}. {outcome}")


def _name_of(evaluator: Callable) -> str:
    benchmark = getattr(getattr(evaluator, "benchmark", None), "name", None) or getattr(evaluator, "name", None)
    kind = getattr(evaluator, "__qualname__", type(evaluator).__name__)
    return f"`{kind}`" + (f" of `{benchmark}`" if benchmark else "")


def _add(metrics: dict[str, float], found: object, prefix: str, name: str) -> None:
    if not isinstance(found, Mapping):
        raise TypeError(
            f"The evaluator {name} must return a mapping from names to numbers, such as `{{'recall@10': 31.5}}`, but "
            f"returned a {type(found).__name__}."
        )
    for key, value in found.items():
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            shown = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
            raise TypeError(
                f"The evaluator {name} must return numbers, but `{key}` is {shown}. Return a float for each name."
            ) from error
        if not math.isfinite(number):
            raise ValueError(
                f"The evaluator {name} measured {number} for `{key}`, with which no best checkpoint can be chosen. "
                f"Leave a metric out where there is nothing to measure, and look at the weights where there is."
            )
        if f"{prefix}_{key}" in metrics:
            raise ValueError(
                f"The evaluator {name} measures `{key}`, but `{prefix}_{key}` is there already, from another "
                f"evaluator or from the trainer itself. Give each benchmark a name of its own."
            )
        metrics[f"{prefix}_{key}"] = number


def _advice(error: Exception, args, *, in_step: bool) -> Iterable[str]:
    """What a user can do about errors of the machine."""
    said = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
        if not in_step:
            yield "The memory did not suffice outside of a training step: lower `per_device_eval_batch_size`."
        elif hasattr(args, "mini_batch_size"):
            rows = max(1, (args.mini_batch_size or args.per_device_train_batch_size) // 2)
            yield (
                f"The memory did not suffice for a training step. Set `mini_batch_size` to {rows} (now "
                f"{args.mini_batch_size or 'all'} of the {args.per_device_train_batch_size} triplets at once): it "
                f"changes neither the gradients nor the number of negatives. `gradient_checkpointing` and `bf16` "
                f"help too."
            )
        else:
            rows = max(1, args.per_device_train_batch_size // 2)
            yield (
                f"The memory did not suffice for a training step. Lower `per_device_train_batch_size` to {rows}, or "
                f"use `bf16`."
            )
    if "DataLoader worker" in said and ("killed" in said or "exited" in said):
        yield (
            f"A worker of the data loader was killed: mostly by the system, when the machine's memory was used up "
            f"(`dmesg` says so), or by somebody. Lower `dataloader_num_workers` (now {args.dataloader_num_workers})."
        )


# Room


def checkpoint_bytes(model: torch.nn.Module, args) -> int:
    """
    About how many bytes a checkpoint takes, without the files that are small.

    Args:
        model (`nn.Module`): The model in training, with or without adapters.
        args (`TrainingArguments`): `optim` and `save_only_model` count.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    trained = sum(weight.numel() * weight.element_size() for weight in weights)
    states = 0 if args.save_only_model else 2 if "adam" in str(getattr(args.optim, "value", args.optim)) else 1
    whole = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    adapters = hasattr(model, "disable_adapter")  # the merged encoder lies beside them
    return whole + trained * states + (trained if adapters else 0)


def _warn_of_room(model: torch.nn.Module, args, state) -> None:
    """Before hours are spent."""
    if args.save_strategy == SaveStrategy.NO:
        return
    if args.save_strategy == SaveStrategy.EPOCH:
        saves = math.ceil(state.num_train_epochs)
    else:
        every = state.save_steps if args.save_strategy == SaveStrategy.STEPS else state.eval_steps
        saves = math.ceil((state.max_steps - state.global_step) / (every or 1))
    if args.save_total_limit:  # a new one is written before an old one is deleted
        saves = min(saves, args.save_total_limit + 1 + bool(args.load_best_model_at_end))
    one, free = checkpoint_bytes(model, args), free_bytes(Path(args.output_dir))
    if saves * one > free:
        logger.warning(
            f"`output_dir` {args.output_dir} has {readable_bytes(free)} free, but this run is going to keep up to "
            f"{saves} checkpoints of about {readable_bytes(one)}. Set `save_total_limit` (now "
            f"{args.save_total_limit or 'none'}), `save_only_model` or larger `save_steps`, or make room: a full disk "
            f"ends the run."
        )


def _find_best(args, state) -> None:
    """The best checkpoint lies in this run's folder, whatever the folder was called when it was written."""
    if not args.load_best_model_at_end or state.best_global_step is None:
        return
    best = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
    if best.is_dir():
        state.best_model_checkpoint = str(best)
    elif not state.best_model_checkpoint or not os.path.isdir(state.best_model_checkpoint):
        # HF would go on to compare with a best that nobody has, and load nothing at the end.
        logger.warning(
            f"The best checkpoint so far, `{best}` with {args.metric_for_best_model} {state.best_metric}, is gone. "
            f"The best is chosen among those from here on."
        )
        state.best_model_checkpoint = state.best_metric = state.best_global_step = None


def _wait_for(done: Callable[[], bool]) -> None:
    """A few seconds for what other processes write."""
    end = time.monotonic() + _SECONDS_FOR_OTHERS
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
