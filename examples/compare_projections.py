"""Five projections, each frozen, with RTD, and with RTD through LoRA, over several seeds: the table of the README.

    python examples/compare_projections.py --seeds 3 --output_json examples/benchmarks/compare_projections.json

All of it happens in the offline world, in its three forms. Every training is written down as it ends, in
`--output_dir`, and is not done again: a run that was stopped goes on, and several processes may share the work, each
with `--projections` of its own. The gain over the frozen encoder is the mean over the seeds; its 95 % interval comes
from a bootstrap over the queries, of their mean over the seeds.
"""

# ci: --projections pic2word fti4cir --seeds 1 --max_steps 3 --num_triplets 600 --output_dir {tmp}

import json
import platform
import sys
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

from utils.arguments import one_screen_errors, parse, wants_help
from utils.parts import WORLD_PROJECTIONS, ModelArguments, load_parts, load_triplets
from utils.tables import aligned, markdown


HERE = Path(__file__).parent
BENCHMARKS = ("shapes", "shapes_many", "shapes_categories")
COLUMNS = ("shapes_recall@1", "shapes_recall@10", "shapes_many_map@10", "shapes_categories_recall@10")
KEPT = (*COLUMNS, "shapes_recall@5", "shapes_recall@50", "shapes_many_recall@10", "shapes_categories_recall@50")
NAMES = {
    "pic2word": "Pic2Word",
    "searle": "SEARLE",
    "lincir": "LinCIR",
    "context_i2w": "Context-I2W",
    "fti4cir": "FTI4CIR",
}


@dataclass
class ScriptArguments:
    config: str = field(
        default=str(HERE / "recipes" / "compare_projections.yaml"),
        metadata={"help": "YAML recipe of every training."},
    )
    projections: list[str] = field(
        default_factory=lambda: list(WORLD_PROJECTIONS),
        metadata={
            "help": "Which projections. `fti4cir:subject` is one with another of its ways to be trained with texts, "
            "`fti4cir:lincir` one whose words LinCIR's projection makes in the training."
        },
    )
    ways: list[str] = field(
        default_factory=lambda: ["rtd", "rtd_lora"], metadata={"help": "Of `rtd` (all weights) and `rtd_lora`."}
    )
    seeds: int = field(default=3, metadata={"help": "Trainings a projection, with the seeds 1, 2, ..."})
    lora_learning_rate: float = field(default=0.003, metadata={"help": "Learning rate of the runs with LoRA."})
    num_triplets: int = field(default=40000, metadata={"help": "Triplets of the offline world, drawn by the seed."})
    output_json: str = field(default="", metadata={"help": "Where the figures are written; nowhere by default."})


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def train(projection: str, seed: int, use_peft: bool, script: ScriptArguments, args):
    """One training; returns the text encoder, and the seconds."""
    from transformers import set_seed

    from rtd_hf import RTDTrainer

    set_seed(seed)
    started = time.perf_counter()
    name, _, way = projection.partition(":")
    parts = load_parts("shapes", name, device=args.device)
    words = parts.projection
    if way in WORLD_PROJECTIONS:
        words = load_parts("shapes", way, device=args.device).projection
        words.use_template(parts.projection.config.prompt_template)
    elif way:
        words.config.text_training = way
    trainer = RTDTrainer(
        parts.text_encoder,
        replace(args, seed=seed, learning_rate=script.lora_learning_rate if use_peft else args.learning_rate),
        projection=words,
        processing_class=parts.tokenizer,
        train_dataset=load_triplets("shapes", script.num_triplets, seed),
        peft_config=ModelArguments().lora_config(parts.text_encoder) if use_peft else None,
    )
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model), time.perf_counter() - started


@lru_cache(maxsize=1)
def evaluators(projection: str, device: str):
    """An evaluator for each form of the world, with the frozen encoder; what they keep of the pictures is reused."""
    from rtd_hf import BENCHMARKS as LOADERS
    from rtd_hf import CIREvaluator

    parts = load_parts("shapes", projection.partition(":")[0], device=device)
    return [CIREvaluator(LOADERS[name](), parts.retriever()) for name in BENCHMARKS]


def measure(projection: str, text_encoder, device: str) -> dict[str, list[float]]:
    """Per metric one value a query, in percent, on every form of the world; of the frozen encoder where it is None."""
    values = {}
    for evaluator in evaluators(projection, device):
        values |= evaluator.evaluate(text_encoder).per_query
    return {name: [round(value, 4) for value in values[name].tolist()] for name in KEPT}


