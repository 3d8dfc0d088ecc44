"""A MkDocs hook: pages that are made of the package itself, the README's pictures, links in hand-written pages."""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


sys.path.insert(0, str(Path(__file__).parent))
from collect import ROOT, facts  # noqa: E402
from markup import Mathematics, linked  # noqa: E402

import rtd_hf  # noqa: E402


PICTURES = ("method.png", "retrieval.jpg", "interpolation.png", "app.png")


def groups() -> dict[str, list[str]]:
    """The public names under the comments that divide their list in `rtd_hf/__init__.py`."""
    source = (ROOT / "rtd_hf" / "__init__.py").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for line in source.split("_MODULES = {")[1].split("\n}")[0].splitlines():
        if heading := re.fullmatch(r"    # (.+)", line):
            found[heading[1]] = []
        elif name := re.fullmatch(r'    "(\w+)": "\w+",', line):
            found[list(found)[-1]].append(name[1])
    return found


def page_of(group: str) -> str:
    """The file of a group of names."""
    return f"api/{group.replace(' ', '-')}.md"


def api_page(group: str, names: list[str]) -> str:
    """The page of a group of names."""
    return "\n\n".join([f"# {group.capitalize()}", *(f"::: rtd_hf.{name}" for name in names)])


def api_index() -> str:
    """All public names by group."""
    parts = [
        "# API",
        f"Version {rtd_hf.__version__}. Every name below is imported from `rtd_hf`, on first use: "
        "`import rtd_hf` alone loads neither torch nor transformers.",
    ]
    for group, names in groups().items():
        links = ", ".join(f"[`{name}`][rtd_hf.{name}]" for name in sorted(names, key=str.lower))
        parts += [f"## [{group.capitalize()}]({page_of(group).removeprefix('api/')})", links]
    return "\n\n".join(parts)


def command_page() -> str:
    """Every script with its options."""
    parts = [
        "# Commands",
        "The scripts of `examples/`, with what their `--help` says. An option with `...` behind its name takes "
        "several values.",
    ]
    for name, command in facts()["commands"].items():
        parts += [f"## {name}", command_text(command["doc"])]
        parts += [_entry(option) for option in command["options"]]
        parts += [command["note"]] if command["note"] else []
    return "\n\n".join(parts)


def command_text(doc: str) -> str:
    """A script's docstring as Markdown: its indented lines are shell commands."""

    def fence(found: re.Match) -> str:
        lines = [line[4:] for line in found[0].strip("\n").splitlines()]
        return "\n```shell\n" + "\n".join(lines) + "\n```\n"

    return re.sub(r"(?:^    .*\n?|(?<=\n)\n(?=    ))+", fence, doc + "\n", flags=re.MULTILINE)


def readme_table() -> str:
    """What the main command prints, as the README shows it: the figures have one place."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"^\| query \| R@1 .*?(?=^$)", readme, flags=re.MULTILINE | re.DOTALL)[0]


def _entry(option: dict) -> str:
    told = option["help"]
    if option["choices"] and not all(choice in told for choice in option["choices"]):
        told = f"{told} One of {', '.join(f'`{choice}`' for choice in option['choices'])}.".strip()
    said = not option["default"] or "Default: " in told
    default = "" if said else f"defaults to `{option['default']}`"
    about = "required" if option["required"] else default
    name = f"`{option['name']}{' ...' if option['several'] else ''}`"
    return f"{name} ({about})\n:   {told}" if about else f"{name}\n:   {told}"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Enters mathematics, and the generated pages in the navigation."""
    config.markdown_extensions.append(Mathematics())
    pages = ["api/index.md", *({group.capitalize(): page_of(group)} for group in groups())]
    config.nav = [{"API": pages} if isinstance(entry, dict) and "API" in entry else entry for entry in config.nav]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the pictures."""
    made = {page_of(group): api_page(group, names) for group, names in groups().items()}
    made |= {"api/index.md": api_index(), "commands.md": command_page()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for name in PICTURES:
        source = ROOT / "examples" / "images" / name
        files.append(File.generated(config, f"images/{name}", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **kwargs) -> str:
    """Links public names in hand-written pages, as the docstrings write them, and puts the README's table in."""
    return linked(markdown.replace("<!-- readme-table -->", readme_table()))
