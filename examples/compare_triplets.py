"""What RTD gains from good, noisy, shuffled, one-sided and mixed triplets, and whether their report foretells it.

    python examples/compare_triplets.py --seeds 3 --output_json examples/benchmarks/compare_triplets.json

All of it happens in the offline world. A set is measured as `examples/inspect_triplets.py` measures it, and RTD
trains on it; over the sets, Spearman's rank correlation of each measure with the gain says how far the measure
foretells their order. Every training is written down as it ends, in `--output_dir`, and is not done again: a run that
was stopped goes on, and several processes may share the work, each with `--sets` of its own.
"""

# ci: --sets world rules --seeds 1 --max_steps 3 --num_triplets 600 --output_dir {tmp}

import sys
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product

from utils.arguments import one_screen_errors
from utils.tables import aligned, markdown
from utils.trials import (
    COLUMNS,
    RECIPE,
    Trials,
    cells,
    heading,
    mean,
    measure,
    summarise,
    told,
    trained,
    trial_arguments,
    write_figures,
)
from utils.triplet_sets import SETS, asked_for, triplet_set


FROZEN = "no training"
# What is asked whether it foretells the gain, as it is called in the report; "/" goes a level down.
MEASURES = (
    "consistent",
    "change_named",
    "common_words",
    "query_words_known",
    "effective/rules",
    "effective/openings",
    "shares/names_source",
    "shares/names_target",
    "shares/source_in_reference",
    "shares/source_gone",
    "shares/target_in_target",
    "distinct/conditioning_caption",
    "distinct_word_pairs",
    "vocabulary/conditioning_caption",
    "lengths/conditioning_caption/mean",
    "similarity/reference_target/mean",
    "similarity/target_concatenation/mean",
    "similarity/target_conditioning/mean",
    "similarity/moved_as_told/mean",
)


@dataclass
class ScriptArguments:
    config: str = field(
        default=str(RECIPE),
        metadata={"help": "YAML recipe of every training."},
    )
    sets: list[str] = field(
        default_factory=lambda: list(SETS), metadata={"help": f"Which sets: {', '.join(map(repr, SETS))}."}
    )
    seeds: int = field(default=3, metadata={"help": "Trainings a set, with the seeds 1, 2, ..., which draw it too."})
    num_triplets: int = field(default=40000, metadata={"help": "Triplets in a set."})
    projection: str = field(default="lincir", metadata={"help": "Which of our projections."})
    output_json: str = field(default="", metadata={"help": "Where the figures are written; nowhere by default."})


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@lru_cache(maxsize=1)
def queries() -> tuple[str, ...]:
    """The conditioning texts of the benchmark."""
    from rtd_hf import BENCHMARKS

    return tuple(text for query in BENCHMARKS["shapes"]().queries for text in query.texts)


def report_of(rows: list[dict], seed: int) -> dict[str, float]:
    """The measures of the quality report."""
    from utils.embedding import text_embedder

    from rtd_hf import measure_triplets

    report = measure_triplets(rows, encode=text_embedder("shapes"), sample=1, seed=seed, queries=queries())
    found = {}
    for name in MEASURES:
        value = report
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[name] = float(value)
    return found


def train(rows: list[dict], seed: int, script: ScriptArguments, args) -> dict:
    """One training on a set: values per query, and the seconds."""
    from datasets import Dataset
    from transformers import set_seed
    from utils.parts import load_parts

    from rtd_hf.triplets import TRIPLET_COLUMNS

    set_seed(seed)
    started = time.perf_counter()
    parts = load_parts("shapes", script.projection, device=args.device)
    texts = [{column: row[column] for column in TRIPLET_COLUMNS} for row in rows]
    encoder = trained(parts, replace(args, seed=seed), Dataset.from_list(texts))
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "per_query": measure(script.projection, encoder, str(args.device))}


def results(script: ScriptArguments, args) -> dict[str, dict]:
    """All measurements by name, such as `rules, noisy 2`; what lies there is not made again."""
    settings = {"steps": args.max_steps, "triplets": script.num_triplets, "learning rate": args.learning_rate}
    trials = Trials(args.output_dir, {**settings, "projection": script.projection})
    drawn = lru_cache(maxsize=1)(triplet_set)
    trials.run(FROZEN, lambda: {"per_query": measure(script.projection, None, str(args.device))})
    for seed, name in product(range(1, script.seeds + 1), script.sets):

        def inspect(name=name, seed=seed) -> dict:
            rows = drawn(name, script.num_triplets, seed)
            different = len({tuple(row[column] for column in row if column.endswith("_caption")) for row in rows})
            return {"different": different, "measures": report_of(rows, seed)}

        def make(name=name, seed=seed) -> dict:
            return train(drawn(name, script.num_triplets, seed), seed, script, args)

        trials.run(f"report of {name} {seed}", inspect)
        if trials.run(f"{name} {seed}", make):
            run = trials.found[f"{name} {seed}"]
            say(f"{name}, seed {seed}: {told(run['per_query'])} ({run['seconds']:.0f} s)")
    return trials.found


