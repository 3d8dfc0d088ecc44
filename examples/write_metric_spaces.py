"""Writes our metrics as folders that `evaluate.load` reads offline, and pushes them as metric Spaces if asked.

    python examples/write_metric_spaces.py --output_dir spaces
    python examples/write_metric_spaces.py --output_dir spaces --push_to NAMESPACE

A pushed Space is private until you make it public.
"""

# ci: --output_dir {tmp}
# ci: --help

import sys
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors


@dataclass
class SpaceArguments:
    output_dir: str = field(default="spaces", metadata={"help": "Where the folders are written, one a metric."})
    push_to: str = field(default="", metadata={"help": "User or organisation; nothing is pushed by default."})
    requirement: str = field(default="rtd_hf", metadata={"help": "How a Space installs this package, for pip."})


def main(args: SpaceArguments) -> None:
    from rtd_hf.metric_spaces import CLASSES, push_metric_space, write_metric_space

    for name in CLASSES:
        folder = write_metric_space(
            name, Path(args.output_dir) / name, namespace=args.push_to, requirement=args.requirement
        )
        sys.stdout.write(f'evaluate.load("{folder}")\n')
        if args.push_to:
            sys.stdout.write(f"{push_metric_space(folder, args.push_to)}\n")


if __name__ == "__main__":
    with one_screen_errors():
        from transformers import HfArgumentParser

        parser = HfArgumentParser(SpaceArguments, description=__doc__.splitlines()[0])
        (parsed,) = parser.parse_args_into_dataclasses()
        main(parsed)
