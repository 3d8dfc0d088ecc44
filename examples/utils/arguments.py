"""Arguments of a script: a YAML recipe first, the command line over it, and `--help` without heavy imports."""

import difflib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any


_TRAINING = "Every argument of transformers.TrainingArguments works too, on the command line and in a recipe."


def wants_help(argv: Sequence[str]) -> bool:
    """Whether the command line asks for help, so that nothing heavy needs to be imported."""
    return any(token in ("-h", "--help") for token in argv)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A YAML recipe; what it `include`s, by a path from its own folder, comes before what it says itself.

    Args:
        path (`str` or `Path`): The recipe: a flat mapping from argument names to values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no flat mapping, or includes itself.
    """
    return _read_recipe(Path(path), ())


def _read_recipe(path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    from rtd_hf.images import leads_out
    from rtd_hf.parsing import parse_yaml

    if not path.is_file():
        raise FileNotFoundError(
            f"`--config` {path} does not exist. Recipes lie in {Path(__file__).parents[1] / 'recipes'}."
        )
    if path.resolve() in including:
        raise ValueError(f"Recipe {path} includes itself, through {', '.join(map(str, including))}.")
    try:
        recipe = parse_yaml(path.read_text(encoding="utf-8-sig")) or {}
    except ValueError as error:
        raise ValueError(f"`--config` {path} is not valid YAML: {error}") from None
    if not isinstance(recipe, dict) or not all(isinstance(name, str) for name in recipe):
        raise ValueError(f"`--config` {path} must hold `name: value` lines, got {str(recipe)[:60]!r}.")
    others, merged = recipe.pop("include", []), {}
    others = [others] if isinstance(others, str) else others
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise ValueError(f"`include` in `--config` {path} must be one or more paths, got {str(others)[:60]!r}.")
    outside = [other for other in others if leads_out(other)]
    if outside:
        raise ValueError(f"`include` in `--config` {path} must name files below its folder, got {outside[0]!r}.")
    for other in others:
        merged |= _read_recipe(path.parent / other, (*including, path.resolve()))
    return merged | recipe


def recipe_tokens(path: str | Path, names: set[str] | None) -> list[str]:
    """Turns a YAML recipe into command-line tokens.

    Args:
        path (`str` or `Path`): The recipe, see [`read_recipe`].
        names (`set[str]`, *optional*): The arguments the script knows; None where that is not known yet.

    Returns:
        `list[str]`, such as `["--learning_rate", "0.001"]`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no flat mapping, or holds a key that the script does not know.
    """
    recipe = read_recipe(path)
    for key in recipe:
        if names is not None and key not in names:
            raise ValueError(f"Recipe {path} has the unknown key `{key}`.{_nearest(str(key), names)}")
    return _tokens(recipe)


def given(argv: Sequence[str], name: str) -> str | None:
    """The value of an argument on a command line, the last one of several; `None` where it is not there."""
    found = None
    for position, token in enumerate(argv):
        if token == f"--{name}" and position + 1 < len(argv):
            found = argv[position + 1]
        elif token.startswith(f"--{name}="):
            found = token.removeprefix(f"--{name}=")
    return found


def with_recipe(argv: Sequence[str]) -> list[str]:
    """A command line behind the tokens of its recipe, for a choice that decides which arguments there are."""
    config = given(argv, "config")
    return [*(recipe_tokens(config, None) if config else []), *argv]


def given_names(argv: Sequence[str], *, default_recipe: str | Path | None) -> set[str]:
    """The names of the arguments that the recipe or the command line states, which `parse` took from no default."""
    config = given(argv, "config") or default_recipe
    tokens = [*(recipe_tokens(config, None) if config else []), *argv]
    return {token.removeprefix("--").split("=")[0] for token in tokens if token.startswith("--")}


def _tokens(values: Mapping[str, Any]) -> list[str]:
    tokens = []
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, list):
            tokens += [f"--{key}", *(str(item) for item in value)]
        else:
            tokens += [f"--{key}", json.dumps(value) if isinstance(value, dict | bool) else str(value)]
    return tokens


def parse(
    kinds: Sequence[type],
    argv: Sequence[str],
    *,
    default_recipe: str | Path | None,
    description: str,
    defaults: Mapping[str, Any] | None = None,
):
    """Parses recipe and command line into dataclasses; what the command line says wins.

    Args:
        kinds (`Sequence[type]`): The dataclasses.
        argv (`Sequence[str]`): The command line without the program's name.
        default_recipe (`str` or `Path`, *optional*): Read where `--config` is not given.
        description (`str`): For `--help`.
        defaults (`Mapping`, *optional*): Values in the place of the dataclasses' own; the recipe wins over them.

    Returns:
        `tuple` of one instance of each dataclass.

    Raises:
        ValueError: If a key or argument is unknown; the message proposes the nearest one.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        kinds,
        description=description,
        epilog=_TRAINING if any(item.name == "learning_rate" for kind in kinds for item in fields(kind)) else None,
        allow_abbrev=False,
    )
    if wants_help(argv):
        parser.print_help()
        raise SystemExit(0)
    names = {item.name for kind in kinds for item in fields(kind) if item.init}
    config = given(argv, "config") or default_recipe
    recipe = recipe_tokens(config, names) if config else []
    tokens = [*_tokens(defaults or {}), *recipe, *argv]
    *values, unknown = parser.parse_args_into_dataclasses(tokens, return_remaining_strings=True)
    if unknown:
        key = unknown[0].lstrip("-").split("=")[0]
        raise ValueError(f"Unknown argument `{unknown[0]}`.{_nearest(key, names)} `--help` lists what there is.")
    return tuple(values)


