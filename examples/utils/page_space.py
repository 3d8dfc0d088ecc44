"""The page of `app.py` as a folder that is ready to be pushed as a Hub Space."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any


_FILES = ("app.py", "utils/__init__.py", "utils/arguments.py", "utils/page.py", "utils/page_guard.py",
          "utils/page_html.py", "utils/page_search.py", "utils/page_space.py")  # fmt: skip
_README = """\
---
title: Composed image retrieval
emoji: 🔎
colorFrom: yellow
colorTo: blue
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
pinned: false
license: mit
short_description: Search by a picture and a text, before and after RTD
tags:
- composed-image-retrieval
- image-search
{models}---

# Composed image retrieval

Choose a picture, say what should be different, and see what a CLIP text encoder finds before and after RTD (*Reducing
Task Discrepancy of Text Encoders for Zero-Shot Composed Image Retrieval*, [arXiv 2406.09188](https://huggingface.co/papers/2406.09188)).

`app.yaml` holds the options; `python app.py --help` lists them. Pictures that visitors send are removed as soon as
they are read, and nothing is sent elsewhere.

```shell
hf repos create you/composed-image-retrieval --type space --sdk gradio
hf upload you/composed-image-retrieval {folder} . --type space
```
"""


def write_space(folder: str | Path, args: Any, examples: Path) -> Path:
    """
    Writes the page with its options, and the model and the pictures where they are folders of this computer.

    Args:
        folder (`str` or `Path`): Where it is written; see [`~rtd_hf.prepare_output_dir`] for which folders are taken.
        args: The options of `app.py`.
        examples (`Path`): The folder of `app.py`.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: The base model lies in a folder of this computer.
        FileExistsError, NotADirectoryError, PermissionError: As [`~rtd_hf.prepare_output_dir`].
    """
    from rtd_hf import prepare_output_dir
    from rtd_hf.search.galleries import folder_gallery

    if args.base_model and Path(args.base_model).exists():
        raise ValueError(
            f"`--base_model` {args.base_model} lies on this computer, where a Space cannot reach it. Give its Hub id."
        )
    root = prepare_output_dir(folder)
    for name in _FILES:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(examples / name, root / name)
    options = {"model": args.model}
    if Path(args.model).is_dir():
        options["model"] = "model"
        leave_out = shutil.ignore_patterns("checkpoint-*", ".*", "*.png", "runs")
        shutil.copytree(args.model, root / "model", dirs_exist_ok=True, ignore=leave_out)
    if args.pictures:
        options["pictures"] = "pictures"
        gallery = folder_gallery(args.pictures)
        for name in gallery.ids:
            (root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(gallery.load(name), root / "pictures" / name)
    if args.base_model:
        options["base_model"] = args.base_model
    if args.leave_out_unreadable:
        options["leave_out_unreadable"] = True
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in options.items()]
    (root / "app.yaml").write_text("# The options of app.py here.\n" + "".join(lines), encoding="utf-8")
    (root / "requirements.txt").write_text(f"{args.requirement}\n", encoding="utf-8")
    models = "" if options["model"] == "model" else f"models:\n- {args.model}\n"
    readme = _README.format(gradio=version("gradio"), models=models, folder=root.name)
    (root / "README.md").write_text(readme, encoding="utf-8")
    return root
