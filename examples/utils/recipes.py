"""`recipe.json`: how a fitted model was made, beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_recipe(
    folder: str | Path, command: str, values: Any, names: tuple[str, ...], *, seconds: float, figures: Mapping, **more
) -> None:
    """Writes `recipe.json`.

    Args:
        folder (`str` or `Path`): The model's folder.
        command (`str`): What was run.
        values: What holds the options, such as training arguments.
        names (`tuple[str, ...]`): Those of its options that matter, beside the seed and the schedule.
        seconds (`float`): How long it took.
        figures (`Mapping`): What was measured.
        more: Further entries.
    """
    recipe = {
        "command": command,
        "seed": values.seed,
        **{name: getattr(values, name) for name in names},
        "lr_scheduler_type": str(getattr(values.lr_scheduler_type, "value", values.lr_scheduler_type)),
        **more,
        "seconds": round(seconds),
        "figures": dict(figures),
    }
    # The command with the options above is the whole recipe; where it wrote to does not matter.
    Path(folder, "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
