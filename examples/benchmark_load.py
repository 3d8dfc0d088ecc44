"""What large data costs: memory over a training on millions of triplets, and search among a million pictures.

    python examples/generate_triplets.py --captions captions.json --triplets_per_caption 125 --output triplets.parquet
    python examples/benchmark_load.py --triplets triplets.parquet --gallery 1000000 --output_json load.json

Training: a text encoder of ViT-B/32's size with random weights, memory read after every step, in a process of its own
for each start; the first start makes the data's cache where there is none. Search: random embeddings in clusters, each
kind of index in a process of its own, what it finds compared with the exact one.
"""

# ci: --triplets 3000 --steps 6 --batch_size 4 --layers 1 --output_json {tmp}/load.json
# ci: --gallery 12000 --dim 48 --queries 8 --kinds exact --output_json {tmp}/load.json
# ci: --help

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors


KINDS = ("exact", "flat", "hnsw", "ivf_pq")
SETTLED = 20  # steps after which nothing new should be needed: the optimizer's state is made in the first


@dataclass
class LoadArguments:
    triplets: str = field(
        default="", metadata={"help": "Parquet or JSON Lines file of text triplets, or a number of drawn ones."}
    )
    tokenizer: str = field(default="", metadata={"help": "Folder or Hub id; the offline world's by default."})
    steps: int = field(default=200, metadata={"help": "Training steps."})
    batch_size: int = field(default=48, metadata={"help": "Triplets a step."})
    layers: int = field(default=12, metadata={"help": "Layers of the text encoder."})
    workers: int = field(default=0, metadata={"help": "Processes that collate."})
    gallery: int = field(default=0, metadata={"help": "Pictures to search among; 0 leaves the search out."})
    dim: int = field(default=768, metadata={"help": "Width of their embeddings; ViT-L/14's by default."})
    queries: int = field(default=100, metadata={"help": "Queries."})
    kinds: list[str] = field(default_factory=lambda: ["exact", "ivf_pq"], metadata={"help": f"Of {', '.join(KINDS)}."})
    k: int = field(default=10, metadata={"help": "Pictures to find for each query."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; all by default."})
    seed: int = field(default=0, metadata={"help": "Draws weights, order and embeddings."})
    output_json: str | None = field(default=None, metadata={"help": "Also write the figures to this file."})
    child: list[str] = field(default_factory=list, metadata={"help": "Used by the script itself."})


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def memory() -> dict[str, int]:
    """Bytes of this process: its own (`RssAnon`), which only it can give back, and those of files it has mapped."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines) if "kB" in rest}
    return {"own": values["RssAnon"], "files": values["RssFile"], "peak": values["VmHWM"]}


def train(args: LoadArguments, output: str) -> None:
    """One training, as `train_rtd.py` runs it; writes seconds and memory."""
    started = time.perf_counter()
    import torch
    from transformers import AutoTokenizer, CLIPTextConfig, TrainerCallback
    from utils.parts import load_triplets

    from rtd_hf import CLIPTextModelForRTD, ImageToWordProjection, RTDTrainer, RTDTrainingArguments
    from rtd_hf.shapes import ASSETS

    if args.threads:
        torch.set_num_threads(args.threads)
    imported = time.perf_counter()
    drawn = args.triplets.isdigit()
    triplets = load_triplets("shapes" if drawn else args.triplets, int(args.triplets) if drawn else None, args.seed)
    loaded = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or ASSETS / "clip")
    torch.manual_seed(args.seed)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(num_hidden_layers=args.layers, vocab_size=max(49408, len(tokenizer)), **ids)

    class Readings(TrainerCallback):
        def __init__(self):
            self.memory, self.begun, self.first_step = [], None, None

        def on_step_begin(self, trainer_args, state, control, **kwargs):
            self.begun = self.begun or time.perf_counter()

        def on_step_end(self, trainer_args, state, control, **kwargs):
            self.first_step = self.first_step or time.perf_counter()
            self.memory.append(memory())

    readings = Readings()
    with tempfile.TemporaryDirectory() as folder:
        trainer = RTDTrainer(
            CLIPTextModelForRTD(config),
            RTDTrainingArguments(
                output_dir=folder,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch_size,
                dataloader_num_workers=args.workers,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=args.seed,
                use_cpu=True,
            ),
            projection=ImageToWordProjection.build("lincir", config.projection_dim),
            processing_class=tokenizer,
            train_dataset=triplets,
            callbacks=[readings],
        )
        ready = time.perf_counter()
        trainer.train()
    settled = readings.memory[min(SETTLED, len(readings.memory) // 2) :]
    own = [reading["own"] for reading in settled]
    figures = {
        "triplets": len(triplets),
        "seconds until imported": imported - started,
        "seconds to load triplets": loaded - imported,
        "seconds from start to first step": readings.begun - started,
        "seconds of the first step": readings.first_step - readings.begun,
        "seconds of training": time.perf_counter() - ready,
        "own bytes, lowest": min(own),
        "own bytes, highest": max(own),
        "own bytes, median of the first and last quarter": [
            statistics.median(own[: max(1, len(own) // 4)]),
            statistics.median(own[-max(1, len(own) // 4) :]),
        ],
        "mapped bytes at the end": settled[-1]["files"],
        "peak bytes": settled[-1]["peak"],
    }
    Path(output).write_text(json.dumps(figures), encoding="utf-8")


def draw_gallery(args: LoadArguments, folder: Path):
    """Normalised embeddings in clusters, as pictures of like things are, and queries near some of them; on disk."""
    import numpy as np

    rng = np.random.default_rng(args.seed)
    centres = rng.standard_normal((max(2, args.gallery // 100), args.dim), dtype=np.float32)
    file = np.lib.format.open_memmap(folder / "g.npy", mode="w+", dtype=np.float32, shape=(args.gallery, args.dim))
    for first in range(0, args.gallery, 20_000):
        number = min(20_000, args.gallery - first)
        rows = centres[rng.integers(0, len(centres), number)]
        rows = rows + 0.7 * rng.standard_normal(rows.shape, dtype=np.float32)
        file[first : first + number] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    places = rng.integers(0, args.gallery, args.queries)
    noise = rng.standard_normal((args.queries, args.dim), dtype=np.float32) / args.dim**0.5
    np.save(folder / "q.npy", file[places] + 0.5 * noise)
    file.flush()


def search(args: LoadArguments, kind: str, folder: Path, output: str) -> None:
    """One kind of index: made, written, read again, searched by one and by all queries; writes seconds and memory."""
    import numpy as np
    import torch

    from rtd_hf.search import ImageIndex

    if args.threads:
        torch.set_num_threads(args.threads)
        if kind != "exact":
            import faiss

            faiss.omp_set_num_threads(args.threads)
    queries = np.load(folder / "q.npy")
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    ids = [f"{number:08d}.jpg" for number in range(args.gallery)]
    index = ImageIndex(np.load(folder / "g.npy", mmap_mode="r"), ids, kind=kind, normalized=True)
    figures = {"seconds to make": lap()}
    index.save(folder / kind)
    figures["seconds to write"] = lap()
    del index
    lap()
    index = ImageIndex.load(folder / kind)
    figures["seconds to read"] = lap()
    index.search(queries[:1], args.k)
    figures["seconds of the first search"] = lap()
    single = []
    for query in queries[: min(20, len(queries))]:
        index.search(query[None], args.k)
        single.append(lap())
    figures["milliseconds of a query, alone, median"] = 1000 * statistics.median(single)
    lap()
    found = index.search(queries, args.k)
    figures["milliseconds of a query, all at once"] = 1000 * lap() / len(queries)
    read = memory()
    figures |= {"own bytes": read["own"], "mapped bytes": read["files"], "peak bytes": read["peak"]}
    figures["found"] = [[hit.id for hit in row] for row in found]
    Path(output).write_text(json.dumps(figures), encoding="utf-8")


def in_a_process(args: LoadArguments, *child: str) -> dict:
    """Runs a part of this script in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        values = {**asdict(args), "child": [*child, str(output)]}
        told = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(values)], stdout=subprocess.PIPE, text=True
        )
        if told.returncode or not output.exists():
            raise RuntimeError(f"`{' '.join(child)}` failed with exit code {told.returncode}, see above.")
        return json.loads(output.read_text(encoding="utf-8"))


