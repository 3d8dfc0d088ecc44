"""`--estimate` and `--dry_run` of `train_rtd.py`: what a recipe will take, before there is anything to train."""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class PlanArguments:
    estimate: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "here",
            "help": "Print the memory and time that the recipe will take, and stop: `here` (the default: measured on "
            "this machine), or counted for `a100`, `h100` or `h200`. Needs no weights.",
        },
    )
    estimate_size: str | None = field(
        default=None,
        metadata={
            "help": "Size of the CLIP for `--estimate` and `--dry_run` where its configuration is not at hand: `b32`, "
            "`b16`, `l14`, `h14`, `bigg14`, `metaclip_l14`, `metaclip_h14`."
        },
    )
    estimate_launch: str | None = field(
        default=None,
        metadata={"help": "Configuration for `accelerate launch` that `--estimate` counts with; one process without."},
    )
    estimate_share: float = field(
        default=0.3,
        metadata={"help": "Share of a GPU's published rate that `--estimate` assumes a training to reach."},
    )
    dry_run: int | None = field(
        default=None,
        metadata={
            "help": "Train so many steps with random weights of the CLIP's true size and a random projection; "
            "nothing is loaded, saved or pushed."
        },
    )


@dataclass(frozen=True)
class Device:
    """A GPU as its vendor describes it: dense rates in operations a second, bytes of memory, bytes a second."""

    name: str
    rates: dict[str, float]
    memory: float
    bandwidth: float


DEVICES = {
    "a100": Device("NVIDIA A100 SXM 80 GB", {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12}, 80e9, 2.039e12),
    "h100": Device("NVIDIA H100 SXM", {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12}, 80e9, 3.35e12),
    "h200": Device("NVIDIA H200 SXM", {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12}, 141e9, 4.8e12),
}
# Fused AdamW reads weight, gradient and two moments, and writes weight and moments, in float32.
_ADAMW_BYTES = 28
_GIB = 2**30


@dataclass(frozen=True)
class Planned:
    """What a recipe needs that is not a weight."""

    config: Any
    origin: str
    projection: Any
    tokenizer: Any
    triplets: list
    texts: str
    rows: int | None
    lora: Any

    @property
    def parts(self) -> dict[str, Any]:
        """What both the counting and the probe of a step are given."""
        return {name: getattr(self, name) for name in ("projection", "tokenizer", "triplets", "lora")}


def plan(script, model_args, args, *, size: str | None, at_least: int, device: str) -> Planned:
    """The recipe's configuration, projection without content, tokenizer and a few triplets.

    Args:
        script, model_args, args: What `train_rtd.py` was told.
        size (`str`, *optional*): `--estimate_size`.
        at_least (`int`): So many triplets.
        device (`str`): Where the projection is built: `meta` or `cpu`.
    """
    import torch

    from rtd_hf.models import BACKBONES
    from utils.clips import find_config

    config, vision_width, origin = find_config(script.clip_model, size)
    tokenizer, stand_in = _tokenizer(script.clip_model)
    if stand_in:  # its ids are others, and EOS must be where the encoder looks for it
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    with torch.device(device):
        projection = _projection(script, config, vision_width)
    if script.prompt_template:
        projection.use_template(script.prompt_template)
    triplets, rows, texts = _triplets(script, tokenizer, at_least, args.seed, stand_in=stand_in)
    lora = None
    if model_args.use_peft:
        lora = model_args.lora_config(BACKBONES[config.model_type])
    return Planned(config, origin, projection, tokenizer, triplets, texts, rows, lora)


def _tokenizer(clip_model: str):
    """The CLIP's own where it is at hand; else one of CLIP's kind, for texts of words that it knows."""
    from rtd_hf.shapes import ASSETS
    from rtd_hf.shapes.clip import build_tokenizer, world_texts
    from rtd_hf.tokens import load_tokenizer

    name = str(ASSETS / "clip") if clip_model == "shapes" else clip_model
    if Path(name).exists():
        return load_tokenizer(name), False
    try:
        return load_tokenizer(name, local_files_only=True), False
    except OSError:
        return build_tokenizer(world_texts(4000, seed=0)), True


