"""Holds `--estimate` to what is measured: memory of tensors, memory of the process, and seconds of a step.

    python examples/check_estimates.py --models world b32 l14 --output_json estimates.json

For every encoder and variant the estimate is made first; then a new process trains `RTDTrainer`'s steps at full depth
with random weights, and is measured. On a CPU; memory of the process on Linux. Seconds compare where the machine does
nothing else; CPU seconds do on a machine that is shared, too.
"""

# ci: --models world --variants full --batch_size 8 --repeats 1 --output_json {tmp}/estimates.json
# ci: --help

import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors
from utils.clips import SIZES, known_config
from utils.plain_step import draw_triplets


MODELS = ("world", *SIZES)
VARIANTS = {
    "full": {},
    "lora": {},
    "mini_batches": {"mini_batch_size": True},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "anchors_ahead": {},
}


@dataclass
class CheckArguments:
    models: list[str] = field(default_factory=lambda: ["world"], metadata={"help": f"Of {', '.join(MODELS)}."})
    variants: list[str] = field(
        default_factory=lambda: ["full", "lora", "mini_batches", "checkpointing"],
        metadata={"help": f"Of {', '.join(VARIANTS)}."},
    )
    batch_size: int = field(default=32, metadata={"help": "Triplets a step; a quarter of it in a mini-batch."})
    repeats: int = field(default=3, metadata={"help": "Timed steps; the fastest counts."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    seed: int = field(default=0, metadata={"help": "Draws weights and texts."})
    output_json: str | None = field(default=None, metadata={"help": "Also write the figures to this file."})
    measure: str = field(
        default="", metadata={"help": "Used by the script itself: measure one `MODEL/VARIANT` in this process."}
    )


def parts(model: str, variant: str, args: CheckArguments, folder: str) -> dict:
    """What `estimate_training` and `probe_step_seconds` take."""
    from utils.parts import ModelArguments

    from rtd_hf import ImageToWordProjection, RTDTrainingArguments
    from rtd_hf.models import BACKBONES
    from rtd_hf.shapes.clip import build_config, build_tokenizer, world_texts

    tokenizer = build_tokenizer(world_texts(4000, seed=0))
    config = build_config(tokenizer).text_config if model == "world" else known_config(model)[0]
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    options = dict(VARIANTS[variant])
    if options.get("mini_batch_size"):
        options["mini_batch_size"] = max(1, args.batch_size // 4)
    options = RTDTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=args.batch_size,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=args.seed,
        **options,
    )
    lora = ModelArguments().lora_config(BACKBONES[config.model_type]) if variant == "lora" else None
    return {
        "config": config,
        "args": options,
        "projection": ImageToWordProjection.build("lincir", config.projection_dim, config.hidden_size),
        "tokenizer": tokenizer,
        "triplets": draw_triplets(args.batch_size, tokenizer, args.seed),
        "lora": lora,
        "anchors_ahead": variant == "anchors_ahead",
    }


def resident(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


def build_trainer(found: dict, folder: str):
    """The trainer of the recipe at full depth, and its first batch."""
    import torch

    from rtd_hf import RTDTrainer, precompute_anchors
    from rtd_hf.models import BACKBONES

    config, args = found["config"], found["args"]
    torch.manual_seed(args.seed)
    model = BACKBONES[config.model_type](config).train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    anchors = None
    if found["anchors_ahead"]:
        anchors = precompute_anchors(found["triplets"], model, found["tokenizer"], f"{folder}/anchors")
    trainer = RTDTrainer(
        model,
        args,
        projection=found["projection"],
        processing_class=found["tokenizer"],
        peft_config=found["lora"],
        anchors=anchors,
    )
    return trainer


def measure(name: str, args: CheckArguments) -> dict:
    """One variant in this process: bytes of tensors and of the process at most, seconds of a step."""
    import torch

    from rtd_hf.live_memory import LiveMemory

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = parts(*name.split("/"), args, folder)
        before = resident("VmRSS")
        trainer = build_trainer(found, folder)
        model = trainer.model.train()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-8, fused=True)

        def step() -> None:
            inputs = trainer.data_collator(found["triplets"])
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(model, inputs)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        step()
        clear = Path("/proc/self/clear_refs")
        if clear.exists():
            clear.write_text("5", encoding="utf-8")  # resets VmHWM
        wall, cpu = [], []
        for _ in range(args.repeats):
            begun, begun_cpu = time.perf_counter(), time.process_time()
            step()
            wall.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - begun_cpu)
        process = resident("VmHWM") - before
        modules = [model, trainer.projection, *([trainer.anchor_model] if trainer.anchor_model else [])]
        known = [weight for module in modules for weight in module.parameters()]
        states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        with LiveMemory([*known, *states]) as memory:
            step()
        held = sum(tensor.numel() * tensor.element_size() for tensor in (*known, *states))
        return {"tensors": held + memory.peak, "process": process, "seconds": min(wall), "cpu_seconds": min(cpu)}


def compare(model: str, variant: str, args: CheckArguments) -> dict:
    """The estimate of a variant beside what is measured in a process of its own."""
    import torch

    from rtd_hf import estimate_training, probe_step_seconds

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = parts(model, variant, args, folder)
        estimate = estimate_training(**found)
        probe = probe_step_seconds(**found, repeats=args.repeats)
    command = [sys.executable, __file__, "--measure", f"{model}/{variant}"]
    for name in ("batch_size", "repeats", "threads", "seed"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"The measurement of {model}/{variant} failed: {done.stderr.strip()[-500:]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    predicted = {"tensors": estimate.peak_bytes, "seconds": probe.seconds, "cpu_seconds": probe.cpu_seconds}
    return {
        "model": model,
        "variant": variant,
        "parameters": estimate.num_parameters,
        "predicted": predicted,
        "measured": measured,
        "predicted_to_measured": {
            "tensors": round(predicted["tensors"] / measured["tensors"], 4),
            "process": round(predicted["tensors"] / measured["process"], 4) if measured["process"] > 0 else None,
            "seconds": round(predicted["seconds"] / measured["seconds"], 3),
            "cpu_seconds": round(predicted["cpu_seconds"] / measured["cpu_seconds"], 3),
        },
        "bytes_per_token_and_layer": round(estimate.bytes_per_token_and_layer),
        "probe_seconds": round(probe.probe_seconds, 1),
    }


def line(row: dict) -> str:
    """One row of the table, sizes in GiB."""
    predicted, measured, ratio = row["predicted"], row["measured"], row["predicted_to_measured"]
    return (
        f"{row['model'] + ', ' + row['variant']:<28}tensors {predicted['tensors'] / 2**30:7.3f} predicted "
        f"{measured['tensors'] / 2**30:7.3f} measured ({ratio['tensors']:.3f})  process "
        f"{measured['process'] / 2**30:7.3f} ({ratio['process']})  step {predicted['seconds']:.3f} s predicted "
        f"{measured['seconds']:.3f} s measured ({ratio['seconds']:.2f}), of the CPU {predicted['cpu_seconds']:.3f} "
        f"{measured['cpu_seconds']:.3f} ({ratio['cpu_seconds']:.2f})\n"
    )


def main(args: CheckArguments) -> None:
    wrong = [name for name in args.models if name not in MODELS]
    wrong += [name for name in args.variants if name not in VARIANTS]
    if wrong:
        raise ValueError(
            f"`--models` must be of {', '.join(MODELS)} and `--variants` of {', '.join(VARIANTS)}, got {wrong[0]!r}."
        )
    if args.measure:
        sys.stdout.write(json.dumps(measure(args.measure, args)) + "\n")
        return
    import torch
    import transformers

    report = {
        "command": " ".join(["python", "examples/check_estimates.py", *sys.argv[1:]]),
        "machine": platform.machine(),
        "threads": args.threads,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seed": args.seed,
        "batch_size": args.batch_size,
        "rows": [],
    }
    for model in args.models:
        for variant in args.variants:
            report["rows"].append(compare(model, variant, args))
            sys.stdout.write(line(report["rows"][-1]))
            sys.stdout.flush()
            if args.output_json:  # after each, because large ones take long
                Path(args.output_json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_screen_errors():
        from transformers import HfArgumentParser

        (parsed,) = HfArgumentParser(CheckArguments, description=__doc__.splitlines()[0]).parse_args_into_dataclasses()
        main(parsed)
