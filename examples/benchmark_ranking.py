"""Seconds and extra memory of ranking: counting what scores higher, against sorting everything and comparing names.

    python examples/benchmark_ranking.py --annotations ANNOTATIONS --output_json examples/benchmarks/ranking_cpu.json

The sizes are those of CIRR val with its subsets, FashionIQ shirt val and CIRCO val, the features are random, 768 wide.
With `--annotations` the ids and the targets are the real ones (folders `cirr`, `fashioniq`, `circo` with the official
files); without it they are as many invented ones. Each way runs in a process of its own, so that the peak of its
memory is its own, beyond the features; both must come to the same figures, or the script fails. Seconds are the
best of `--repeats`, and include the product of the features.
"""

# ci: --tasks cirr --shrink 40 --repeats 1 --output_json {tmp}/ranking.json
# ci: --help

import json
import os
import platform
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors


TASKS = ("cirr", "fashioniq_shirt", "circo")
WAYS = {
    "cirr": ("sort and compare names", "counting"),
    "fashioniq_shirt": ("sort and compare names", "counting"),
    "circo": ("sort and compare names", "top 50 per query, names rebuilt", "counting"),
}
TITLES = {"cirr": "CIRR val with subsets", "fashioniq_shirt": "FashionIQ shirt val", "circo": "CIRCO val"}
CIRCO_GALLERY = 123_403


