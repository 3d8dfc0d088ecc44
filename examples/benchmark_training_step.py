"""Seconds of one training step: the published arithmetic, written out plainly, against `RTDTrainer` in its variants.

    python examples/benchmark_training_step.py --model l14 --batch_size 48 --output_json step.json

Same weights, same texts, one run. The plain step pads every text to 77 tokens, encodes composed and bare prompt
as two sequences, and runs the frozen encoder over the references twice, as the published script does. Losses and
gradients are compared before anything is timed. A step is everything from three strings a triplet to updated weights.
Weights are random, at the sizes of the published text encoders; the lengths of the captions are those of COCO.
On a GPU, `--train_steps 2000` also times a whole training.
"""

# ci: --model tiny --batch_size 8 --repeats 2 --train_steps 2 --output_json {tmp}/step.json
# ci: --help

import json
import platform
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from utils.arguments import one_screen_errors
from utils.plain_step import CONTEXT, PlainStep, draw_triplets


SIZES = {  # hidden size, layers, heads; the projection is as wide as the hidden size
    "tiny": (64, 2, 2),
    "b32": (512, 12, 8),
    "l14": (768, 12, 12),
    "bigg14": (1280, 32, 20),
}


@dataclass
class BenchmarkArguments:
    model: str = field(default="b32", metadata={"help": f"Size of the text encoder: {', '.join(SIZES)}."})
    batch_size: int = field(default=32, metadata={"help": "Triplets a step."})
    repeats: int = field(
        default=5, metadata={"help": "Timed steps of each variant, after one that is not timed; 0 times that one."}
    )
    threads: int | None = field(default=None, metadata={"help": "CPU threads; all by default."})
    mini_batch_size: int | None = field(
        default=None,
        metadata={"help": "Triplets a mini-batch in the variants with mini-batches; a quarter by default."},
    )
    only: list[str] = field(
        default_factory=list,
        metadata={"help": "Only variants whose names hold one of these; the first is what others are compared with."},
    )
    compile: bool = field(default=False, metadata={"help": "Also try `torch.compile` on the layers."})
    train_steps: int = field(default=0, metadata={"help": "Also time a training of so many steps, in bf16 on a GPU."})
    workers: int = field(default=4, metadata={"help": "Processes that collate during `--train_steps`."})
    seed: int = field(default=0, metadata={"help": "Draws weights and texts."})
    output_json: str | None = field(default=None, metadata={"help": "Also write the figures to this file."})


def build(args: BenchmarkArguments):
    """A random text encoder of the asked size, a projection that fits it, and a tokenizer."""
    import torch
    from transformers import CLIPTextConfig

    from rtd_hf import CLIPTextModelForRTD, ImageToWordProjection
    from rtd_hf.shapes.clip import build_tokenizer, world_texts

    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(world_texts(4000, seed=0))
    width, layers, heads = SIZES[args.model]
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelForRTD(config).train(), ImageToWordProjection.build("lincir", width), tokenizer


def gradients(model):
    """Names and gradients, without the key biases: theirs is zero in truth, and only rounding otherwise."""
    return ((name, p.grad) for name, p in model.named_parameters() if not name.endswith("k_proj.bias"))


def flops_that_count(batch: dict, model) -> float:
    """Of one step: products over distinct tokens, each once; three times those of the forward pass where it trains."""
    width, number = model.config.hidden_size, model.config.num_hidden_layers

    def forward(rows) -> float:
        seen = int((rows.position_ids + 1).sum())  # keys that all tokens see together
        full = 24 * width**2 * rows.num_nodes + 4 * width * seen
        # The last layer makes keys and values of all tokens, and the rest for the pooled ones.
        ends = len(rows.ends)
        last = 4 * width**2 * rows.num_nodes + 20 * width**2 * ends + 4 * width * int(rows.lengths[1].sum())
        return (number - 1) * full + last + 2 * width * model.config.projection_dim * ends

    return sum(3 * forward(rows) for rows in batch["packed_rows"]) + sum(
        forward(rows) for rows in batch.get("anchor_packed_rows", [])
    )


