"""What must hold of a folder before it is published; nothing here asks the Hub."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..contexts import quiet_transformers
from ..parsing import parse_json, parse_yaml, read_object
from ..projections.originals import LICENSES
from ..tokens import load_tokenizer
from ..weights import errors_of_loading
from .drop_in import DropInReport, check_safetensors, verify_drop_in
from .repository import CARD_FILE, PROJECTION_FOLDER


# Where a configuration, a recipe or a card says which model it started from.
_MODEL_KEYS = ("_name_or_path", "base_model", "base_model_name_or_path", "clip_model")
_LICENSE = re.compile(r"[a-z0-9]+(?:[.+-][a-z0-9.]+)*")
_NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non-?commercial", re.IGNORECASE)
_BINDING = re.compile(rf"{_NON_COMMERCIAL.pattern}|ask the authors", re.IGNORECASE)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_TEXTS = (".json", ".md", ".txt", ".yaml", ".yml")
_MOST_TEXT = 4_000_000  # bytes; longer ones are vocabularies, not what somebody wrote


def check_license(license: str | None) -> str:  # noqa: A002
    """Makes sure that a licence was chosen.

    Args:
        license (`str`): Hub licence identifier, such as `mit`.

    Returns:
        `str`: itself.

    Raises:
        ValueError: it is missing, or no identifier.
    """
    if not license or not _LICENSE.fullmatch(license):
        raise ValueError(
            f"`license` must be a Hub licence identifier such as `mit` or `cc-by-nc-4.0`, but is {license!r}. There "
            "is no default: settle it with the owners of the encoder, the projection and the texts that the weights "
            "come from."
        )
    return license


def is_local_path(name: str) -> bool:
    """Whether the name of a model is a path, by its form or because it exists here, and no Hub id.

    Args:
        name (`str`): Such as `openai/clip-vit-large-patch14`.
    """
    drive = re.match(r"[A-Za-z]:", name)
    by_form = name.startswith(("/", "~", ".")) or "\\" in name or drive or name.count("/") > 1
    return bool(by_form) or ("/" in name and Path(name).exists())


def check_texts(texts: Mapping[str, str]) -> None:
    """Refuses texts that name a path of this machine as the model they started from, or hold a token.

    Args:
        texts (`Mapping[str, str]`): The texts by their path in the repository.

    Raises:
        ValueError: one does; the message names the file, the entry and what it says.
    """
    for path, text in texts.items():
        if _TOKEN.search(text):
            raise ValueError(
                f"`{path}` holds an access token of the Hub (`hf_...`). Take it out, and make a new token: this one "
                "has been written down. Give tokens by `hf auth login` or `HF_TOKEN`, not on the command line."
            )
        for key, value in _named_models(path, text):
            if is_local_path(value):
                raise ValueError(
                    f"`{path}` names {value!r} as `{key}`, which is a path of this machine and means nothing to "
                    "anybody else. Record the Hub id (`base_model`, with its revision) when the folder is written, or "
                    "put it into the file."
                )


def _named_models(path: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        if path.endswith(".json"):
            found = parse_json(text)
        elif path.endswith((".yaml", ".yml")):
            found = parse_yaml(text)
        elif path.endswith(".md"):
            header = re.match(r"---[ \t]*\n(.*?)\n---", text, flags=re.DOTALL)
            found = parse_yaml(header[1]) if header else None
        else:
            return
    except ValueError as error:
        raise ValueError(f"`{path}` cannot be read: {error}. Write the folder again, or correct the file.") from error
    yield from _entries(found)


def _entries(values: Any) -> Iterator[tuple[str, str]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            if key in _MODEL_KEYS:
                for name in value if isinstance(value, list) else [value]:
                    if isinstance(name, str) and name:
                        yield key, name
            yield from _entries(value)
    elif isinstance(values, list):
        for value in values:
            yield from _entries(value)


def read_texts(folder: Path, paths: list[str]) -> dict[str, str]:
    """The texts among the files of a folder that somebody, or the run, wrote.

    Args:
        folder (`Path`): The folder.
        paths (`list[str]`): Paths in it.

    Raises:
        ValueError: one is no UTF-8.
    """
    texts = {}
    for path in paths:
        file = folder / path
        if file.suffix.lower() in _TEXTS and file.stat().st_size < _MOST_TEXT:
            try:
                texts[path] = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"`{path}` is no UTF-8 text: {error}. Save it as such.") from error
    return texts


def check_drop_in(folder: str | os.PathLike, model=None, *, tokenizer=None) -> DropInReport:
    """The proof that a folder is a drop-in, with or without the model it came from; see [`verify_drop_in`].

    Args:
        folder (`str` or `os.PathLike`): What [`export_text_encoder`] wrote, with its tokenizer.
        model (*optional*): The model it came from. Without it the folder is compared with itself: header, keys, both
            stock classes, finite embeddings, a tokenizer that fits.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): That of the training; the folder's own by default.

    Returns:
        [`DropInReport`]: What was found.

    Raises:
        FileNotFoundError: The folder, its weights, `config.json` or the tokenizer is missing.
        ValueError: It is no drop-in; the message says why.
    """
    from ..models import BACKBONES

    folder = Path(folder)
    check_safetensors(folder)
    for file in ("config.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"`{folder}` has no `{file}`. Write it with `export_text_encoder(model, folder, tokenizer=...)`."
            )
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"`{folder}` holds `adapter_config.json` beside merged weights: `from_pretrained` would load the "
            "adapter's base model instead of them. Move the adapter into the sub-folder `adapter`."
        )
    config = read_object(folder / "config.json")
    stock_classes = {backbone.stock_class.__name__: backbone.stock_class for backbone in BACKBONES.values()}
    architectures = config.get("architectures")
    architectures = architectures if isinstance(architectures, list) else []
    named = next((name for name in stock_classes if name in architectures), None)
    if named is None:
        raise ValueError(
            f"`{folder}/config.json` names `architectures` {architectures}, but a published encoder must be one of "
            f"{', '.join(sorted(stock_classes))}. Write the folder with `export_text_encoder`."
        )
    with quiet_transformers():
        if model is None:
            with errors_of_loading(str(folder), "The text encoder"):
                model = stock_classes[named].from_pretrained(folder).eval()
        tokenizer = tokenizer or load_tokenizer(folder)
    report = verify_drop_in(folder, model, tokenizer=tokenizer)
    _check_projection(folder, config)
    return report


def _check_projection(folder: Path, config: Mapping[str, Any]) -> None:
    from ..projections import ImageToWordProjection

    if not (folder / PROJECTION_FOLDER).is_dir():
        return
    with quiet_transformers():
        projection = ImageToWordProjection.from_pretrained(folder, subfolder=PROJECTION_FOLDER)
    width, hidden_size = projection.config.output_dim, config.get("hidden_size")
    if width != hidden_size:
        raise ValueError(
            f"The projection in `{folder}/{PROJECTION_FOLDER}` makes words of width {width}, but the text encoder "
            f"takes {hidden_size}. Put the projection there that the encoder was trained for."
        )


def warnings_of(folder: Path, license: str, texts: Mapping[str, str]) -> list[str]:  # noqa: A002
    """What does not forbid publishing, but should be looked at first.

    Args:
        folder (`Path`): The folder.
        license (`str`): The licence that was chosen.
        texts (`Mapping[str, str]`): Its texts, as they are published.
    """
    warnings = [*_warnings_of_projection(folder, license, texts)]
    if not any(value for _, value in _named_models(CARD_FILE, texts.get(CARD_FILE, ""))):
        warnings.append("The card names no `base_model`: nobody can see on the Hub what the encoder started from.")
    for private, what in ((str(folder.resolve()), "this folder's path"), (str(Path.home()), "your home folder")):
        named = [
            path for path, text in texts.items() if len(private) > 2 and re.search(re.escape(private) + r"\b", text)
        ]
        if named:
            warnings.append(f"{what[0].upper()}{what[1:]} stands in {', '.join(f'`{path}`' for path in named)}.")
    return warnings


def _warnings_of_projection(folder: Path, license: str, texts: Mapping[str, str]) -> Iterator[str]:  # noqa: A002
    stem = f"{PROJECTION_FOLDER}/"
    if f"{stem}config.json" not in texts:
        yield "There is no `projection/`: without the projection it was trained for nobody can compose a query."
        return
    config = parse_json(texts[f"{stem}config.json"])  # which `check_texts` has read before
    config = config if isinstance(config, dict) else {}
    kind = config.get("projection_type")
    stated = [str(config.get("license") or "")]
    card = re.search(r"^license: *(.+)$", texts.get(f"{stem}{CARD_FILE}", ""), flags=re.MULTILINE)
    stated += [card[1]] if card else []
    stated = " ".join(filter(None, stated))
    if _NON_COMMERCIAL.search(license):
        return
    if _BINDING.search(stated):
        yield (
            f"The projection's licence is not free: {stated}. It may bind what was trained with the projection, but "
            f"`license` is `{license}`. Ask its owners, or choose a licence that fits."
        )
    elif not stated and _BINDING.search(LICENSES.get(kind, "")):
        yield (
            f"The projection records no licence. Of the weights that the authors of `{kind}` published it is: "
            f"{LICENSES[kind]}. That may bind what was trained with them, but `license` is `{license}`. All is well "
            "if you fitted the projection yourself."
        )