def results(script: ScriptArguments, args) -> dict[str, dict]:
    """All measurements by name, such as `lincir frozen` and `lincir rtd 1`; what lies there is not made again."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [("frozen", 0), *((way, seed) for way in script.ways for seed in range(1, script.seeds + 1))]
    found = {}
    for projection, (way, seed) in product(script.projections, runs):
        name = f"{projection} {way}" + (f" {seed}" if seed else "")
        file = folder / f"{name.replace(' ', '-').replace(':', '-')}.json"
        settings = {"steps": args.max_steps, "triplets": script.num_triplets, "learning rate": args.learning_rate}
        settings["learning rate with LoRA"] = script.lora_learning_rate
        if file.exists():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
            if found[name]["settings"] != settings:
                raise ValueError(f"{file} was made with {found[name]['settings']}, not {settings}. Remove the folder.")
            continue
        encoder, seconds = None, 0.0
        if way != "frozen":
            encoder, seconds = train(projection, seed, way == "rtd_lora", script, args)
        values = measure(projection, encoder, str(args.device))
        found[name] = {"settings": settings, "seconds": round(seconds, 1), "per_query": values}
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(found[name]), encoding="utf-8")
        unfinished.replace(file)
        means = {key: sum(found[name]["per_query"][key]) / len(found[name]["per_query"][key]) for key in COLUMNS}
        say(f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in means.items()) + f" ({seconds:.0f} s)")
    return found


def summarise(found: dict[str, dict], script: ScriptArguments) -> list[dict]:
    """A row for each projection and way: mean and seeds of every metric, and the gain with its interval."""
    import torch

    from rtd_hf import paired_bootstrap

    rows = []
    for projection in script.projections:
        frozen = found[f"{projection} frozen"]["per_query"]
        for way in ("frozen", *script.ways):
            seeds = [0] if way == "frozen" else range(1, script.seeds + 1)
            runs = [found[f"{projection} {way}" + (f" {seed}" if seed else "")]["per_query"] for seed in seeds]
            row = {"projection": projection, "way": way, "metrics": {}}
            for metric in KEPT:
                values = torch.tensor([run[metric] for run in runs])
                entry = {
                    "mean": round(values.mean().item(), 2),
                    "seeds": [round(v, 2) for v in values.mean(1).tolist()],
                }
                if way != "frozen":
                    interval = paired_bootstrap(torch.tensor(frozen[metric]), values.mean(0), seed=0)
                    entry |= {key: round(getattr(interval, key), 2) for key in ("gain", "low", "high")}
                row["metrics"][metric] = entry
            rows.append(row)
    return rows


def table(rows: list[dict]) -> list[list[str]]:
    """The rows as cells, a heading first."""
    ways = {"frozen": "", "rtd": " + RTD", "rtd_lora": " + RTD, LoRA"}
    short = {"recall": "R", "map": "mAP"}
    cells = [["query"]]
    for column in COLUMNS:
        benchmark, _, metric = column.rpartition("_")
        name, _, k = metric.partition("@")
        cells[0].append(f"{benchmark.removeprefix('shapes_')} {short[name]}@{k}")
    cells[0].append(f"gain in {cells[0][2]}")
    for row in rows:
        name, _, training = row["projection"].partition(":")
        line = [NAMES[name] + ways[row["way"]] + (f" ({training})" if training else "")]
        line += [f"{row['metrics'][column]['mean']:.1f}" for column in COLUMNS]
        main = row["metrics"][COLUMNS[1]]
        line.append(f"{main['gain']:+.1f} [{main['low']:+.1f}, {main['high']:+.1f}]" if "gain" in main else "")
        cells.append(line)
    return cells


def main(script: ScriptArguments, args) -> None:
    import torch
    import transformers

    unknown = [name for name in script.projections if name.partition(":")[0] not in WORLD_PROJECTIONS]
    if unknown:
        raise ValueError(f"`--projections` must be of {', '.join(WORLD_PROJECTIONS)}, got {unknown[0]!r}.")
    if not set(script.ways) <= {"rtd", "rtd_lora"}:
        raise ValueError(f"`--ways` must be of `rtd` and `rtd_lora`, got {' '.join(script.ways)}.")
    if script.seeds < 1:
        raise ValueError(f"`--seeds` must be at least 1, got {script.seeds}.")
    found = results(script, args)
    rows = summarise(found, script)
    say("\n" + aligned(table(rows)))
    say("\n" + markdown(table(rows)))
    if script.output_json:
        report = {
            "command": " ".join(["python", "examples/compare_projections.py", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {args.device.type}",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "settings": next(iter(found.values()))["settings"],
            "seeds": list(range(1, script.seeds + 1)),
            "interval": "95 %, paired bootstrap over the queries of their mean over the seeds",
            "training seconds": {name: run["seconds"] for name, run in found.items() if run["seconds"]},
            "rows": rows,
        }
        Path(script.output_json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_screen_errors():
        if wants_help(sys.argv[1:]):
            from rtd_hf.options import RTDOptions as TrainingOptions
        else:
            from rtd_hf import RTDTrainingArguments as TrainingOptions
        parsed = parse(
            (ScriptArguments, TrainingOptions),
            sys.argv[1:],
            default_recipe=HERE / "recipes" / "compare_projections.yaml",
            description="Five projections, each frozen, with RTD and with RTD through LoRA, in the offline world.",
        )
        main(*parsed)