def matmul_rate(device, dtype) -> float:
    """Operations a second of one large matrix product, the best of ten, by the faster library where there are two."""
    import torch

    from rtd_hf.kernels import fast_linears

    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for library in (nullcontext(), fast_linears(left)):
        with library, torch.no_grad():
            seconds = timed(lambda _: torch.nn.functional.linear(left, right), 10, device)
        best = max(best, 2 * size**3 / min(seconds))
    return best


def timed(step, repeats: int, device) -> list[float]:
    """Seconds of each of `repeats` steps, after one that is not counted unless it is the only one."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    if repeats:
        step(0)
    for number in range(1, repeats + 1) if repeats else range(1):
        wait()
        started = time.perf_counter()
        step(number)
        wait()
        seconds.append(time.perf_counter() - started)
    return seconds


class PeakMemory:
    """Most bytes in use at any time since it was made: of the GPU where there is one, else of the process (Linux)."""

    def __init__(self, device):
        import torch

        self.cuda = torch.cuda if device.type == "cuda" else None
        self.status = Path("/proc/self/status")
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
        elif self.status.exists():
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM

    def read(self) -> int | None:
        if self.cuda:
            return self.cuda.max_memory_allocated()
        if not self.status.exists():
            return None
        lines = dict(
            line.split(":", 1) for line in self.status.read_text(encoding="utf-8").splitlines() if ":" in line
        )
        return int(lines["VmHWM"].split()[0]) * 1024


class Benchmark:
    """One model, one set of batches, and the variants of a step over them."""

    def __init__(self, args: BenchmarkArguments, folder: str):
        import torch

        from rtd_hf import DataCollatorForRTD, RTDTrainer, RTDTrainingArguments, precompute_anchors

        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, projection, self.tokenizer = build(args)
        self.model.to(self.device)
        # No noise: both sides would have to draw the same.
        self.options = RTDTrainingArguments(output_dir=folder, noise_type="none", report_to="none")
        self.projection = projection.to(self.device)
        self.trainer = RTDTrainer(
            self.model, self.options, projection=self.projection, processing_class=self.tokenizer
        )
        self.plain = PlainStep(
            self.model, self.trainer.anchor_model, self.projection, self.tokenizer, self.options.temperature
        )
        triplets = draw_triplets(2 * args.batch_size, self.tokenizer, args.seed)
        self.batches = [triplets[: args.batch_size], triplets[args.batch_size :]]
        quarter = -(-args.batch_size // 4)
        collators = {
            "padded rows": {},
            "packed, no shared prefixes": {"packing": True, "share_prefixes": False},
            "packed": {"packing": True},
            "packed, mini-batches": {"packing": True, "mini_batch_size": args.mini_batch_size or quarter},
            "packed, anchors ahead": {"packing": True},
        }
        self.collators = {name: DataCollatorForRTD(self.tokenizer, **kind) for name, kind in collators.items()}

        def half():
            return torch.autocast(self.device.type, torch.bfloat16)

        self.variants = {"plain step, fp32": (self.plain.loss, nullcontext)}
        self.variants |= {f"{name}, fp32": (self.ours(name), nullcontext) for name in collators}
        if self.device.type == "cpu":
            blas = partial(torch.backends.mkldnn.flags, enabled=False, allow_tf32=None)
            self.variants["packed, torch's own linear layers, fp32"] = (self.ours("packed"), blas)
        self.variants["plain step, bf16 autocast"] = (self.plain.loss, half)
        for name in ("packed", "packed, mini-batches", "packed, anchors ahead"):
            self.variants[f"{name}, bf16 autocast"] = (self.ours(name), half)
        if args.compile:
            # Last, because it stays: the layers are compiled in place, for lengths that change with every batch.
            for kind in ("fp32", "bf16 autocast"):
                self.variants[f"packed, compiled, {kind}"] = self.variants[f"packed, {kind}"]
        if args.only:
            self.variants = {
                name: variant for name, variant in self.variants.items() if any(part in name for part in args.only)
            }
        if not self.variants:
            raise ValueError(f"`--only` {args.only} is part of no variant's name.")
        self.compiled = False
        if any("ahead" in name for name in self.variants):
            store = precompute_anchors(triplets, self.trainer.anchor_model, self.tokenizer, f"{folder}/anchors")
            ahead = DataCollatorForRTD(self.tokenizer, packing=True, anchors=store)
            self.collators["packed, anchors ahead"] = ahead

    def ours(self, name: str):
        def loss(rows: list[dict]):
            return self.trainer.compute_loss(self.model, self.on_device(self.collators[name](rows)))

        return loss

    def on_device(self, batch: dict) -> dict:
        return {
            name: [rows.to(self.device) for rows in value] if isinstance(value, list) else value.to(self.device)
            for name, value in batch.items()
        }

    def compare(self) -> dict[str, dict]:
        """Loss and gradients of every variant against those of the first one; what does not fit is left out."""
        import torch

        if len(self.variants) == 1:
            return {name: {} for name in self.variants}
        reference, differences = None, {}
        for name, (loss_of, precision) in self.variants.items():
            self.model.zero_grad()
            try:
                with precision():
                    loss = loss_of(self.batches[0])
                loss.backward()
            except torch.OutOfMemoryError:
                sys.stdout.write(f"{name}: the card has not enough memory for {self.args.batch_size} triplets\n")
                torch.cuda.empty_cache()
                continue
            if reference is None:
                reference = loss.item(), {key: grad.clone() for key, grad in gradients(self.model)}
            value, grads = reference
            differences[name] = {
                "loss_difference": abs(loss.item() - value) / abs(value),
                "gradient_difference": max(
                    ((grad - grads[key]).norm() / grads[key].norm()).item() for key, grad in gradients(self.model)
                ),
            }
        self.model.zero_grad()
        return differences

    def time(self, name: str) -> dict:
        """Seconds and memory of a variant, with its optimizer: AdamW as published for the plain step, else fused."""
        import torch

        loss_of, precision = self.variants[name]
        if "compiled" in name and not self.compiled:
            self.compiled = True
            for encoder in (self.model, self.trainer.anchor_model):
                for layer in encoder.text_model.encoder.layers:
                    layer.compile(dynamic=True)
        plain = name.startswith("plain")
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-5, weight_decay=0.01, fused=None if plain else True
        )

        def step(number: int) -> None:
            with precision():
                value = loss_of(self.batches[number % len(self.batches)])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        memory = PeakMemory(self.device)
        seconds = timed(step, self.args.repeats, self.device)
        middle = statistics.median(seconds)
        return {
            "seconds": middle,
            "fastest": min(seconds),
            "slowest": max(seconds),
            "triplets_per_second": self.args.batch_size / middle,
            "peak_memory_bytes": memory.read(),
        }

    def collator_rate(self) -> float:
        """Triplets a second that one process collates."""
        rows = self.batches[0]
        seconds = timed(lambda _: self.collators["packed"](rows), 20, self.device)
        return len(rows) / statistics.median(seconds)

    def train(self) -> dict:
        """A whole training by `RTDTrainer.train()`: data loading, schedule and logging included."""
        from datasets import Dataset

        from rtd_hf import RTDTrainer, RTDTrainingArguments

        args, gpu = self.args, self.device.type == "cuda"
        triplets = draw_triplets(min(args.train_steps, 200) * args.batch_size, self.tokenizer, args.seed + 1)
        options = RTDTrainingArguments(
            output_dir=self.options.output_dir,
            max_steps=args.train_steps,
            per_device_train_batch_size=args.batch_size,
            bf16=gpu,
            tf32=True if gpu else None,
            max_grad_norm=0,  # the published script does not clip
            dataloader_num_workers=args.workers if gpu else 0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RTDTrainer(
            self.model,
            options,
            projection=self.projection,
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_list(triplets),
        )
        memory = PeakMemory(self.device)
        seconds = trainer.train().metrics["train_runtime"]
        flops = flops_that_count(self.collators["packed"](triplets[: args.batch_size]), self.model) * args.train_steps
        return {
            "steps": args.train_steps,
            "seconds": seconds,
            "triplets_per_second": args.train_steps * args.batch_size / seconds,
            "flops_per_second": flops / seconds,
            "peak_memory_bytes": memory.read(),
        }


def table_line(name: str, line: dict) -> str:
    memory = f"{line['peak_memory_bytes'] / 2**30:6.2f} GiB" if line["peak_memory_bytes"] else ""
    differences = ""
    if "loss_difference" in line:
        differences = f"loss {line['loss_difference']:.0e}  gradient {line['gradient_difference']:.0e}"
    return (
        f"{name:<40} {line['seconds']:8.3f} s ({line['fastest']:.3f} to {line['slowest']:.3f}) "
        f"{line['triplets_per_second']:9.1f} triplets/s  x {line['ratio']:6.2f}  {memory}  {differences}\n"
    )


def main(args: BenchmarkArguments) -> None:
    if args.model not in SIZES:
        raise ValueError(f"`--model` must be one of {', '.join(SIZES)}, got {args.model!r}.")
    import torch
    import transformers

    if args.threads:
        torch.set_num_threads(args.threads)
    kinds = (torch.float32, torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        bench = Benchmark(args, folder)
        device, model = bench.device, bench.model
        rates = [[matmul_rate(device, kind) for kind in kinds]]
        results = bench.compare()
        for name, line in results.items():
            line |= bench.time(name)
            line["ratio"] = next(iter(results.values()))["seconds"] / line["seconds"]
            sys.stdout.write(table_line(name, line))
            sys.stdout.flush()
        # Again at the end, because another program may have had the machine the first time.
        rates.append([matmul_rate(device, kind) for kind in kinds])
        rates = {str(kind).removeprefix("torch."): max(pair) for kind, *pair in zip(kinds, *rates, strict=True)}
        for name, line in results.items():
            if name.startswith("packed"):
                kind = name.split(", fp32")[0].split(", bf16")[0].replace(", compiled", "")
                kind = kind.replace(", torch's own linear layers", "")
                line["flops"] = flops_that_count(bench.collators[kind](bench.batches[0]), model)
                rate = rates["bfloat16" if "bf16" in name else "float32"]
                line["share_of_matmul_rate"] = line["flops"] / line["seconds"] / rate
        rows = bench.collators["packed"](bench.batches[0])
        report = {
            "command": " ".join(["python", "examples/benchmark_training_step.py", *sys.argv[1:]]),
            "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "seed": args.seed,
            "model": args.model,
            "parameters": model.num_parameters(),
            "batch_size": args.batch_size,
            "tokens": {
                name: {"as padded to 77": len(part[0].prompt_rows.flatten()) * CONTEXT}
                | {"without padding": part[0].num_tokens, "distinct": part[0].num_nodes}
                for name, part in (("prompts", rows["packed_rows"]), ("captions", rows["anchor_packed_rows"]))
            },
            "matmul_flops_per_second": rates,
            "collator_triplets_per_second": bench.collator_rate(),
            "variants": results,
        }
        if args.train_steps:
            training = report["training"] = bench.train()
            rate = rates["bfloat16" if device.type == "cuda" else "float32"]
            training["share_of_matmul_rate"] = training["flops_per_second"] / rate
    shares = {name: round(line["share_of_matmul_rate"], 3) for name, line in results.items() if "flops" in line}
    report["share_of_matmul_rate"] = shares
    for name in (
        "tokens",
        "share_of_matmul_rate",
        "matmul_flops_per_second",
        "collator_triplets_per_second",
        "training",
    ):
        if name in report:
            sys.stdout.write(f"{name.replace('_', ' ')}: {json.dumps(report[name])}\n")
    if args.output_json:
        Path(args.output_json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_screen_errors():
        from transformers import HfArgumentParser

        (parsed,) = HfArgumentParser(
            BenchmarkArguments, description=__doc__.splitlines()[0]
        ).parse_args_into_dataclasses()
        main(parsed)
