"""Triplets on the Hub: one Parquet file and a card that says how they were made."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from .columns import TRIPLET_COLUMNS


_COLUMNS = {
    "reference_caption": "caption of the picture that is changed",
    "conditioning_caption": "text of the change",
    "target_caption": "caption of the picture that is wanted",
    "rule": "kind of change",
    "source": "what the change takes away",
    "target": "what it brings in",
    "generator": "what made the triplet; with a model, its name behind a colon",
    "seed": "seed of the generator",
    "caption_row": "place of the caption in the captions that were used, from 0",
}
_SHOWN = 5
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip


def build_triplet_card(
    path: str | os.PathLike,
    *,
    license: str,  # noqa: A002
    repo_id: str,
    captions: str,
    command: str = "",
    skipped: Mapping[str, int] | None = None,
) -> str:
    """
    The card of a data set of triplets.

    Args:
        path (`str` or `os.PathLike`): The Parquet file.
        license (`str`): Licence of the texts, such as `cc-by-4.0`: that of the captions decides.
        repo_id (`str`): Where it will lie.
        captions (`str`): Where the captions come from.
        command (`str`, *optional*): What made the file.
        skipped (`Mapping[str, int]`, *optional*): What was left out, by reason.

    Returns:
        `str`: the Markdown with its YAML header.

    Raises:
        ValueError: `license` is missing, or the file is none of triplets, or damaged.
    """
    if not license:
        raise ValueError("`license` is missing: the card must state one, that of the captions, such as `cc-by-4.0`.")
    names, total, rules, shown = _contents(path)
    missing = [name for name in TRIPLET_COLUMNS if name not in names]
    if missing:
        raise ValueError(f"{path} holds no text triplets: the column `{missing[0]}` is missing.")
    size = next((name for bound, name in _SIZES if total < bound), "n>100M")
    header = [
        f"license: {license}", "language: [en]", "task_categories: [image-to-image, feature-extraction]",
        "tags: [composed-image-retrieval, text-triplets]", f"size_categories: [{size}]",
        "configs:\n  - config_name: default\n    data_files: data/train.parquet",
    ]  # fmt: skip
    lines = ["---", *header, "---", f"# {repo_id.split('/')[-1]}", ""]
    lines += [f"{total:,} text triplets for composed image retrieval, made of the captions of {captions}.", ""]
    lines += ["| Column | What it is |", "|---|---|"]
    lines += [f"| `{name}` | {_COLUMNS.get(name, '')} |" for name in names]
    if rules:
        lines += ["", "| Rule | Triplets |", "|---|---|"]
        lines += [f"| {rule} | {number:,} |" for rule, number in rules.most_common()]
    lines += ["", "| Reference | Conditioning text | Target |", "|---|---|---|"]
    for row in shown:
        lines.append("| " + " | ".join(_cell(row[name]) for name in TRIPLET_COLUMNS) + " |")
    if skipped:
        left_out = ", ".join(f"{reason}: {number:,}" for reason, number in sorted(skipped.items()))
        lines += ["", f"Left out: {left_out}."]
    if command:
        lines += ["", "Made by", "", "```shell", command, "```"]
    lines += ["", "```python", "from datasets import load_dataset", "",
              f'triplets = load_dataset("{repo_id}", split="train")', "```", ""]  # fmt: skip
    return "\n".join(lines)


def _contents(path: str | os.PathLike) -> tuple[list[str], int, Counter[str], list[dict[str, Any]]]:
    """Columns, number of rows, rows by rule, and the first rows; read in pieces, for the file may be large."""
    try:
        with parquet.ParquetFile(path) as file:
            names, rules = file.schema_arrow.names, Counter()
            shown = next((batch.to_pylist() for batch in file.iter_batches(_SHOWN)), [])
            for batch in file.iter_batches(columns=["rule"]) if "rule" in names else ():
                rules.update(map(str, batch.column(0).to_pylist()))
            return names, file.metadata.num_rows, rules, shown
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged, or no Parquet file ({error}). Make it again.") from error


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def push_triplets(path: str | os.PathLike, repo_id: str, card: str, *, private: bool = True) -> str:
    """
    Uploads a file of triplets with its card, in one commit.

    Args:
        path (`str` or `os.PathLike`): The Parquet file.
        repo_id (`str`): `user/name` of the data set; made where it is not there.
        card (`str`): See [`build_triplet_card`].
        private (`bool`, *optional*, defaults to `True`): Whether a new one is private.

    Returns:
        `str`: its address.

    Raises:
        ValueError: the file is no Parquet file.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses; nothing was uploaded then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    path = Path(path)
    if path.suffix != ".parquet":
        raise ValueError(f"`push_to_hub` needs a Parquet file, got {path}. Give the output that name.")
    api = HfApi()
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    files = [
        CommitOperationAdd("data/train.parquet", str(path)),
        CommitOperationAdd("README.md", card.encode()),
    ]
    api.create_commit(repo_id, files, commit_message="Add text triplets", repo_type="dataset")
    return str(address)
