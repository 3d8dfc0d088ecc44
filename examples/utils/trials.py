"""Trainings in the offline world that are compared: each is measured once, and what was measured is kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any


RECIPE = Path(__file__).parents[1] / "recipes" / "trials.yaml"
BENCHMARKS = ("shapes", "shapes_many", "shapes_categories")
COLUMNS = ("shapes_recall@1", "shapes_recall@10", "shapes_many_map@10", "shapes_categories_recall@10")
KEPT = (*COLUMNS, "shapes_recall@5", "shapes_recall@50", "shapes_many_recall@10", "shapes_categories_recall@50")


class Trials:
    """
    Results by name, in a folder with a file for each: a comparison that was stopped goes on, and several processes may
    share the work.

    Args:
        folder (`str` or `Path`): Made where it is missing.
        settings (`Mapping[str, Any]`): What all trials have in common.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder, self.settings = Path(folder), dict(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, dict] = {}

    def run(self, name: str, make: Callable[[], dict[str, Any]]) -> bool:
        """Puts a trial's result into `found`.

        Args:
            name (`str`): Such as `lincir rtd 1`.
            make (`Callable`): Gives the result, of what JSON can hold; called where there is none yet.

        Returns:
            `bool`: whether it was made now.

        Raises:
            ValueError: the one that lies there was made with other settings.
        """
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
        file = self.folder / f"{safe}.json"
        if file.exists():
            self.found[name] = json.loads(file.read_text(encoding="utf-8"))
            if self.found[name]["settings"] != self.settings:
                raise ValueError(
                    f"{file} was made with {self.found[name]['settings']}, not {self.settings}. Remove the folder."
                )
            return False
        self.found[name] = {"settings": self.settings, **make()}
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(self.found[name]), encoding="utf-8")
        unfinished.replace(file)
        return True


def trial_arguments(script_arguments: type, *, description: str, output_dir: str) -> tuple:
    """The arguments of a script that compares trainings: its own, and those of every training, by `trials.yaml`.

    Args:
        script_arguments (`type`): The dataclass of its own.
        description (`str`): For `--help`, which costs nothing.
        output_dir (`str`): Where results are kept by default.
    """
    import sys

    from utils.arguments import parse, wants_help

    if wants_help(sys.argv[1:]):
        from rtd_hf.options import RTDOptions as TrainingOptions
    else:
        from rtd_hf import RTDTrainingArguments as TrainingOptions
    return parse(
        (script_arguments, TrainingOptions),
        sys.argv[1:],
        default_recipe=RECIPE,
        description=description,
        defaults={"output_dir": output_dir},
    )


def trained(parts, args, triplets, *, projection=None, peft_config=None):
    """The text encoder after RTD's training.

    Args:
        parts (`Parts`): What `load_parts` gave; its text encoder is trained.
        args (`RTDTrainingArguments`): Options.
        triplets (`datasets.Dataset`): What it learns from.
        projection (*optional*): Another projection than that of `parts`.
        peft_config (*optional*): Trains adapters instead of all weights.
    """
    from rtd_hf import RTDTrainer

    trainer = RTDTrainer(
        parts.text_encoder,
        args,
        projection=projection or parts.projection,
        processing_class=parts.tokenizer,
        train_dataset=triplets,
        peft_config=peft_config,
    )
    trainer.train()
    return trainer.trained_encoder()


@lru_cache(maxsize=1)
def _evaluators(projection: str, device: str):
    """An evaluator for each form of the world, with the frozen encoder; what they keep of the pictures is reused."""
    from rtd_hf import BENCHMARKS as LOADERS
    from rtd_hf import CIREvaluator
    from utils.parts import load_parts

    parts = load_parts("shapes", projection, device=device)
    return [CIREvaluator(LOADERS[name](), parts.retriever()) for name in BENCHMARKS]


def measure(projection: str, text_encoder, device: str) -> dict[str, list[float]]:
    """Per metric one value a query, in percent, on every form of the world; of the frozen encoder where it is None."""
    values = {}
    for evaluator in _evaluators(projection, device):
        values |= evaluator.evaluate(text_encoder).per_query
    return {name: [round(value, 4) for value in values[name].tolist()] for name in KEPT}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def told(per_query: Mapping[str, Sequence[float]]) -> str:
    """The main figures of a trial, for a line on the screen."""
    return ", ".join(f"{key} {mean(per_query[key]):.1f}" for key in COLUMNS)


def summarise(runs: Sequence[Mapping], frozen: Mapping[str, Sequence[float]] | None = None) -> dict[str, dict]:
    """Mean and seeds of every metric of `KEPT`.

    Args:
        runs (`Sequence[Mapping]`): Per-query values by metric, a run for each seed.
        frozen (`Mapping`, *optional*): Those of the frozen encoder, for the gain over it with its 95 % interval: a
            paired bootstrap over the queries of their mean over the seeds.
    """
    import torch

    from rtd_hf import paired_bootstrap

    metrics = {}
    for metric in KEPT:
        values = torch.tensor([run[metric] for run in runs])
        metrics[metric] = {
            "mean": round(values.mean().item(), 2),
            "seeds": [round(value, 2) for value in values.mean(1).tolist()],
        }
        if frozen is not None:
            interval = paired_bootstrap(torch.tensor(frozen[metric]), values.mean(0), seed=0)
            metrics[metric] |= {key: round(getattr(interval, key), 2) for key in ("gain", "low", "high")}
    return metrics


def cells(label: str, metrics: Mapping[str, Mapping]) -> list[str]:
    """One line of the table under [`heading`]."""
    main = metrics[COLUMNS[1]]
    gain = f"{main['gain']:+.1f} [{main['low']:+.1f}, {main['high']:+.1f}]" if "gain" in main else ""
    return [label, *(f"{metrics[column]['mean']:.1f}" for column in COLUMNS), gain]


def heading(first: str) -> list[str]:
    """The table's first line: `COLUMNS` in short."""
    short = {"recall": "R", "map": "mAP"}
    names = []
    for column in COLUMNS:
        benchmark, _, metric = column.rpartition("_")
        name, _, k = metric.partition("@")
        names.append(f"{benchmark.removeprefix('shapes_')} {short[name]}@{k}")
    return [first, *names, f"gain in {names[1]}"]


def write_figures(
    path: str, script: str, arguments: Sequence[str], *, device: str, seeds: int, **figures: Any
) -> None:
    """A file of figures, with what it has to say of them: command, machine, versions, seeds, kind of interval."""
    import platform

    import torch
    import transformers

    report = {
        "command": " ".join(["python", f"examples/{script}.py", *arguments]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seeds": list(range(1, seeds + 1)),
        "interval": "95 %, paired bootstrap over the queries of their mean over the seeds",
        **figures,
    }
    Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
