"""Five projections, each frozen, with RTD, and with RTD through LoRA, over several seeds: the table of the README.

    python examples/compare_projections.py --seeds 3 --output_json examples/benchmarks/compare_projections.json

All of it happens in the offline world, in its three forms. Every training is written down as it ends, in
`--output_dir`, and is not done again: a run that was stopped goes on, and several processes may share the work, each
with `--projections` of its own. The gain over the frozen encoder is the mean over the seeds; its 95 % interval comes
from a bootstrap over the queries, of their mean over the seeds.
"""

# ci: --projections pic2word fti4cir --seeds 1 --max_steps 3 --num_triplets 600 --output_dir {tmp}

import sys
import time
from dataclasses import dataclass, field, replace
from itertools import product

from utils.arguments import one_screen_errors
from utils.parts import WORLD_PROJECTIONS, ModelArguments, load_parts, load_triplets
from utils.tables import aligned, markdown
from utils.trials import (
    RECIPE,
    Trials,
    cells,
    heading,
    measure,
    summarise,
    told,
    trained,
    trial_arguments,
    write_figures,
)


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
        default=str(RECIPE),
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
    encoder = trained(
        parts,
        replace(args, seed=seed, learning_rate=script.lora_learning_rate if use_peft else args.learning_rate),
        load_triplets("shapes", script.num_triplets, seed),
        projection=words,
        peft_config=ModelArguments().lora_config(parts.text_encoder) if use_peft else None,
    )
    return encoder, time.perf_counter() - started


def results(script: ScriptArguments, args) -> dict[str, dict]:
    """All measurements by name, such as `lincir frozen` and `lincir rtd 1`; what lies there is not made again."""
    settings = {"steps": args.max_steps, "triplets": script.num_triplets, "learning rate": args.learning_rate}
    settings["learning rate with LoRA"] = script.lora_learning_rate
    trials = Trials(args.output_dir, settings)
    runs = [("frozen", 0), *((way, seed) for way in script.ways for seed in range(1, script.seeds + 1))]
    for projection, (way, seed) in product(script.projections, runs):

        def make(projection=projection, way=way, seed=seed) -> dict:
            encoder, seconds = None, 0.0
            if way != "frozen":
                encoder, seconds = train(projection, seed, way == "rtd_lora", script, args)
            values = measure(projection.partition(":")[0], encoder, str(args.device))
            return {"seconds": round(seconds, 1), "per_query": values}

        name = f"{projection} {way}" + (f" {seed}" if seed else "")
        if trials.run(name, make):
            run = trials.found[name]
            say(f"{name}: {told(run['per_query'])} ({run['seconds']:.0f} s)")
    return trials.found


def rows_of(found: dict[str, dict], script: ScriptArguments) -> list[dict]:
    """A row for each projection and way: mean and seeds of every metric, and the gain with its interval."""
    rows = []
    for projection in script.projections:
        frozen = found[f"{projection} frozen"]["per_query"]
        rows.append({"projection": projection, "way": "frozen", "metrics": summarise([frozen])})
        for way in script.ways:
            runs = [found[f"{projection} {way} {seed}"]["per_query"] for seed in range(1, script.seeds + 1)]
            rows.append({"projection": projection, "way": way, "metrics": summarise(runs, frozen)})
    return rows


def table(rows: list[dict]) -> list[list[str]]:
    """The rows as cells, a heading first."""
    ways = {"frozen": "", "rtd": " + RTD", "rtd_lora": " + RTD, LoRA"}
    lines = [heading("query")]
    for row in rows:
        name, _, training = row["projection"].partition(":")
        lines.append(cells(NAMES[name] + ways[row["way"]] + (f" ({training})" if training else ""), row["metrics"]))
    return lines


def main(script: ScriptArguments, args) -> None:
    unknown = [name for name in script.projections if name.partition(":")[0] not in WORLD_PROJECTIONS]
    if unknown:
        raise ValueError(f"`--projections` must be of {', '.join(WORLD_PROJECTIONS)}, got {unknown[0]!r}.")
    if not set(script.ways) <= {"rtd", "rtd_lora"}:
        raise ValueError(f"`--ways` must be of `rtd` and `rtd_lora`, got {' '.join(script.ways)}.")
    if script.seeds < 1:
        raise ValueError(f"`--seeds` must be at least 1, got {script.seeds}.")
    found = results(script, args)
    rows = rows_of(found, script)
    say("\n" + aligned(table(rows)))
    say("\n" + markdown(table(rows)))
    if script.output_json:
        write_figures(
            script.output_json,
            "compare_projections",
            sys.argv[1:],
            device=args.device.type,
            seeds=script.seeds,
            settings=next(iter(found.values()))["settings"],
            rows=rows,
            **{"training seconds": {name: run["seconds"] for name, run in found.items() if run["seconds"]}},
        )


if __name__ == "__main__":
    with one_screen_errors():
        main(
            *trial_arguments(
                ScriptArguments,
                description="Five projections, each frozen, with RTD and with RTD through LoRA, in the offline world.",
                output_dir="outputs/compare_projections",
            )
        )
