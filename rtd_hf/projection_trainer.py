"""`ProjectionTrainer`: fits a projection in HF's `Trainer`; what it is fitted with is its objective."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from .distributed import rank
from .faults import KeepsState
from .objectives import ProjectionObjective
from .projections import ImageToWordProjection
from .training_args import TokenStaysOut


@dataclass(repr=False)  # HF's own, which shows no token
class ProjectionTrainingArguments(TokenStaysOut, TrainingArguments):
    """HF [`~transformers.TrainingArguments`] with the defaults that any objective needs.

    What a method's authors published is in its objective's `training_defaults`; use [`~published`]. The columns of
    rows are kept, an incomplete last batch is dropped (its rows would be padded with false negatives), and a loss that
    is not finite stops the run.
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator reads the columns."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, smaller batch."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: a non-finite loss is an error."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log lines."})

    @classmethod
    def published(cls, objective: type[ProjectionObjective], **options: Any) -> "ProjectionTrainingArguments":
        """The published arguments of a method, and `options` over them."""
        return cls(**{**objective.training_defaults, **options})


class KeyedRows(Dataset):
    """
    A data set whose rows know what to draw their random choices with: seed, epoch and place.

    So a resumed run draws what the uninterrupted one did, in any number of workers.

    Args:
        dataset (`Dataset`): Rows, each a mapping.
        seed (`int`): Another seed draws anew.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers may outlive an epoch

    def set_epoch(self, epoch: int) -> None:
        """Rows draw anew from here on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "key": f"{self.seed} {int(self._epoch)} {index}"}


class _Epochs(TrainerCallback):
    """Tells the rows which epoch it is."""

    def __init__(self, rows: KeyedRows):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        """HF calls it before the epoch's first batch is made."""
        self.rows.set_epoch(int(state.epoch or 0))