def rows_of(found: dict[str, dict], script: ScriptArguments) -> list[dict]:
    """A row for each set, in the order of their gains: metrics with gain, measures, means over the seeds."""
    frozen = found[FROZEN]["per_query"]
    rows = []
    for name in script.sets:
        runs = [found[f"{name} {seed}"] for seed in range(1, script.seeds + 1)]
        row = {"set": name, "what": SETS[name], "metrics": summarise([run["per_query"] for run in runs], frozen)}
        row["by kind"] = by_kind(runs)
        reports = [found[f"report of {name} {seed}"] for seed in range(1, script.seeds + 1)]
        row["different triplets"] = round(mean([report["different"] for report in reports]))
        row["measures"] = {
            key: round(mean([report["measures"][key] for report in reports]), 4)
            for key in MEASURES
            if all(key in report["measures"] for report in reports)
        }
        rows.append(row)
    return sorted(rows, key=lambda row: -row["metrics"][COLUMNS[1]]["mean"])


def by_kind(runs: list[dict]) -> dict[str, float]:
    """R@10 of the queries that ask for each kind of change, the mean over runs."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for text, value in zip(queries(), run["per_query"][COLUMNS[1]], strict=True):
            values.setdefault(asked_for(text), []).append(value)
    return {kind: round(mean(values[kind]), 1) for kind in sorted(values)}


def foretold(rows: list[dict]) -> dict[str, float]:
    """Spearman's rank correlation, over the sets, of each measure with the gain; of equal values the mean rank."""
    import numpy as np

    def ranks(values: list[float]) -> np.ndarray:
        values = np.asarray(values)
        return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2

    gains = ranks([row["metrics"][COLUMNS[1]]["gain"] for row in rows])
    found = {}
    for name in MEASURES:
        if not all(name in row["measures"] for row in rows):
            continue
        values = ranks([row["measures"][name] for row in rows])
        if values.std() > 0 and gains.std() > 0:  # else there is no order to foretell
            found[name] = round(float(np.corrcoef(values, gains)[0, 1]), 2)
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def main(script: ScriptArguments, args) -> None:
    unknown = [name for name in script.sets if name not in SETS]
    if unknown:
        raise ValueError(f"`--sets` must be of {', '.join(map(repr, SETS))}, got {unknown[0]!r}.")
    if script.seeds < 1:
        raise ValueError(f"`--seeds` must be at least 1, got {script.seeds}.")
    found = results(script, args)
    rows = rows_of(found, script)
    frozen = cells(FROZEN, summarise([found[FROZEN]["per_query"]]))
    lines = [heading("triplets"), frozen, *(cells(row["set"], row["metrics"]) for row in rows)]
    say("\n" + aligned(lines) + "\n\n" + markdown(lines))
    kinds = {FROZEN: by_kind([found[FROZEN]]), **{row["set"]: row["by kind"] for row in rows}}
    lines = [[f"{COLUMNS[1]} by change", *kinds[FROZEN]]]
    lines += [[name, *(f"{value:.0f}" for value in values.values())] for name, values in kinds.items()]
    say("\n" + aligned(lines))
    correlations = foretold(rows)
    table = [["measure", *(row["set"] for row in rows), "correlation"]]
    for name, correlation in correlations.items():
        table.append([name, *(f"{row['measures'][name]:.3f}" for row in rows), f"{correlation:+.2f}"])
    say("\n" + aligned(table))
    if script.output_json:
        write_figures(
            script.output_json,
            "compare_triplets",
            sys.argv[1:],
            device=args.device.type,
            seeds=script.seeds,
            settings=found[FROZEN]["settings"],
            frozen=summarise([found[FROZEN]["per_query"]]),
            rows=rows,
            **{"frozen by kind": kinds[FROZEN], "rank correlation with the gain": correlations},
        )


if __name__ == "__main__":
    with one_screen_errors():
        main(
            *trial_arguments(
                ScriptArguments,
                description="What RTD gains from different sets of text triplets, in the offline world.",
                output_dir="outputs/compare_triplets",
            )
        )
