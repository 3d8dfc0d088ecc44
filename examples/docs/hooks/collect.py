"""What only a running package tells: the options of the scripts, those of the public dataclasses, the registries.

It is asked in a process of its own, once a build.
"""

import argparse
import ast
import dataclasses
import inspect
import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
# Scripts whose options depend on another one, each with what chooses them.
VARIANTS = {"generate_triplets.py": (("--generator", "rules"), ("--generator", "llm"))}


@cache
def facts() -> dict[str, Any]:
    """The scripts' options, the public dataclasses', and the names in each registry; from a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The options of the scripts could not be read:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


class _Asked(BaseException):
    """Carries a script's parser out of the script that was asked for help."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(script: Path, arguments: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """
    The parser of a script, taken from it when it is about to print its help.

    Args:
        script (`Path`): The script.
        arguments (`tuple[str, ...]`): Given before `--help`.

    Raises:
        RuntimeError: The script does not print any.
    """

    def give(self, file=None):
        raise _Asked(self)

    argv, path, usual = sys.argv, list(sys.path), argparse.ArgumentParser.print_help
    sys.argv, argparse.ArgumentParser.print_help = [str(script), *arguments, "--help"], give
    sys.path.insert(0, str(script.parent))
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            runpy.run_path(str(script), run_name="__main__")
    except _Asked as asked:
        return asked.parser
    finally:
        sys.argv, sys.path[:], argparse.ArgumentParser.print_help = argv, path, usual
    raise RuntimeError(f"{script.name} --help prints no help.")


def options_of(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """The options of a parser but for `--help`: name, choices, default and help text of each."""
    options = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        names = [name for name in action.option_strings if name.startswith("--")]
        if names and names[0].startswith("--no_"):
            continue  # the other side of a switch that is on
        default = None if action.default == argparse.SUPPRESS else action.default
        options.append(
            {
                "name": names[0] if names else action.metavar or action.dest,
                "dest": action.dest,
                "required": bool(action.required) and action.nargs != "*",
                "several": action.nargs in ("*", "+"),
                "choices": [str(choice) for choice in action.choices] if action.choices else None,
                "default": None if default is None or default is False or default in ("", []) else _shown(default),
                "help": " ".join((action.help or "").replace("%%", "%").split()),
            }
        )
    return options


def _shown(default: Any) -> str:
    items = [str(item) for item in default] if isinstance(default, list | tuple) else [str(default)]
    return " ".join(item.replace(f"{ROOT}{os.sep}", "") for item in items)


def commands() -> dict[str, Any]:
    """Each script of `examples/`: what it says of itself, its options, and the note below them."""
    from transformers import TrainingArguments

    from rtd_hf.options import RTDOptions

    ours = {field.name for field in dataclasses.fields(RTDOptions)}
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)} - ours
    found = {}
    for script in sorted(EXAMPLES.glob("*.py")):
        parsers = [parser_of(script, arguments) for arguments in VARIANTS.get(script.name, ((),))]
        options: dict[str, dict] = {}
        for option in [option for parser in parsers for option in options_of(parser)]:
            options.setdefault(option["dest"], option)
        if "fsdp" in options:  # the script lists all of HF's, which the note below stands for
            options = {name: option for name, option in options.items() if name not in theirs}
        found[script.name] = {
            "doc": _docstring(script),
            "options": list(options.values()),
            "note": parsers[0].epilog or "",
        }
    return found


def _docstring(script: Path) -> str:
    return inspect.cleandoc(ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "")


def dataclass_options() -> dict[str, list[list[str]]]:
    """Of each public dataclass with help texts: name, type, default and text of each of its own options."""
    import rtd_hf

    found = {}
    for name in rtd_hf._MODULES:
        value = getattr(rtd_hf, name)
        if not (inspect.isclass(value) and dataclasses.is_dataclass(value)):
            continue
        own = [cls for cls in value.__mro__ if cls.__module__.startswith("rtd_hf")]
        ours = {key for cls in own for key in vars(cls).get("__annotations__", ())}
        rows = []
        for field in dataclasses.fields(value):
            if field.name in ours and field.metadata.get("help"):
                default = field.default
                if default is dataclasses.MISSING:
                    made = field.default_factory is not dataclasses.MISSING
                    shown = repr(field.default_factory()) if made else ""
                else:
                    shown = repr(default)
                kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
                rows.append([field.name, kind, shown, " ".join(field.metadata["help"].split())])
        if rows:
            found[name] = rows
    return found


def registries() -> dict[str, list[str]]:
    """The names that each public registry holds."""
    import rtd_hf
    from rtd_hf.registry import Registry

    values = {name: getattr(rtd_hf, name) for name in rtd_hf._MODULES if name.isupper()}
    return {name: sorted(value) for name, value in values.items() if isinstance(value, Registry)}


if __name__ == "__main__":
    told = {"commands": commands(), "options": dataclass_options(), "registries": registries()}
    sys.stdout.write(json.dumps(told))
