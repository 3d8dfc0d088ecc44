"""RTD's options alone, without HF's: importing this module costs nothing, so `--help` answers at once."""

import math
from dataclasses import dataclass, field
from typing import Literal


LOSS_TYPES = ("nt_xent", "info_nce")
NOISE_TYPES = ("scaled_gaussian", "gaussian", "none")


@dataclass
class RTDOptions:
    """What [`RTDTrainingArguments`] adds to HF's `TrainingArguments`, and the defaults it changes.

    Raises:
        ValueError: If an option is out of its range; the message names the option.
    """

    # Hugging Face defaults that differ
    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Learning-rate schedule."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay, on every parameter."})
    max_steps: int = field(default=2000, metadata={"help": "Training steps; -1 leaves it to `num_train_epochs`."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Triplets a step and process."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Triplets an evaluation batch."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator reads the columns."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, smaller batch."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: a non-finite loss is an error."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log lines."})

    # The loss
    temperature: float = field(
        default=0.07, metadata={"help": "Temperature of the contrastive loss (the paper's tau)."}
    )
    loss_type: Literal["nt_xent", "info_nce"] = field(
        default="nt_xent",
        metadata={"help": "`nt_xent` over all 2N queries and anchors (published), or symmetric `info_nce`."},
    )
    mask_duplicates: bool = field(
        default=False, metadata={"help": "Leave equal captions of a batch out of each other's negatives."}
    )
    gather_across_devices: bool = field(
        default=True, metadata={"help": "Use the other processes' rows as negatives, with gradient."}
    )
    anchored: bool = field(
        default=True,
        metadata={"help": "Targets from the frozen encoder; off only for the ablation with moving targets."},
    )

    # The batch
    refined_batch: bool = field(
        default=True, metadata={"help": "Also train the bare prompt towards the reference caption (hard negatives)."}
    )
    refined_concatenation: bool = field(
        default=True, metadata={"help": "Pseudo-word of the reference caption; off: its literal words in the prompt."}
    )
    noise_scale: float = field(
        default=0.5, metadata={"help": "Scale of the noise on the reference embedding (sigma)."}
    )
    noise_type: Literal["scaled_gaussian", "gaussian", "none"] = field(
        default="scaled_gaussian",
        metadata={"help": "`scaled_gaussian`: Gaussian times one U(0, 1) a row (published); `gaussian`; or `none`."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Longest text in tokens, BOS and EOS included; the encoder's own when not given."},
    )

    force_projection: bool = field(
        default=False,
        metadata={"help": "Train with a projection although it names another base model than the text encoder."},
    )

    # The end
    stop_when: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rules that end the training early, with a checkpoint, each in quotes and any of them enough: "
            "`METRIC<BOUND`, `METRIC>BOUND`, `METRIC:no_gain` (not above its best value; `no_gain=0.5`: not by more "
            "than 0.5) or `METRIC:no_drop` (not below it, for losses); `:N` behind it: N times in a row. Metrics are "
            "named as in the log. Such as `query_similarity>0.95:3` `eval_shapes_recall@10:no_gain:5`."
        },
    )

    # The Hub
    hub_license: str | None = field(
        default=None, metadata={"help": "Licence of what is pushed, such as `mit`; required with `push_to_hub`."}
    )

    # The machine
    packing: bool = field(
        default=True,
        metadata={"help": "Encode texts without padding and shared prefixes once; off: padded rows, same result."},
    )
    mini_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Triplets encoded at once; gradients and negatives stay those of the whole batch (GradCache)."
        },
    )

    def __post_init__(self):
        for name, choices in (("loss_type", LOSS_TYPES), ("noise_type", NOISE_TYPES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        for name in ("temperature", "noise_scale"):
            try:  # YAML reads `5e-1` as text
                setattr(self, name, float(getattr(self, name)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"`{name}` must be a number, got {getattr(self, name)!r}.") from error
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be above 0 and finite, got {self.temperature}.")
        if not 0 <= self.noise_scale < math.inf:
            raise ValueError(f"`noise_scale` must not be negative and be finite, got {self.noise_scale}.")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"`mini_batch_size` must be at least 1, got {self.mini_batch_size}.")
        if self.mini_batch_size is not None and not self.packing:
            raise ValueError("`mini_batch_size` needs `packing`, which is switched off.")
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                "`per_device_train_batch_size` must be at least 2, because the other rows are the negatives, got "
                f"{self.per_device_train_batch_size}."
            )
