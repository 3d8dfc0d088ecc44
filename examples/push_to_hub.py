"""Publishes what a training wrote: checks it, shows it, and sends it to the Hub in one commit.

    python examples/push_to_hub.py outputs/run --repo_id me/rtd-lincir-l14 --license mit --dry_run
    python examples/push_to_hub.py outputs/run --repo_id me/rtd-lincir-l14 --license mit --tag v1

`--dry_run` shows every file and the card as it will be read, and asks the Hub nothing. A new repository is private
unless `--public` is given. A push that broke off is run again: what has arrived is not sent twice.
"""

# ci: shapes --repo_id me/rtd-shapes --license mit --dry_run
# ci: --help

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors, parse, wants_help


@dataclass
class PushArguments:
    folder: str = field(
        default="",
        metadata={
            "help": "What the training wrote; also without its name, as the first argument. `shapes`: the untrained "
            "encoder of the offline world, to see how it works."
        },
    )
    repo_id: str = field(default="", metadata={"help": "`owner/name` on the Hub; made where it is not there yet."})
    license: str = field(default="", metadata={"help": "Licence of the weights, such as `mit`; required."})
    public: bool = field(default=False, metadata={"help": "Make a new repository public."})
    revision: str | None = field(default=None, metadata={"help": "Branch to publish to; `main` by default."})
    tag: str | None = field(default=None, metadata={"help": "Tag for the commit, such as `v1`."})
    message: str = field(default="Publish the text encoder", metadata={"help": "First line of the commit."})
    overwrite: bool = field(
        default=False, metadata={"help": "Publish into a repository that holds what rtd_hf did not publish."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Only check, and show what would be sent."})


def write_shapes(folder: Path, license: str) -> Path:
    """The offline world's encoder before any training, as a repository without figures."""
    from utils.parts import load_parts

    from rtd_hf import write_repository

    parts = load_parts("shapes", "shapes")
    return write_repository(
        folder,
        parts.text_encoder,
        tokenizer=parts.tokenizer,
        image_processor=parts.image_processor,
        projection=parts.projection,
        metrics={},
        recipe={"clip_model": "shapes", "projection": "shapes", "max_steps": 0},
        license=license,
        base_model="shapes",
    )


def main(script: PushArguments) -> None:
    from rtd_hf import push_repository
    from rtd_hf.contexts import quiet_transformers
    from rtd_hf.hub.checks import check_license

    check_license(script.license)
    if not script.folder:
        raise ValueError("`folder` is missing. Give what the training wrote, such as `outputs/run`.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(script.folder)
        if script.folder == "shapes" and not folder.exists():
            folder = write_shapes(Path(scratch) / "shapes", script.license)
        with quiet_transformers():
            done = push_repository(
                folder,
                script.repo_id,
                license=script.license,
                private=not script.public,
                revision=script.revision,
                tag=script.tag,
                dry_run=script.dry_run,
                overwrite=script.overwrite,
                commit_message=script.message,
            )
    sys.stdout.write(f"{done}\n\n")
    if script.dry_run:
        sys.stdout.write(f"{'-' * 20} README.md {'-' * 20}\n{done.card}\n{'-' * 51}\n\nNothing was sent (dry run).\n")
    else:
        sys.stdout.write(f"Published: {done.url} (commit {done.commit})\n")


if __name__ == "__main__":
    with one_screen_errors():
        arguments = sys.argv[1:]
        if arguments and not arguments[0].startswith("-") and not wants_help(arguments):
            arguments = ["--folder", *arguments]
        (parsed,) = parse(
            (PushArguments,), arguments, default_recipe=None, description="Publishes a trained encoder on the Hub."
        )
        main(parsed)
