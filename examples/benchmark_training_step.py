"""Seconds of one training step: the published arithmetic, written out plainly, against `RTDTrainer`.

    python examples/benchmark_training_step.py --model l14 --batch_size 48 --output_json step.json

Same weights, same texts, one run. The plain step pads every text to 77 tokens, encodes composed and bare prompt
as two sequences, and runs the frozen encoder over the references twice, as the published script does. Losses and
gradients are compared before anything is timed. Weights are random, at the sizes of the published text encoders; the
texts are those of the offline world (about 20 tokens).
"""

# ci: --model tiny --batch_size 8 --repeats 2 --output_json {tmp}/step.json
# ci: --help

import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors


SIZES = {  # hidden size, layers, heads; the projection is as wide as the hidden size
    "tiny": (64, 2, 2),
    "b32": (512, 12, 8),
    "l14": (768, 12, 12),
    "bigg14": (1280, 32, 20),
}
CONTEXT = 77


@dataclass
class BenchmarkArguments:
    model: str = field(default="b32", metadata={"help": f"Size of the text encoder: {', '.join(SIZES)}."})
    batch_size: int = field(default=32, metadata={"help": "Triplets a step."})
    repeats: int = field(default=5, metadata={"help": "Timed steps of each variant, after one that is not timed."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; all by default."})
    seed: int = field(default=0, metadata={"help": "Draws weights and texts."})
    output_json: str | None = field(default=None, metadata={"help": "Also write the figures to this file."})


def nt_xent(queries, anchors, temperature: float):
    """NT-Xent over 2N joint vectors as a formula: mean of -log(exp(s_kp) / sum of exp(s_kl), l not k)."""
    import torch

    joint = torch.nn.functional.normalize(torch.cat([anchors, queries]), dim=-1)
    scores = (joint @ joint.T / temperature).exp()
    number = len(queries)
    partner = torch.cat([scores.diagonal(number), scores.diagonal(-number)])
    return -(partner / (scores.sum(1) - scores.diagonal())).log().mean()


class PlainStep:
    """The published arithmetic: 77 tokens everywhere, two sequences a triplet, three frozen passes."""

    def __init__(self, model, frozen, projection, tokenizer, temperature: float):
        self.model, self.frozen, self.projection = model, frozen, projection
        self.tokenizer, self.temperature = tokenizer, temperature
        self.placeholder = tokenizer("$", add_special_tokens=False)["input_ids"][0]

    def tokens(self, texts: list[str]):
        options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        return self.tokenizer(texts, **options)["input_ids"].to(self.model.device)

    def loss(self, rows: list[dict]):
        import torch

        composed = self.tokens([f"a photo of $ that {row['conditioning_caption']}" for row in rows])
        bare = self.tokens(["a photo of $"] * len(rows))
        targets = self.tokens([row["target_caption"] for row in rows])
        references = self.tokens([row["reference_caption"] for row in rows])
        with torch.no_grad():
            anchors = self.frozen(input_ids=torch.cat([targets, references])).text_embeds
            words = self.projection.project_text(self.frozen(input_ids=references).text_embeds)
        prompts, words = torch.cat([composed, bare]), torch.cat([words, words])
        at = prompts == self.placeholder

        def put_words_in(module, args, embeds):
            return torch.where(at[..., None], words.expand_as(embeds), embeds)

        hook = self.model.get_input_embeddings().register_forward_hook(put_words_in)
        try:
            queries = self.model(input_ids=prompts).text_embeds
        finally:
            hook.remove()
        return nt_xent(queries, anchors, self.temperature)


def build(args: BenchmarkArguments, device):
    """A random text encoder of the asked size, a frozen twin, a projection, the tokenizer and two batches of rows."""
    import copy

    import torch
    from transformers import CLIPTextConfig

    from rtd_hf import CLIPTextModelForRTD, ImageToWordProjection
    from rtd_hf.shapes.clip import build_tokenizer, world_texts
    from rtd_hf.shapes.edits import sample_triplet

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
    model = CLIPTextModelForRTD(config).to(device).train()
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    projection = ImageToWordProjection.build("lincir", width).to(device).requires_grad_(False)
    rng = random.Random(args.seed)
    batches = [[sample_triplet(rng) for _ in range(args.batch_size)] for _ in range(2)]
    return model, frozen, projection, tokenizer, batches


def gradients(model) -> dict:
    """Copies of the gradients, without the key biases: theirs is zero in truth, and only rounding otherwise."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if not name.endswith("k_proj.bias")}


def timed(step: Callable[[int], None], repeats: int, device) -> list[float]:
    """Seconds of each of `repeats` steps, after one that is not counted."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    step(0)
    seconds = []
    for number in range(1, repeats + 1):
        wait()
        started = time.perf_counter()
        step(number)
        wait()
        seconds.append(time.perf_counter() - started)
    return seconds


def main(args: BenchmarkArguments) -> None:
    if args.model not in SIZES:
        raise ValueError(f"`--model` must be one of {', '.join(SIZES)}, got {args.model!r}.")
    import tempfile
    from contextlib import nullcontext

    import torch
    import transformers

    from rtd_hf import RTDTrainer, RTDTrainingArguments

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, frozen, projection, tokenizer, batches = build(args, device)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        # No noise: both sides would have to draw the same.
        options = RTDTrainingArguments(output_dir=folder, noise_type="none", report_to="none")
        trainer = RTDTrainer(model, options, projection=projection, processing_class=tokenizer)
    plain = PlainStep(model, frozen, projection, tokenizer, options.temperature)

    def ours(rows: list[dict]):
        batch = {name: value.to(device) for name, value in trainer.data_collator(rows).items()}
        return trainer.compute_loss(model, batch)

    half = torch.autocast(device.type, torch.bfloat16)
    variants = {
        "plain step, fp32": (plain.loss, nullcontext()),
        "RTDTrainer, fp32": (ours, nullcontext()),
        "RTDTrainer, bf16 autocast": (ours, half),
    }
    results, reference = {}, None
    for name, (loss_of, precision) in variants.items():
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
        model.zero_grad()
        with precision:
            loss = loss_of(batches[0])
        loss.backward()
        found = (loss.item(), gradients(model))
        reference = reference or found

        def step(number: int, loss_of=loss_of, precision=precision, optimizer=optimizer) -> None:
            with precision:
                value = loss_of(batches[number % len(batches)])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        seconds = timed(step, args.repeats, device)
        middle = statistics.median(seconds)
        results[name] = {
            "seconds": middle,
            "fastest": min(seconds),
            "slowest": max(seconds),
            "triplets_per_second": args.batch_size / middle,
            "ratio": results["plain step, fp32"]["seconds"] / middle if results else 1.0,
            "loss_difference": abs(found[0] - reference[0]) / abs(reference[0]),
            "gradient_difference": max(
                ((found[1][key] - grad).norm() / grad.norm()).item() for key, grad in reference[1].items()
            ),
        }
        line = results[name]
        sys.stdout.write(
            f"{name:<28} {line['seconds']:8.3f} s ({line['fastest']:.3f} to {line['slowest']:.3f})"
            f"   x {line['ratio']:5.2f}"
            f"   loss {line['loss_difference']:.0e}   gradient {line['gradient_difference']:.0e}\n"
        )
        sys.stdout.flush()

    report = {
        "command": " ".join(["python", "examples/benchmark_training_step.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU threads, {device.type}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model": args.model,
        "parameters": model.num_parameters(),
        "batch_size": args.batch_size,
        "variants": results,
    }
    if args.output_json:
        Path(args.output_json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_screen_errors():
        from transformers import HfArgumentParser

        (parsed,) = HfArgumentParser(
            BenchmarkArguments, description=__doc__.splitlines()[0]
        ).parse_args_into_dataclasses()
        main(parsed)