@dataclass
class RankingArguments:
    annotations: str | None = field(
        default=None, metadata={"help": "Folder with the official files in `cirr`, `fashioniq` and `circo`."}
    )
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": f"Of {', '.join(TASKS)}."})
    dim: int = field(default=768, metadata={"help": "Width of the features."})
    repeats: int = field(default=3, metadata={"help": "Timed runs of each way; the best counts."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; all by default."})
    shrink: int = field(default=1, metadata={"help": "Divides queries and galleries, for a quick look."})
    seed: int = field(default=0, metadata={"help": "Draws the features, and ids and targets where they are invented."})
    output_json: str | None = field(default=None, metadata={"help": "Also write the figures to this file."})
    child: list[str] = field(
        default_factory=list, metadata={"help": "Task and number of the way; used by the script itself."}
    )


@dataclass(frozen=True)
class RankingTask:
    """What is ranked, by name. `targets` has one a query, or `many_targets` has several."""

    names: list[str]
    targets: list[str] = field(default_factory=list)
    many_targets: list[list[str]] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    members: list[list[str]] = field(default_factory=list)

    @property
    def num_queries(self) -> int:
        return len(self.targets or self.many_targets)


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read(folder: Path, *parts: str):
    path = folder.joinpath(*parts)
    if not path.is_file():
        raise FileNotFoundError(f"`--annotations` {folder} has no {'/'.join(parts)}. Leave it out to invent ids.")
    return json.loads(path.read_text(encoding="utf-8"))


def real_task(name: str, folder: Path, rng: random.Random) -> RankingTask:
    """Ids and targets of the official files."""
    if name == "cirr":
        rows = read(folder, "cirr", "captions", "cap.rc2.val.json")
        return RankingTask(
            names=list(read(folder, "cirr", "image_splits", "split.rc2.val.json")),
            targets=[row["target_hard"] for row in rows],
            references=[row["reference"] for row in rows],
            members=[row["img_set"]["members"] for row in rows],
        )
    if name == "fashioniq_shirt":
        rows = read(folder, "fashioniq", "captions", "cap.shirt.val.json")
        return RankingTask(
            names=read(folder, "fashioniq", "image_splits", "split.shirt.val.json"),
            targets=[row["target"] for row in rows],
        )
    rows = read(folder, "circo", "annotations", "val.json")
    named = {i for row in rows for i in (row["reference_img_id"], *row["gt_img_ids"])}
    # The list of the gallery is no part of CIRCO's own files: the others get numbers of the same length.
    others = [i for i in rng.sample(range(1, 582_000), 2 * CIRCO_GALLERY) if i not in named]
    ids = sorted([*named, *others[: CIRCO_GALLERY - len(named)]])
    return RankingTask(names=[str(i) for i in ids], many_targets=[[str(i) for i in row["gt_img_ids"]] for row in rows])


def invented_task(name: str, rng: random.Random, shrink: int) -> RankingTask:
    """As many ids, as long ones, and as many targets."""
    number, size = {"cirr": (4181, 2297), "fashioniq_shirt": (2038, 6346), "circo": (220, CIRCO_GALLERY)}[name]
    number, size = max(number // shrink, 8), max(size // shrink, 60)
    if name == "circo":
        names = [str(i) for i in rng.sample(range(1, 582_000), size)]
        draws = [min(14, 1 + int(rng.expovariate(1 / 3.5))) for _ in range(number)]
        return RankingTask(names=names, many_targets=[rng.sample(names, draw) for draw in draws])
    if name == "fashioniq_shirt":
        names = [f"B00{i:07d}" for i in range(size)]
        return RankingTask(names=names, targets=rng.choices(names, k=number))
    names = [f"dev-{i:05d}-0-img{i % 2}" for i in range(size)]
    groups = [rng.sample(names, 6) for _ in range(number)]
    return RankingTask(
        names=names, targets=[row[1] for row in groups], references=[row[0] for row in groups], members=groups
    )


def make_task(name: str, args: RankingArguments) -> RankingTask:
    rng = random.Random(f"{name} {args.seed}")
    return real_task(name, Path(args.annotations), rng) if args.annotations else invented_task(name, rng, args.shrink)


def count(queries, gallery, task: RankingTask) -> dict:
    """The same figures as the plain ways, by counting."""
    import torch

    from rtd_hf import average_precision_at_k, rank_targets, recall_at_k

    rows = task.many_targets or [[target] for target in task.targets]
    named = {name for row in (*rows, task.references, *task.members) for name in row}
    place = {name: row for row, name in enumerate(task.names) if name in named}
    width = max(map(len, rows))
    targets = torch.tensor([[place[name] for name in row] + [-1] * (width - len(row)) for row in rows])
    exclude = torch.tensor([[place[name]] for name in task.references]) if task.references else None
    ranks = rank_targets(queries, gallery, targets, exclude=exclude)
    if task.many_targets:
        metrics = {f"map@{k}": average_precision_at_k(ranks, k).numpy() for k in (5, 10, 25, 50)}
        return metrics | {f"recall@{k}": recall_at_k(ranks.ranks[:, :1], k).numpy() for k in (5, 10, 25, 50)}
    found = {"ranks": ranks.ranks[:, 0].numpy()}
    if task.members:
        members = torch.tensor([[place[name] for name in row] for row in task.members])
        subset = rank_targets(queries, gallery, targets, exclude=exclude, candidates=members)
        found["subset_ranks"] = subset.ranks[:, 0].numpy()
    return found


def peak_memory(reset: bool = False) -> int:
    """The most memory this process ever held, in bytes, since the last reset."""
    if sys.platform == "linux":
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        (line,) = [line for line in lines if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_child(args: RankingArguments) -> None:
    """One way over one task: a line of JSON with seconds, bytes, and where the results lie."""
    import numpy as np
    import torch
    from utils import plain_ranking

    if args.threads:
        torch.set_num_threads(args.threads)
    name, way, what, folder = *args.child[:3], Path(args.child[3])
    plain = {
        ("cirr", 0): plain_ranking.plain_cirr,
        ("fashioniq_shirt", 0): plain_ranking.plain_single_target,
        ("circo", 0): plain_ranking.plain_many_targets,
        ("circo", 1): plain_ranking.plain_top_k,
    }
    rank = plain.get((name, int(way)), count)
    task = make_task(name, RankingArguments(shrink=1000))
    # Libraries load and set up their buffers at first use, which is none of what is measured.
    rank(unit(torch, task.num_queries, args, 1), unit(torch, len(task.names), args, 2), task)
    unit(torch, 512, args, 1) @ unit(torch, 4096, args, 2).T
    task = make_task(name, args)
    queries, gallery = unit(torch, task.num_queries, args, 1), unit(torch, len(task.names), args, 2)
    if what == "memory":
        before = peak_memory(reset=True)
        found = rank(queries, gallery, task)
        figure = peak_memory() - before
    else:
        seconds = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            found = rank(queries, gallery, task)
            seconds.append(time.perf_counter() - started)
        figure = min(seconds)
    np.savez(folder / f"{name}-{way}.npz", **found)
    sizes = {"queries": task.num_queries, "gallery": len(task.names), "threads": torch.get_num_threads()}
    say(json.dumps({what: figure, **sizes}))


def unit(torch, number: int, args: RankingArguments, stream: int):
    """Random features of length one, made without anything beside them."""
    features = torch.randn(number, args.dim, generator=torch.Generator().manual_seed(1000 * args.seed + stream))
    return features.div_(torch.linalg.vector_norm(features, dim=-1, keepdim=True))


def figures(found: dict) -> dict:
    """What the benchmark reports, one value a query: of ranks, whether they are below its cut-offs."""
    cut_offs = {"ranks": (1, 5, 10, 50), "subset_ranks": (1, 2, 3)}
    plain = {key: values for key, values in found.items() if key not in cut_offs}
    return plain | {f"{key} < {k}": found[key] < k for key in cut_offs if key in found for k in cut_offs[key]}


def measure(name: str, args: RankingArguments, folder: Path) -> dict:
    """All ways over one task, each in its own process; refuses to report where their results differ."""
    import numpy as np

    rows = {}
    options = {k: v for k, v in asdict(args).items() if k not in ("tasks", "child", "output_json") and v is not None}
    options = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    for way, label in enumerate(WAYS[name]):
        rows[label] = {}
        for what in ("seconds", "memory"):
            command = [sys.executable, __file__, "--child", name, str(way), what, str(folder), *options]
            # With every larger array in pages of its own, memory that is given up is no longer counted as used.
            environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "memory" else {})}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise OSError(f"`{label}` on {name} failed: {done.stderr.strip()[-2000:]}")
            rows[label] |= json.loads(done.stdout.splitlines()[-1])
    results = [dict(np.load(folder / f"{name}-{way}.npz")) for way in range(len(WAYS[name]))]
    moved = 0
    for label, found in zip(WAYS[name], results, strict=True):
        for key, values in figures(results[-1]).items():
            same = np.isclose(figures(found)[key], values, rtol=0, atol=1e-6)
            if not same.all():
                raise ValueError(f"`{label}` and counting differ in {key} of {(~same).sum()} of {len(same)} queries.")
        if "ranks" in found:
            moved = max(moved, int((found["ranks"] != results[-1]["ranks"]).sum()))
    counted, first = rows["counting"], next(iter(rows.values()))
    return {
        "queries": first["queries"],
        "gallery": first["gallery"],
        "threads": first["threads"],
        "queries whose figures differ": 0,
        "queries whose rank differs as 1 - s is rounded, at no cut-off": moved,
        "ways": {
            label: {"seconds": round(row["seconds"], 3), "extra MB": round(row["memory"] / 1e6, 1)}
            for label, row in rows.items()
        },
        "faster": {label: round(row["seconds"] / counted["seconds"], 1) for label, row in rows.items()},
        "less memory": {label: round(row["memory"] / max(counted["memory"], 1), 1) for label, row in rows.items()},
    }


def main(args: RankingArguments) -> None:
    import tempfile

    import torch
    from utils.tables import aligned

    unknown = [name for name in args.tasks if name not in TASKS]
    if unknown:
        raise ValueError(f"`--tasks` must be of {', '.join(TASKS)}, got {unknown[0]!r}.")
    if args.annotations and args.shrink != 1:
        raise ValueError("`--shrink` is for invented ids, not for `--annotations`.")
    if args.repeats < 1 or args.shrink < 1:
        raise ValueError(f"`--repeats` and `--shrink` must be at least 1, got {args.repeats} and {args.shrink}.")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measure(name, args, Path(folder)) for name in args.tasks}
    table = [["task", "way", "seconds", "extra MB", "times slower", "times the memory"]]
    for name, entry in found.items():
        for label, row in entry["ways"].items():
            cells = [f"{row['seconds']:.2f}", f"{row['extra MB']:.1f}"]
            ratios = [f"{entry['faster'][label]:.1f}", f"{entry['less memory'][label]:.1f}"]
            table.append([f"{TITLES[name]} ({entry['queries']} x {entry['gallery']})", label, *cells, *ratios])
    say(aligned(table))
    say("\nEvery way comes to the same figures for every query.")
    if args.output_json:
        report = {
            "command": " ".join(["python", "examples/benchmark_ranking.py", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {next(iter(found.values()))['threads']} threads, cpu",
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "ids": "real" if args.annotations else "invented",
            "dim": args.dim,
            "tasks": found,
        }
        Path(args.output_json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_screen_errors():
        from transformers import HfArgumentParser

        parser = HfArgumentParser(RankingArguments, description="Counting against sorting, in seconds and memory.")
        (parsed,) = parser.parse_args_into_dataclasses()
        run_child(parsed) if parsed.child else main(parsed)
