"""A run's arguments as they were understood, such that the same script repeats it from them."""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any


_HIDDEN = "***"
_SECRET_OPTION = re.compile(r"_(token|password|secret|api_key)$")
# Tokens of the Hub and keys of OpenAI's kind, and the name and password of an address.
_SECRET = re.compile(r"\b(?:hf_|sk-)[A-Za-z0-9_-]{16,}|(?<=://)[^/@\s]+(?=@)")
# Where a run came from, went to and was told about, which is not how its result is made.
_NOT_OF_THE_RECIPE = {"config", "resume_from_checkpoint", "local_rank", "run_name", "project", "logging_dir"}


def resolved_recipe(parts: Sequence[Any], *, given: set[str], always: Sequence[type] = ()) -> dict[str, Any]:
    """The arguments of a run, for a recipe.

    Nothing is compared with a second `TrainingArguments`: to make one resets what accelerate knows of the processes.

    Args:
        parts (`Sequence`): The dataclasses that `parse` returned.
        given (`set[str]`): The arguments that were stated, as `given_names` finds them; of HF's, only these are.
        always (`Sequence[type]`): Dataclasses whose options are stated in any case.

    Returns:
        `dict[str, Any]`: by name plain values for YAML. What concerns the Hub is left out, for a repetition must not
        push; paths are made [`portable`].
    """
    from transformers import TrainingArguments

    stated = {item.name for kind in always for item in fields(kind)} | {*given, "output_dir", "seed"}
    recipe = {}
    for part in parts:
        for item in fields(part):
            name, value = item.name, getattr(part, item.name, None)
            hidden = name.startswith(("hub_", "push_to_hub")) or name in _NOT_OF_THE_RECIPE
            left_at_default = isinstance(part, TrainingArguments) and name not in stated
            if item.init and not hidden and not left_at_default and value not in (None, "", []):
                recipe[name] = _as_plain(value)
    return recipe


def _as_plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path | str):
        return portable(str(value))
    if isinstance(value, list | tuple):
        return [_as_plain(item) for item in value]
    if is_dataclass(value):
        return {item.name: _as_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {key: _as_plain(item) for key, item in value.items()}
    return value


def shown_arguments(argv: Sequence[str]) -> list[str]:
    """Arguments of a command as they may be published: without paths of this machine, tokens, keys and passwords."""
    words, secret = [], False
    for word in argv:
        name, equals, _ = word.partition("=")
        if secret and not word.startswith("--"):
            word, secret = _HIDDEN, False
        elif name.startswith("--") and _SECRET_OPTION.search(name.replace("-", "_")):
            word, secret = (f"{name}={_HIDDEN}" if equals else name), not equals
        else:
            secret = False
        words.append(portable(_SECRET.sub(_HIDDEN, word)))
    return words


def portable(text: str) -> str:
    """A text in which no path names this machine: below the working folder it becomes relative, elsewhere a name."""
    return "".join(_portable_path(piece) for piece in re.split("([,=])", text))


def _portable_path(piece: str) -> str:
    path = Path(piece)
    if not path.is_absolute():
        return piece
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
