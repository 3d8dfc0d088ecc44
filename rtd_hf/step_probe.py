"""How long a training's step takes on this machine, from a few short steps of a shallow encoder of the same width."""

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from .models import BACKBONES
from .preparation import encoder_in
from .trainer import RTDTrainer
from .training_args import RTDTrainingArguments


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from .projections import ImageToWordProjection

# Layers of the encoders that are timed; what a layer takes is their difference. The last layer is unlike the others.
_LAYERS = (1, 3)
_MAX_TRIPLETS = 64
_MAX_MINI_BATCH = 32


@dataclass(frozen=True)
class StepTime:
    """
    Seconds of a step of training, measured on few layers and extrapolated to all of them.

    Args:
        seconds (`float`): Of a step on one process: all micro-batches and the optimizer.
        pass_seconds (`float`): Of it, forward and backward passes.
        optimizer_seconds (`float`): Of it, clipping and the optimizer.
        cpu_seconds (`float`): CPU time of it, all threads together; less than `seconds` for each where a GPU was
            at work, or other programs had the machine.
        threads (`int`): CPU threads that were at work.
        triplets (`int`): Triplets of the steps that were timed.
        probe_seconds (`float`): How long the measurement took.
    """

    seconds: float
    pass_seconds: float
    optimizer_seconds: float
    cpu_seconds: float
    threads: int
    triplets: int
    probe_seconds: float


def probe_step_seconds(
    config: "PreTrainedConfig",
    args: RTDTrainingArguments,
    *,
    projection: "ImageToWordProjection",
    tokenizer: "PreTrainedTokenizerBase",
    triplets: Sequence[Mapping[str, str]],
    lora: Any = None,
    anchors_ahead: bool = False,
    repeats: int = 3,
) -> StepTime:
    """
    Times [`RTDTrainer`]'s step at the true width with one and with three layers, weights random.

    Of a batch of more than 64 triplets 64 are timed, of mini-batches of more than 32 triplets such of 32, as time goes
    with the tokens. Reading the data, the exchange between processes, evaluations and saves are not in it.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Of the text encoder.
        args ([`RTDTrainingArguments`]): The training's options; its device is the one that is measured.
        projection ([`ImageToWordProjection`]): The projection, with any weights.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        triplets (`Sequence`): Text triplets, at least as many as are timed.
        lora (`peft.LoraConfig`, *optional*): Adapters that are trained instead of all weights.
        anchors_ahead (`bool`, *optional*, defaults to `False`): The anchors come from an [`AnchorStore`].
        repeats (`int`, *optional*, defaults to 3):
            Timed steps, after one that is not; the fastest counts, as other programs may have had the machine.

    Returns:
        [`StepTime`]

    Raises:
        ValueError: there are too few triplets, or `repeats` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
    started, batch_size = time.perf_counter(), args.per_device_train_batch_size
    number = min(batch_size, _MAX_TRIPLETS)
    if len(triplets) < number:
        raise ValueError(f"`triplets` holds {len(triplets)} rows, and {number} are timed. Give more.")
    rows = [triplets[place] for place in range(number)]
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for layers in _LAYERS:
            trainer = _trainer(config, _short(args, folder), layers, projection, tokenizer, copy.deepcopy(lora))
            measured.append(_time(trainer, rows, anchors_ahead=anchors_ahead, repeats=repeats))
            del trainer
    (low, low_step, low_cpu), (high, high_step, high_cpu) = measured
    more = (config.num_hidden_layers - _LAYERS[0]) / (_LAYERS[1] - _LAYERS[0])
    batches = batch_size / number * args.gradient_accumulation_steps
    passes = (low + more * max(0.0, high - low)) * batches
    optimizer = low_step + more * max(0.0, high_step - low_step)
    cpu = low_cpu + more * max(0.0, high_cpu - low_cpu)
    return StepTime(
        seconds=passes + optimizer,
        pass_seconds=passes,
        optimizer_seconds=optimizer,
        cpu_seconds=cpu * (passes + optimizer) / (passes / batches + optimizer),
        threads=torch.get_num_threads(),
        triplets=number,
        probe_seconds=time.perf_counter() - started,
    )


def _short(args: RTDTrainingArguments, folder: str) -> RTDTrainingArguments:
    options = copy.copy(args)
    options.output_dir, options.report_to = folder, []
    options.eval_strategy = options.save_strategy = "no"
    options.push_to_hub = options.load_best_model_at_end = False
    if options.mini_batch_size:
        options.mini_batch_size = min(options.mini_batch_size, _MAX_MINI_BATCH)
    return options


def _trainer(config, args, layers: int, projection, tokenizer, lora) -> RTDTrainer:
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    model = BACKBONES[config.model_type](config).train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        if lora is not None:
            model.enable_input_require_grads()
    return RTDTrainer(model, args, projection=projection, processing_class=tokenizer, peft_config=lora)


def _time(trainer: RTDTrainer, rows: list, *, anchors_ahead: bool, repeats: int) -> tuple[float, float, float]:
    """Seconds of the passes, of clipping with the optimizer, and of the CPU in both: the least of several steps."""
    model: nn.Module = trainer.model.to(trainer.args.device).train()
    wait: Callable[[], None] = torch.cuda.synchronize if trainer.args.device.type == "cuda" else _nothing
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-8, fused=True)
    times: tuple[list[float], ...] = ([], [], [])
    for _ in range(repeats + 1):
        begun, begun_cpu = time.perf_counter(), time.process_time()
        inputs = send_to_device(trainer.data_collator(rows), trainer.args.device)
        if anchors_ahead:
            for name in [name for name in inputs if name.startswith("anchor_")]:
                inputs.pop(name)
            embeds = torch.randn(2 * len(rows), encoder_in(model).projection_dim, device=trainer.args.device)
            inputs["anchors"] = embeds
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(model, inputs)
        loss.backward()
        wait()
        between = time.perf_counter()
        if trainer.args.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
        optimizer.step()
        wait()
        times[0].append(between - begun)
        times[1].append(time.perf_counter() - between)
        times[2].append(time.process_time() - begun_cpu)
        optimizer.zero_grad()
    return min(times[0][1:]), min(times[1][1:]), min(times[2][1:])


def _nothing() -> None:
    """A CPU has nothing that is still to be done."""
