"""One of the paper's studies in the offline world: a training for each setting and seed, a table, a plot.

    python examples/run_study.py --study components --seeds 3 --output_dir outputs/studies

`--study` names one or several; `all` is all of them. A training that two studies share is done once, and what was
measured is kept: a run that was stopped goes on, and several processes may share the work, each with studies of its
own. Figures, plots and a page with all of them go to `--results`.
"""

# ci: --study components lora --seeds 1 --max_steps 3 --num_triplets 600 --only RTD 4 --output_dir {tmp}

import json
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from utils.arguments import one_screen_errors
from utils.studies import STUDIES
from utils.tables import aligned
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


HERE = Path(__file__).parent
FROZEN = "no training"


@dataclass
class ScriptArguments:
    config: str = field(default=str(RECIPE), metadata={"help": "YAML recipe of every training."})
    study: list[str] = field(default_factory=lambda: ["all"], metadata={"help": f"Of {', '.join(STUDIES)}; or `all`."})
    only: list[str] = field(
        default_factory=list,
        metadata={"help": "Only settings whose labels hold one of these; no results are written."},
    )
    seeds: int = field(default=3, metadata={"help": "Trainings a setting, with the seeds 1, 2, ..."})
    num_triplets: int = field(default=40000, metadata={"help": "Triplets, where they are not what is varied."})
    projection: str = field(default="lincir", metadata={"help": "Which of our projections."})
    results: str = field(
        default=str(HERE / "studies"), metadata={"help": "Folder of the figures (JSON) and plots (PNG)."}
    )


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def train(setting: dict[str, Any], seed: int, script: ScriptArguments, args) -> dict:
    """One training: values per query, and the seconds."""
    from transformers import set_seed
    from utils.parts import ModelArguments, load_parts, load_triplets

    setting = dict(setting)
    number, frozen = setting.pop("num_triplets", script.num_triplets), setting.pop("frozen", ())
    rank = setting.pop("lora_r", None)
    set_seed(seed)
    started = time.perf_counter()
    parts = load_parts("shapes", script.projection, device=args.device)
    for name, parameter in parts.text_encoder.named_parameters():
        if any(part in name for part in frozen):
            parameter.requires_grad_(False)
    config = ModelArguments(lora_r=rank, lora_alpha=2 * rank).lora_config(parts.text_encoder) if rank else None
    triplets = load_triplets("shapes", number, seed)
    encoder = trained(parts, replace(args, seed=seed, **setting), triplets, peft_config=config)
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "per_query": measure(script.projection, encoder, str(args.device))}


def name_of(setting: dict[str, Any], args, script: ScriptArguments) -> str:
    """A training by all that differs from the recipe, so that studies share it."""
    usual = {"num_triplets": script.num_triplets}
    differs = {k: v for k, v in setting.items() if v != usual.get(k, getattr(args, k, None))}
    if differs.get("noise_scale") == 0:
        differs = {"noise_type": "none"}
    return json.dumps(differs, sort_keys=True) if differs else "recipe"


def chosen(script: ScriptArguments) -> dict[str, dict[str, dict]]:
    """The settings by study and label."""
    names = list(STUDIES) if script.study == ["all"] else script.study
    wrong = [name for name in names if name not in STUDIES]
    if wrong:
        raise ValueError(f"`--study` must be of {', '.join(STUDIES)}, or `all`; got {', '.join(wrong)}.")

    def wanted(label: str) -> bool:
        return not script.only or any(part in label for part in script.only)

    return {
        name: {label: dict(setting) for label, setting in STUDIES[name].settings.items() if wanted(label)}
        for name in names
    }


def main(script: ScriptArguments, args) -> None:
    settings = {"steps": args.max_steps, "triplets": script.num_triplets, "learning rate": args.learning_rate}
    trials = Trials(args.output_dir, {**settings, "projection": script.projection})
    trials.run(FROZEN, lambda: {"per_query": measure(script.projection, None, str(args.device))})
    studies = chosen(script)
    for study, found in studies.items():
        for (label, setting), seed in product(found.items(), range(1, script.seeds + 1)):
            name = f"{name_of(setting, args, script)} seed {seed}"
            if trials.run(name, lambda setting=setting, seed=seed: train(setting, seed, script, args)):
                say(f"{study}: {label}, seed {seed}: {told(trials.found[name]['per_query'])}")
        tell(study, found, trials, script, args)


def tell(study: str, found: dict[str, dict], trials: Trials, script: ScriptArguments, args) -> None:
    """The table of a study; its figures and its plot, where all of it was trained."""
    from utils.study_page import write_page
    from utils.study_plots import plot_study

    frozen = trials.found[FROZEN]["per_query"]
    rows = []
    for label, setting in found.items():
        runs = [trials.found[f"{name_of(setting, args, script)} seed {s}"] for s in range(1, script.seeds + 1)]
        metrics = summarise([run["per_query"] for run in runs], frozen)
        seconds = round(sum(run["seconds"] for run in runs) / len(runs), 1)
        rows.append({"setting": label, "metrics": metrics, "seconds": seconds})
    about = STUDIES[study]
    lines = [cells(FROZEN, summarise([frozen])), *(cells(row["setting"], row["metrics"]) for row in rows)]
    say(f"\n{about.title}\n\n{aligned([heading('setting'), *lines])}\n")
    if script.only:
        return
    folder = Path(script.results)
    folder.mkdir(parents=True, exist_ok=True)
    write_figures(
        str(folder / f"{study}.json"),
        "run_study",
        sys.argv[1:],
        device=str(args.device),
        seeds=script.seeds,
        study=study,
        title=about.title,
        paper=about.paper,
        frozen=summarise([frozen]),
        rows=rows,
    )
    plot_study(about, rows, summarise([frozen]), folder / f"{study}.png")
    write_page(folder)


if __name__ == "__main__":
    with one_screen_errors():
        main(
            *trial_arguments(
                ScriptArguments,
                description="A study in the offline world: a training for each setting and seed, a table and a plot.",
                output_dir="outputs/studies",
            )
        )