def checkpoint_to_resume(args) -> str | None:
    """The checkpoint that a training goes on from: as told, the last whole one of its folder for `last`, or none.

    Args:
        args (`transformers.TrainingArguments`): `resume_from_checkpoint` and `output_dir` count. With `auto` a run
            without a checkpoint starts from its beginning.

    Raises:
        FileNotFoundError: If the last one is asked for and there is none.
        ValueError: If the one that is named is not whole.
    """
    from rtd_hf.interruptions import check_checkpoint, last_checkpoint

    wanted = args.resume_from_checkpoint
    if wanted not in ("last", "auto", "True", "true"):
        if wanted and os.path.isdir(wanted):
            check_checkpoint(wanted, processes=args.world_size)
        return wanted
    found = last_checkpoint(args.output_dir, processes=args.world_size)
    if found is None and wanted != "auto":
        raise FileNotFoundError(
            f"`--resume_from_checkpoint` finds no whole checkpoint in {args.output_dir}. Leave it out to start, or "
            f"say `auto`, which starts where there is none."
        )
    return found


def _nearest(key: str, names: set[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


@contextmanager
def without_warnings() -> Iterator[None]:
    """No warnings of the package for a while, where what it would warn of is plain."""
    logger = logging.getLogger("rtd_hf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def one_screen_errors() -> Iterator[None]:
    """Ends the script with exit code 1 and the error's message; `RTD_HF_TRACEBACK=1` shows where it came from."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError, ImportError, ArithmeticError, MemoryError) as error:
        if os.environ.get("RTD_HF_TRACEBACK"):
            raise
        sys.stdout.flush()
        message = str(error)
        if message.startswith("Caught ") and "Original Traceback" in message:
            # A data loader's worker sends its whole traceback as the message; what it says is in the last line.
            message = message.rstrip().rsplit("\n", 1)[-1].split(": ", 1)[-1]
        message = "\n".join([message, *getattr(error, "__notes__", ())])
        raise SystemExit(
            f"\n{type(error).__name__}: {message}\n(RTD_HF_TRACEBACK=1 shows the whole traceback.)"
        ) from None