def run_child(text: str) -> None:
    values = json.loads(text)
    task, *rest = values["child"]
    args = LoadArguments(**values)
    if task == "train":
        train(args, *rest)
    else:
        search(args, rest[0], Path(rest[1]), rest[2])


def main(args: LoadArguments) -> None:
    import torch

    if not args.triplets and not args.gallery:
        raise ValueError("Nothing to do: give `--triplets`, `--gallery`, or both.")
    wrong = [kind for kind in args.kinds if kind not in KINDS]
    if wrong:
        raise ValueError(f"`--kinds` must be of {', '.join(KINDS)}, got {', '.join(wrong)}.")
    result = {
        "command": " ".join(["python examples/benchmark_load.py", *sys.argv[1:]]),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch": torch.__version__,
    }
    if args.triplets:
        first, again = in_a_process(args, "train"), in_a_process(args, "train")
        result["training"] = {"first start": first, "with the data's cache": again}
        low, high = again["own bytes, lowest"], again["own bytes, highest"]
        start, end = again["own bytes, median of the first and last quarter"]
        say(f"{again['triplets']:,} triplets, {args.steps} steps of {args.batch_size}")
        say(f"  from the start to step 1     {first['seconds from start to first step']:.1f} s, then "
            f"{again['seconds from start to first step']:.1f} s with the data's cache")  # fmt: skip
        say(f"  own memory from step {SETTLED} on   {low / 2**30:.3f} to {high / 2**30:.3f} GiB, last quarter against "
            f"first {100 * (end / start - 1):+.1f} %")  # fmt: skip
    if args.gallery:
        with tempfile.TemporaryDirectory() as folder:
            draw_gallery(args, Path(folder))
            kinds = dict.fromkeys(["exact", *args.kinds])
            found = {kind: in_a_process(args, "search", kind, folder) for kind in kinds}
        exact = found["exact"]["found"]
        say(f"{args.gallery:,} pictures, {args.dim} wide, the best {args.k}")
        for kind, figures in found.items():
            pairs = list(zip(figures.pop("found"), exact, strict=True))
            figures["share of the exact list"] = statistics.mean(len({*a} & {*b}) / len(b) for a, b in pairs)
            say(f"  {kind:<7} made in {figures['seconds to make']:.0f} s, a query alone "
                f"{figures['milliseconds of a query, alone, median']:.1f} ms, of {args.queries} at once "
                f"{figures['milliseconds of a query, all at once']:.1f} ms; finds "
                f"{100 * figures['share of the exact list']:.1f} % of the exact list")  # fmt: skip
        result["search"] = found
    if args.output_json:
        Path(args.output_json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_screen_errors():
        if sys.argv[1:2] == ["--child"]:
            run_child(sys.argv[2])
        else:
            from transformers import HfArgumentParser

            main(HfArgumentParser(LoadArguments, description=__doc__).parse_args_into_dataclasses()[0])
