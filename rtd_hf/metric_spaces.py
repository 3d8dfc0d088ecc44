"""Metrics as folders that `evaluate.load` reads offline, and that can be pushed to the Hub as metric Spaces."""

import os
from pathlib import Path

from .hub import prepare_output_dir


_SCRIPT = '''"""{title}: {description}"""

from rtd_hf.hf_metrics import {class_name} as Base


class {class_name}(Base):
    """The metric as `rtd_hf` computes it in its own evaluations."""
'''

_APP = """import evaluate
from evaluate.utils import launch_gradio_widget


launch_gradio_widget(evaluate.load("{slug}.py"))
"""

_README = """---
title: {title}
emoji: 🔎
colorFrom: blue
colorTo: green
sdk: gradio
app_file: app.py
pinned: false
license: mit
tags:
- evaluate
- metric
description: >-
  {description}
---

# {title}

{description}

## How to use

```python
import evaluate

metric = evaluate.load("{repo_id}")
{example}
```

## Inputs and output
{inputs}
## Citation

```bibtex
{citation}```
"""

_EXAMPLES = {
    "recall_at_k": 'metric.compute(predictions=[["b", "a"], ["c", "d"]], references=[["a"], ["c"]], k=[1, 2])',
    "mean_average_precision_at_k": "metric.compute(predictions=[[4, 7, 8, 5]], references=[[4, 5, 6]], k=5)",
    "recall_subset_at_k": (
        'metric.compute(predictions=[["a", "b"]], references=[["b"]], candidates=[["b", "c"]], k=1)'
    ),
}
CLASSES = {
    "recall_at_k": "RecallAtK",
    "recall_subset_at_k": "RecallSubsetAtK",
    "mean_average_precision_at_k": "MeanAveragePrecisionAtK",
}
"""Names of the Spaces, and the classes of `rtd_hf.hf_metrics` in them."""


def write_metric_space(
    name: str, folder: str | os.PathLike, *, namespace: str = "", requirement: str = "rtd_hf"
) -> Path:
    """
    Writes a metric as the folder of a Space: `README.md`, `app.py`, `requirements.txt` and the module itself.

    `evaluate.load(str(folder))` reads it without the Hub, where `rtd_hf` is installed.

    Args:
        name (`str`): Of [`CLASSES`], such as `"recall_at_k"`.
        folder (`str` or `os.PathLike`): Where to; its last part must be `name`, by which `evaluate` finds the module.
            See [`prepare_output_dir`] for which folders are taken.
        namespace (`str`, *optional*): User or organisation under which it will be pushed, for the README.
        requirement (`str`, *optional*, defaults to `"rtd_hf"`): How the Space installs this package, for pip.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If there is no such metric, or the folder has another name.
        FileExistsError, NotADirectoryError, PermissionError: See [`prepare_output_dir`].
    """
    from . import hf_metrics

    if name not in CLASSES:
        raise ValueError(f"`name` must be one of {', '.join(CLASSES)}, got {name!r}.")
    if Path(folder).name != name:
        raise ValueError(f"`folder` must end in {name!r}, by which `evaluate.load` finds the module, got {folder}.")
    metric = getattr(hf_metrics, CLASSES[name])()
    folder = prepare_output_dir(folder)
    facts = {
        "slug": name,
        "title": name.replace("_", " ").capitalize(),
        "class_name": CLASSES[name],
        "description": metric.description,
        "repo_id": f"{namespace}/{name}" if namespace else f"NAMESPACE/{name}",
        "example": _EXAMPLES[name],
        "inputs": metric.inputs_description,
        "citation": metric.citation,
    }
    for file, template in ((f"{name}.py", _SCRIPT), ("app.py", _APP), ("README.md", _README)):
        (folder / file).write_text(template.format(**facts), encoding="utf-8")
    (folder / "requirements.txt").write_text(f"evaluate\n{requirement}\n", encoding="utf-8")
    return folder


def push_metric_space(folder: str | os.PathLike, namespace: str, *, private: bool = True, token: str | None = None):
    """
    Pushes a folder of [`write_metric_space`] as a Space.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        namespace (`str`): User or organisation.
        private (`bool`, *optional*, defaults to `True`): Whether a new Space is private.
        token (`str`, *optional*): Of the Hub; the one that is logged in by default.

    Returns:
        `huggingface_hub.CommitInfo`

    Raises:
        FileNotFoundError: If the folder is none of [`write_metric_space`].
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not (folder / f"{folder.name}.py").is_file():
        raise FileNotFoundError(f"{folder} holds no metric `{folder.name}.py`. Write it with `write_metric_space`.")
    api, repo_id = HfApi(token=token), f"{namespace}/{folder.name}"
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id, repo_type="space", folder_path=folder, ignore_patterns=[".*", "__pycache__/*"]
    )
