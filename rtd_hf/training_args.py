"""Options of an RTD run: what the paper adds to HF's `TrainingArguments`, and the published defaults."""

from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from .options import RTDOptions
from .stopping import check_rules


class TokenStaysOut:
    """Arguments that are saved, pickled and copied without the Hub's token: HF writes them into every checkpoint."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "hub_token": None}


@dataclass(repr=False)  # HF's own, which shows no token
class RTDTrainingArguments(TokenStaysOut, RTDOptions, TrainingArguments):
    """HF [`~transformers.TrainingArguments`] plus the options of RTD (Byun et al., ICCV 2025, arXiv 2406.09188).

    Every option is described by its `help` string, in [`RTDOptions`]. These defaults of HF differ here, and are the
    published recipe: `learning_rate` 1e-5, `lr_scheduler_type` `"constant"`, `weight_decay` 0.01 on every parameter,
    `max_steps` 2000, `per_device_train_batch_size` 128. These differ because a contrastive loss over text triplets
    needs them: `remove_unused_columns` False (the columns are texts), `dataloader_drop_last` True (a padded last batch
    repeats rows, which would be false negatives; evaluation keeps it), `logging_nan_inf_filter` False (a non-finite
    loss stops the run). And `per_device_eval_batch_size` is 128, `logging_steps` 50.

    Raises:
        ValueError: If an option is out of its range; the message names the option.
    """

    def __post_init__(self):
        RTDOptions.__post_init__(self)
        TrainingArguments.__post_init__(self)
        if self.accelerator_config.dispatch_batches is None:
            # Of a stream, one process would read for all and cut their parts out of its tensors; packed rows are none.
            self.accelerator_config.dispatch_batches = False
        if isinstance(self.stop_when, str):
            self.stop_when = [self.stop_when]
        strategies = {"evaluates": self.eval_strategy, "logs": self.logging_strategy}
        check_rules(self.stop_when or (), **{name: value != "no" for name, value in strategies.items()})
