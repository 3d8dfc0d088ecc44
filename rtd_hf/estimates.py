"""What a training will take of memory, counted on tensors without content before there is anything to train.

Weights, gradients, moments and buckets follow from the configuration. What autograd keeps, and what comes on top of it
for a moment, is measured: the training's own step, on a batch of its own rows, runs on `FakeTensor`s, which have a
size and no content, while [`LiveMemory`] counts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .data_collator import DataCollatorForRTD
from .fake_steps import FakeStep, Phases, build_encoder, saved_by_flash
from .packing import PackedRows
from .preparation import collator_for, encoder_in, writes_words
from .training_args import RTDTrainingArguments


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from .projections import ImageToWordProjection

_HALVES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
ENGINES = ("ddp", "fsdp2", "zero2", "zero3")
# Bytes of an optimizer's state for every trained weight.
OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "sgd": 0}
# A contrastive loss holds so many similarities at once, see `losses`.
_MAX_BLOCK_ELEMENTS = 2**26
# DeepSpeed reduces gradients in buckets of at most so many elements.
_ZERO_BUCKET = 500_000_000


@dataclass(frozen=True)
class TrainingEstimate:
    """
    Memory and work of one process in a step of training. Bytes; AdamW's first step is behind it.

    Args:
        held (`dict[str, int]`): What is there all the time, by its kind.
        peaks (`dict[str, int]`): The most that comes on top of it, by the part of the step; only one is there at once.
        parts (`dict[str, int]`): What stands behind `peaks`: gradients, activations, half-precision copies, the loss.
        tokens (`dict[str, int]`): Of a batch: as padded to the longest row that there may be, without padding, and
            computed, for `prompts` and `captions`.
        flops (`int`): Multiplications and additions of matrix products, in all micro-batches of a step.
        num_parameters, num_trainable (`int`): Of the encoder with its adapters.
        processes (`int`): How many there are.
        engine (`str`): How they share, one of `ENGINES`.
        precision (`str`): `fp32`, `bf16` or `fp16`.
        facts (`dict`): Batch sizes, steps, and what else it was counted for.
    """

    held: Mapping[str, int]
    peaks: Mapping[str, int]
    parts: Mapping[str, int]
    tokens: Mapping[str, Mapping[str, int]]
    flops: int
    num_parameters: int
    num_trainable: int
    processes: int
    engine: str
    precision: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        """All that is there all the time."""
        return sum(self.held.values())

    @property
    def peak_bytes(self) -> int:
        """The most there is at once."""
        return self.held_bytes + max(self.peaks.values())

    @property
    def bytes_per_token_and_layer(self) -> float:
        """Of what autograd keeps, for a token that is computed in a layer."""
        tokens = self.tokens["prompts"]["computed"] * self.facts["layers"]
        return (self.parts["activations"] - self.parts["half-precision copies of weights"]) / tokens


def estimate_training(
    config: "PreTrainedConfig",
    args: RTDTrainingArguments,
    *,
    projection: "ImageToWordProjection",
    tokenizer: "PreTrainedTokenizerBase",
    triplets: Sequence[Mapping[str, str]],
    lora: Any = None,
    anchors_ahead: bool = False,
    processes: int = 1,
    engine: str = "ddp",
    precision: str | None = None,
    device_type: str = "cpu",
) -> TrainingEstimate:
    """
    Counts what a step of RTD takes on each process, without weights and without training.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Of the text encoder.
        args ([`RTDTrainingArguments`]): The training's options.
        projection ([`ImageToWordProjection`]): The projection, on any device; its size and kind count.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        triplets (`Sequence`): At least one batch of text triplets; those of the first batch count.
        lora (`peft.LoraConfig`, *optional*): Adapters that are trained instead of all weights.
        anchors_ahead (`bool`, *optional*, defaults to `False`): The anchors come from an [`AnchorStore`].
        processes (`int`, *optional*, defaults to 1): How many train together.
        engine (`str`, *optional*, defaults to `"ddp"`):
            How they share the weights: `ddp` not at all; `fsdp2` weights, gradients and moments; `zero2` and `zero3`
            by DeepSpeed's arithmetic (Rajbhandari et al., *ZeRO*,
            [arXiv:1910.02054](https://huggingface.co/papers/1910.02054), figure 1).
        precision (`str`, *optional*): `fp32`, `bf16` or `fp16` autocast; what `args` say by default.
        device_type (`str`, *optional*, defaults to `"cpu"`): `cuda` counts the attention that runs there in half
            precision.

    Returns:
        [`TrainingEstimate`]

    Raises:
        ValueError: an option is unknown, there are too few triplets, or the encoder takes no packed rows.
    """
    precision = precision or ("bf16" if args.bf16 else "fp16" if args.fp16 else "fp32")
    model = build_encoder(config, lora=lora)
    _check(model, args, triplets, processes=processes, engine=engine, precision=precision)
    collator = collator_for(model, tokenizer, projection, args, None)
    batch = _batch(collator, triplets[: args.per_device_train_batch_size], anchors_ahead=anchors_ahead)
    half = _HALVES[precision]
    words = writes_words(projection, args)
    reads_frozen = not anchors_ahead or (words and projection.needs_context)
    sharded = engine != "ddp" and processes > 1
    step = FakeStep(config, args, lora=lora, half=half, width=projection.config.output_dim if words else None)
    phases = step.run(batch, drop_gradients=sharded)
    held, passing = _states(model, args, processes=processes, engine=engine, half=half)
    if reads_frozen and lora is None:
        held["frozen copy"] = _size(build_encoder(config))
    held["projection"] = _size(projection)
    if device_type == "cuda" and half is not None and not args.gradient_checkpointing:
        _as_with_flash(phases, saved_by_flash(batch["packed_rows"][0], config, half), passing["gradients"])
    pairs = args.per_device_train_batch_size * (2 if args.refined_batch else 1)
    compared = pairs * (processes if args.gather_across_devices else 1)
    loss = _loss_bytes(pairs, compared, config.projection_dim, args.loss_type)
    peaks = _peaks(phases, passing, loss, config, args, sharded=sharded)
    whole = half is not None and args.mini_batch_size is None and not args.gradient_checkpointing
    return TrainingEstimate(
        held=held,
        peaks=peaks if reads_frozen else {**peaks, "frozen encoder": 0},
        parts={
            "gradients": passing["gradients"],
            "activations": round(phases.kept),
            "half-precision copies of weights": _cast_bytes(encoder_in(model)) if whole else 0,
            "loss": sum(loss),
            "weights gathered at once": passing["gathered"],
        },
        tokens=_tokens(batch, config.max_position_embeddings),
        flops=round(phases.flops) * args.gradient_accumulation_steps,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        num_trainable=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        processes=processes,
        engine=engine,
        precision=precision,
        facts=_facts(config, args, compared=compared, device_type=device_type),
    )


def _facts(config, args, *, compared: int, device_type: str) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "triplets a process": args.per_device_train_batch_size,
        "mini-batch": args.mini_batch_size,
        "micro-batches a step": args.gradient_accumulation_steps,
        "gradient checkpointing": bool(args.gradient_checkpointing),
        "pairs compared": compared,
        "device type": device_type,
    }


def _peaks(phases: Phases, passing, loss: tuple[int, int], config, args, *, sharded: bool) -> dict[str, int]:
    """The phases, with the loss over the pairs of all processes, and what else there is meanwhile."""
    gradients = passing["gradients"]
    counted = _loss_bytes(phases.pairs, phases.pairs, config.projection_dim, args.loss_type)
    # Those of the micro-batches before; in the last of them their sum is what the pass itself was counted with.
    waiting = gradients if args.gradient_accumulation_steps > 1 else 0
    on_top = passing["gathered"] + waiting
    return {
        "frozen encoder": round(phases.frozen) + waiting,
        "forward and loss": round(phases.forward) + sum(loss) - sum(counted) + on_top,
        "backward": round(phases.backward) + loss[0] - counted[0] + on_top + gradients * sharded,
        "optimizer": gradients,
    }


def _as_with_flash(phases: Phases, spared: int, gradients: int) -> None:
    """Takes from the phases what the attention of a GPU does not keep; of mini-batches one is there at a time."""
    if phases.chunks == 1:
        phases.kept -= spared
        phases.forward -= spared
    # At its end the backward pass holds the gradients and no activations.
    phases.backward = max(phases.backward - spared, min(phases.backward, gradients))


def _check(model, args, triplets, *, processes: int, engine: str, precision: str) -> None:
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}, got {engine!r}.")
    if precision not in _HALVES:
        raise ValueError(f"`precision` must be fp32, bf16 or fp16, got {precision!r}.")
    if processes < 1:
        raise ValueError(f"`processes` must be at least 1, got {processes}.")
    if engine.startswith("zero") and precision == "fp32":
        raise ValueError(f"`engine` {engine!r} is counted for weights in half precision. Set `precision` to bf16.")
    if len(triplets) < args.per_device_train_batch_size:
        raise ValueError(
            f"`triplets` holds {len(triplets)} rows, fewer than the {args.per_device_train_batch_size} of one batch. "
            f"Give more, or lower `per_device_train_batch_size`."
        )
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer not in OPTIMIZER_BYTES:
        raise ValueError(
            f"`optim` {optimizer!r} has a memory that is not known here; known are {', '.join(OPTIMIZER_BYTES)}."
        )
    encoder = encoder_in(model)
    if not (args.packing and encoder.takes_packed_rows):
        raise ValueError(
            f"`estimate_training` counts packed rows, and this {type(encoder).__name__} "
            f"{'is to get padded ones' if encoder.takes_packed_rows else 'takes none'}. Measure a few steps instead "
            f"(`examples/train_rtd.py --dry_run 3`)."
        )


def _batch(collator: DataCollatorForRTD, triplets, *, anchors_ahead: bool) -> dict[str, list[PackedRows]]:
    if hasattr(triplets, "column_names"):
        triplets = triplets.to_list()
    elif isinstance(triplets, dict):  # a slice of a `datasets.Dataset`
        triplets = [dict(zip(triplets, row, strict=True)) for row in zip(*triplets.values(), strict=True)]
    batch = collator(triplets)
    if anchors_ahead:
        batch.pop("anchor_packed_rows")
    names = [name for name in batch if name.endswith("packed_rows")]
    for rows in (rows for name in names for rows in batch[name]):
        # Their sizes depend on what the lengths are, so they are laid out while there still are lengths.
        _ = rows.groups, rows.end_groups, rows.longest
    return {name: batch[name] for name in names}


def _size(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _states(model: nn.Module, args, *, processes: int, engine: str, half) -> tuple[dict[str, int], dict[str, int]]:
    """What a process holds of weights and moments; and of gradients, and of gathered weights, for a while."""
    encoder = encoder_in(model)
    total = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    moments = OPTIMIZER_BYTES[str(getattr(args.optim, "value", args.optim))]

    def part(elements: int, size: int) -> int:
        return math.ceil(elements / processes) * size

    if processes == 1 or engine == "ddp":
        held = {"weights": 4 * total, "moments": moments * trained}
        if processes > 1:
            held["DDP's buckets"] = 4 * trained
        return held, {"gradients": 4 * trained, "gathered": 0}
    if engine == "fsdp2":
        layer = sum(weight.numel() for weight in encoder.text_model.encoder.layers[0].parameters())
        number = len(encoder.text_model.encoder.layers)
        size = 4 if half is None else 2
        # All outside the layers stays gathered; of the layers the one at work and the next. Gradients before they
        # are reduced come on top.
        gathered = (total - number * layer + 2 * layer) * size + layer * size
        held = {"weights": part(total, 4), "moments": part(trained, moments)}
        return held, {"gradients": part(trained, 4), "gathered": gathered}
    held = {
        "weights": 2 * total if engine == "zero2" else part(total, 2),
        "moments": part(trained, moments),
        "weights in float32": part(trained, 4),
        "ZeRO's buckets": 2 * min(trained, _ZERO_BUCKET),
    }
    gathered = 0 if engine == "zero2" else 2 * max(weight.numel() for weight in model.parameters())
    return held, {"gradients": part(trained, 2), "gathered": gathered}


def _loss_bytes(rows: int, columns: int, width: int, loss_type: str) -> tuple[int, int]:
    """Of the loss over so many rows and columns: what is kept for the backward pass, and what else it takes."""
    sides = 2 if loss_type == "nt_xent" else 1
    block = min(rows, max(1, _MAX_BLOCK_ELEMENTS // (sides * columns)))
    gathered = 2 * columns * width if columns > rows else 0
    kept = rows * width + sides * columns * width + gathered
    passing = 2 * block * sides * columns + (sides * columns * width if sides == 2 else 0)
    return 4 * kept, 4 * passing


def _cast_bytes(encoder: nn.Module) -> int:
    """Of the copies in half precision that autocast makes of the weights of linear layers."""
    return 2 * sum(
        weight.numel()
        for module in encoder.modules()
        if isinstance(module, nn.Linear)
        for weight in module.parameters(recurse=False)
    )


def _tokens(batch: Mapping[str, list[PackedRows]], longest: int) -> dict[str, dict[str, int]]:
    kinds = {"prompts": "packed_rows", "captions": "anchor_packed_rows", "contexts": "context_packed_rows"}
    return {
        kind: {
            "as padded": sum(rows.prompt_rows.numel() for rows in batch[name]) * longest,
            "without padding": sum(rows.num_tokens for rows in batch[name]),
            "computed": sum(rows.num_nodes for rows in batch[name]),
        }
        for kind, name in kinds.items()
        if name in batch
    }