def _projection(script, config, vision_width: int | None):
    """A projection of the recipe's kind with random weights: as it says, as its folder says, or as it is called."""
    from rtd_hf import PROJECTIONS, ImageToWordProjection
    from rtd_hf.projections.configuration import read_projection_type

    name, kind = script.projection, script.projection_type
    if kind is None and name == "shapes":
        kind = "lincir"
    if kind is None and Path(name).is_dir():
        kind = read_projection_type(name, {"subfolder": script.projection_subfolder})
    if kind is None:
        kind = next((known for known in PROJECTIONS if known.replace("_", "-") in name.replace("_", "-")), None)
    if kind is None:
        raise ValueError(
            f"`--projection` {name} does not say of what kind it is. Say `--projection_type`, one of "
            f"{', '.join(PROJECTIONS)}."
        )
    more = {"vision_hidden_size": vision_width} if PROJECTIONS[kind].needs_patches else {}
    return ImageToWordProjection.build(kind, config.projection_dim, config.hidden_size, **more)


def _triplets(script, tokenizer, at_least: int, seed: int, *, stand_in: bool) -> tuple[list, int | None, str]:
    from utils.parts import load_triplets
    from utils.plain_step import draw_triplets

    own = script.triplets == "shapes" or Path(script.triplets).is_file()
    if own:
        number = max(at_least, 2000) if script.triplets == "shapes" else script.num_triplets
        rows = load_triplets(script.triplets, number, seed)
        total = script.num_triplets or (40000 if script.triplets == "shapes" else len(rows))
        if not stand_in and len(rows) >= at_least:
            return rows.shuffle(seed=seed).select(range(at_least)).to_list(), total, f"drawn from {script.triplets}"
        reason = "the CLIP's tokenizer is not at hand" if stand_in else f"{script.triplets} holds only {len(rows)}"
    else:
        total, reason = script.num_triplets, f"{script.triplets} is not at hand"
    drawn = draw_triplets(at_least, tokenizer, seed)
    return drawn, total, f"random words, as long as captions of COCO and conditioning texts are ({reason})"


def show_estimate(options: PlanArguments, script, model_args, args) -> None:
    """Prints the estimate of a recipe, on the first process.

    Raises:
        ValueError: If the device is not known, a share is no share, or something cannot be counted.
    """
    from rtd_hf import estimate_training
    from utils.launches import Launch, read_launch

    wanted = options.estimate.lower()
    if wanted not in ("here", "cpu", *DEVICES):
        raise ValueError(f"`--estimate` must be here, {', '.join(DEVICES)}, got {options.estimate!r}.")
    if not 0 < options.estimate_share <= 1:
        raise ValueError(f"`--estimate_share` must be above 0 and at most 1, got {options.estimate_share}.")
    if args.process_index:  # one of them says it
        return
    launch = read_launch(options.estimate_launch) if options.estimate_launch else Launch()
    needed = args.per_device_train_batch_size
    known = plan(script, model_args, args, size=options.estimate_size, at_least=needed, device="meta")
    device_type = "cuda" if wanted in DEVICES else args.device.type
    estimate = estimate_training(
        known.config,
        args,
        **known.parts,
        anchors_ahead=bool(script.anchors),
        processes=launch.processes,
        engine=launch.engine,
        precision=launch.precision,
        device_type=device_type,
    )
    steps = steps_of(args, known.rows, launch.processes)
    say(f"Estimate for {options.estimate_launch or 'one process'}, without training and without weights.\n")
    say(f"  CLIP       {known.origin}")
    say(f"  encoder    {estimate.num_parameters:,} parameters, {estimate.num_trainable:,} of them trained")
    say(f"  processes  {estimate.processes}" + (f", {estimate.engine}" if estimate.processes > 1 else ""))
    say(f"  precision  {estimate.precision}{'' if estimate.precision == 'fp32' else ' autocast'}")
    say(f"  texts      {known.texts}")
    for kind, tokens in estimate.tokens.items():
        say(f"             {kind}: {tokens['computed']:,} tokens computed a batch, {tokens['as padded']:,} padded")
    say("\n" + memory_table(estimate, DEVICES.get(wanted)))
    if wanted in DEVICES:
        show_counted_time(estimate, DEVICES[wanted], options.estimate_share, steps, tf32=bool(args.tf32))
    else:
        show_measured_time(script, model_args, options, args, estimate, steps)