class ProjectionTrainer(KeepsState, Trainer):
    """Fits an image-to-word projection. The towers are frozen, so only the projection moves.

    Resumes, runs on several processes, and saves as any `Trainer`. The whole step is in the objective; it calls the
    projection through the wrapper that `Trainer` hands in, so that gradients are synchronised.

    Args:
        model ([`ImageToWordProjection`]): The projection to fit.
        args ([`ProjectionTrainingArguments`]): Options.
        objective ([`ProjectionObjective`]): What it is fitted with. Its towers are moved to the device.
        train_dataset (`Dataset`): Rows with the entries that the objective needs.
        eval_dataset (`Dataset`, *optional*): Held-back rows for the evaluation loss.
        evaluators (`Sequence[Callable]`, *optional*): Callables `() -> {metric: float}`, such as a [`CIREvaluator`]
            whose retriever holds `model`. Their metrics join HF's, prefixed `eval_`.
        kwargs: Passed to [`~transformers.Trainer`].

    Raises:
        TypeError: `model` is no projection.
        ValueError: there are fewer rows than one step takes, one process is to drive several GPUs, or `push_to_hub`.
        FloatingPointError: In training, as soon as the loss is not finite.
    """

    def __init__(
        self,
        model: ImageToWordProjection,
        args: ProjectionTrainingArguments,
        *,
        objective: ProjectionObjective,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        evaluators: Sequence[Callable[[], Mapping[str, float]]] = (),
        **kwargs: Any,
    ):
        if not isinstance(model, ImageToWordProjection):
            raise TypeError(f"`model` must be an `ImageToWordProjection`, but is a {type(model).__name__}.")
        if args.push_to_hub:
            raise ValueError(
                "`push_to_hub` is not for projections: HF's `Trainer` would upload `training_args.bin`, which holds "
                "your token in plain text. A projection is published with the text encoder it was trained for "
                "(`examples/push_to_hub.py`), or alone by its own `push_to_hub(repo_id, private=True)`."
            )
        _check(train_dataset, args)
        rows = None if train_dataset is None else KeyedRows(train_dataset, args.seed)
        self.objective, self.evaluators = objective, tuple(evaluators)
        self._parts: dict[str, dict[str, list[torch.Tensor]]] = {mode: defaultdict(list) for mode in ("train", "eval")}
        self._draw_key: tuple[str, int] = ("", -1)
        self._draws = 0
        super().__init__(
            model,
            args,
            data_collator=objective.collate,
            train_dataset=rows,
            eval_dataset=None if eval_dataset is None else KeyedRows(eval_dataset, args.seed),
            **kwargs,
        )
        if rows is not None:
            self.add_callback(_Epochs(rows))
        # The loss is ours, a mean over the batch: no labels, and HF divides it by the accumulation steps.
        self.can_return_loss, self.label_names = True, []
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False
        objective.clip.to(args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """One step: the objective's loss.

        Args:
            model (`nn.Module`): The projection, as accelerate wrapped it.
            inputs (`dict`): A batch of the objective's `collate`.
            return_outputs (`bool`, *optional*, defaults to `False`): Also return the parts of the loss.
            num_items_in_batch (*optional*): Not used; the loss is a mean over the batch.

        Returns:
            `torch.Tensor` (scalar), or with `return_outputs` a tuple of it and a `dict`.
        """
        # accelerate puts the projection under autocast; the frozen towers run at the same precision.
        with self.accelerator.autocast():
            loss, parts = self.objective.loss(model, inputs, self._generator(model))
        if model.training and not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} after {self.state.global_step} steps. Lower `learning_rate` (now "
                f"{self.args.learning_rate:g}), or use bf16 instead of fp16; then resume from the last checkpoint in "
                f"`{self.args.output_dir}`."
            )
        for name, part in parts.items():
            self._parts["train" if model.training else "eval"][name].append(part.detach())
        return (loss, {}) if return_outputs else loss

    def _generator(self, model: nn.Module) -> torch.Generator:
        """Keyed by (seed, step, micro-batch, rank): a resumed run draws what the uninterrupted one did."""
        mode = "train" if model.training else "eval"
        step = self.state.global_step if mode == "train" else 0
        if self._draw_key != (mode, step):
            self._draw_key, self._draws = (mode, step), 0
        key = (self.args.seed, mode == "eval", step, self._draws, rank())
        self._draws += 1
        return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    # What Trainer does around the step

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All parameters, or the matrices alone, as the method's authors have it."""
        parameters = model.named_parameters()
        return [name for name, weight in parameters if self.objective.decays_all or weight.ndim > 1]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """HF's schedule, times the objective's own factor."""
        created = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if created and hasattr(scheduler, "lr_lambdas"):
            a_step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            per_epoch = max(1, len(self.train_dataset) // a_step)
            factor = self.objective.learning_rate_factor
            scheduler.lr_lambdas = [
                lambda step, rate=rate: rate(step) * factor(step / per_epoch) for rate in scheduler.lr_lambdas
            ]
        return scheduler

    def get_eval_dataloader(self, eval_dataset=None):
        """HF's, with every row: `dataloader_drop_last` is meant for training."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        """HF's loop for the evaluation loss, then every evaluator, before HF logs and selects the best model."""
        self._draw_key = ("", -1)  # the noise of an evaluation starts anew
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        for name, value in self._drain("eval").items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        self._measure(output.metrics, metric_key_prefix)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """HF's log with the parts of the loss since the last one, gathered over processes only here."""
        if "loss" in logs:
            logs = {**logs, **self._drain("train")}
        super().log(logs, start_time)

    def _drain(self, mode: str) -> dict[str, float]:
        means = {name: torch.stack(values).mean() for name, values in self._parts[mode].items()}
        self._parts[mode].clear()
        return {name: self.accelerator.gather(value).mean().item() for name, value in means.items()}

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """HF's save, of finite weights only."""
        broken = [name for name, weight in self.model.named_parameters() if not torch.isfinite(weight).all()]
        if broken:
            raise FloatingPointError(
                f"{len(broken)} weights are not finite after {self.state.global_step} steps, first `{broken[0]}`; "
                f"nothing was saved. Lower `learning_rate` (now {self.args.learning_rate:g})."
            )
        super()._save(output_dir, state_dict)


def _check(train_dataset: Dataset | None, args: TrainingArguments) -> None:
    """What would otherwise show after minutes, or not at all: HF trains on a set without a full batch for 0 steps."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, and `DataParallel` would mix up the rows of a batch. Start one "
            f"process per GPU with `accelerate launch`, or show it one GPU with `CUDA_VISIBLE_DEVICES=0`."
        )
    needed = args.train_batch_size * args.world_size
    if train_dataset is not None and args.dataloader_drop_last and len(train_dataset) < needed:
        raise ValueError(
            f"`train_dataset` holds {len(train_dataset)} rows, fewer than the {needed} of one step "
            f"(`per_device_train_batch_size` {args.per_device_train_batch_size} on {args.world_size} process(es)), "
            f"and an incomplete batch is dropped. Lower the batch size or give more rows."
        )