def steps_of(args, rows: int | None, processes: int) -> int | None:
    """Steps of the whole run; None where they depend on triplets whose number is not known."""
    if args.max_steps > 0:
        return args.max_steps
    if rows is None:
        return None
    batch = args.per_device_train_batch_size * processes * args.gradient_accumulation_steps
    return max(1, rows // batch) * math.ceil(args.num_train_epochs)


def memory_table(estimate, device: Device | None) -> str:
    """The memory of one process by its parts, in GiB."""
    lines = ["Memory of each process, GiB:"]
    lines += [f"  {name:<38}{_gib(size)}" for name, size in estimate.held.items()]
    lines += [f"  {'-- all the time':<38}{_gib(estimate.held_bytes)}"]
    lines += [f"  on top of it, {name:<24}{_gib(size)}" for name, size in estimate.peaks.items()]
    lines += [f"  -- at most{'':<28}{_gib(estimate.peak_bytes)}", "", "Of what comes on top:"]
    lines += [f"  {name:<38}{_gib(size)}" for name, size in estimate.parts.items() if size]
    chunked = estimate.facts["mini-batch"] or estimate.facts["gradient checkpointing"]
    if not chunked:
        lines.append(f"  kept for a token in a layer{estimate.bytes_per_token_and_layer:>18,.0f} bytes")
    lines.append("\nTensors alone: Python and its libraries, and what an allocator or CUDA keeps besides, come to it.")
    if estimate.engine == "fsdp2":
        lines.append("What FSDP2 gathers at once is arithmetic, not measured.")
    elif estimate.engine.startswith("zero"):
        lines.append("DeepSpeed's parts are ZeRO's arithmetic (arXiv:1910.02054), not measured.")
    if device:
        fits = estimate.peak_bytes / device.memory
        lines.append(f"That is {fits:.0%} of the {device.memory / 1e9:.0f} GB of an {device.name}.")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / _GIB:8.3f}"


def show_measured_time(script, model_args, options, args, estimate, steps: int | None) -> None:
    """Time on this machine, from a few steps of few layers."""
    from rtd_hf import probe_step_seconds

    device = str(args.device)
    needed = args.per_device_train_batch_size
    known = plan(script, model_args, args, size=options.estimate_size, at_least=needed, device="cpu")
    found = probe_step_seconds(
        known.config,
        args,
        **known.parts,
        anchors_ahead=bool(script.anchors),
    )
    say(f"\nTime on this machine ({device}, {found.threads} threads), extrapolated from steps of 1 and 3 layers with")
    say(f"{found.triplets} triplets, which took {found.probe_seconds:.0f} s:")
    rest = _time(found.optimizer_seconds)
    say(_line("a step", f"{_time(found.seconds)} (passes {_time(found.pass_seconds)}, optimizer and clipping {rest})"))
    if steps:
        say(_line(f"{steps:,} steps", _time(found.seconds * steps)))
    if args.device.type == "cpu" and found.cpu_seconds < 0.7 * found.seconds * found.threads:
        alone = _time(found.cpu_seconds / found.threads)
        say(f"  The machine was shared or waited: of the CPU itself a step took {alone} a thread.")
    say("One process with the machine for itself; the exchange of gradients between several is not in it.")
    _left_out()


def show_counted_time(estimate, device: Device, share: float, steps: int | None, *, tf32: bool) -> None:
    """Time on a GPU that is not here, from counted work and its vendor's rates."""
    kind = "bf16" if estimate.precision in ("bf16", "fp16") else "tf32" if tf32 else "fp32"
    rate = device.rates[kind]
    passes = estimate.flops / (rate * share)
    sharded = estimate.processes if estimate.engine != "ddp" else 1
    optimizer = _ADAMW_BYTES * estimate.num_trainable / sharded / device.bandwidth
    say(f"\nTime on an {device.name}: counted, not measured.")
    say(_line("work of a step", f"{estimate.flops / 1e12:.2f} TFLOP of matrix products"))
    say(_line("rate", f"{rate / 1e12:.0f} TFLOP/s, dense {kind} (the vendor's figure)"))
    say(_line("share of it", f"{share:.0%} (an assumption, `--estimate_share`; not measured on this device)"))
    say(
        _line(
            "optimizer", f"{_ADAMW_BYTES} bytes a weight at {device.bandwidth / 1e12:.2f} TB/s (the vendor's figure)"
        )
    )
    say(_line("a step", _time(passes + optimizer)))
    if steps:
        say(_line(f"{steps:,} steps", _time((passes + optimizer) * steps)))
    say(
        "Small batches are bound by launches of kernels and by the data instead; the exchange between processes is not"
    )
    say("in it.")
    _left_out()


def _line(name: str, text: str) -> str:
    return f"  {name:<21}{text}"


def _left_out() -> None:
    say("Left out: loading, anchors that are computed ahead, evaluations, saves and pushes.")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
