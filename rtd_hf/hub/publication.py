"""What a push would send: every file, the card as it will be read on the Hub, and what was left out."""

import fnmatch
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .checks import check_drop_in, check_license, check_texts, is_local_path, read_texts, warnings_of
from .drop_in import DropInReport
from .folders import OWNER_FILE, ownership
from .repository import CARD_FILE, EVAL_RESULTS_FOLDER, METRICS_FILE


# What a training leaves beside its result, by the name of the file or folder. Some hold paths, or even the token.
LEFT_OUT = (
    *("checkpoint-*", "runs", "merged", "anchors", "published", "__pycache__", ".*", "_*"),
    *("training_args.bin", "trainer_state.json", "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*"),
)
KEPT = (EVAL_RESULTS_FOLDER, OWNER_FILE)
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOADED = re.compile(r"""(?P<call>(?:from_pretrained|SentenceTransformer)\(\s*)(["'])(?P<name>[^"'\n]+)\2""")
_DOWNLOADED = re.compile(r"(?P<call>hf download )(?P<name>\S+)")


@dataclass(frozen=True)
class Publication:
    """A folder as it is, or would be, published.

    Attributes:
        repo_id (`str`): `owner/name` on the Hub.
        folder (`Path`): Where it lies here.
        files (`dict[str, int]`): Path in the repository to its size in bytes, as it is sent.
        changed (`dict[str, str]`):
            Texts that are sent otherwise than they lie in the folder: the card, whose code loads `repo_id` and whose
            licence is the chosen one; in `metrics.json` the arguments of the card; and, where it is missing, the
            marker `.rtd_hf.json`, by which the next push knows that it may overwrite.
        license, private, revision, tag: As they were asked.
        left_out (`tuple[str, ...]`): Entries of the folder that are not sent.
        removed (`tuple[str, ...]`): Files that an earlier push left in the repository and this one took away.
        warnings (`tuple[str, ...]`): What should be looked at.
        drop_in ([`DropInReport`]): The proof that the encoder loads in plain transformers.
        url (`str`, *optional*): Address of the repository; `None` as long as nothing was sent.
        commit (`str`, *optional*): Name of the commit.
    """

    repo_id: str
    folder: Path
    files: dict[str, int]
    changed: dict[str, str]
    license: str
    drop_in: DropInReport
    private: bool = True
    revision: str | None = None
    tag: str | None = None
    left_out: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    url: str | None = None
    commit: str | None = None

    @property
    def card(self) -> str:
        """The card as it is sent."""
        return self.changed[CARD_FILE]

    def __str__(self) -> str:
        facts = ["private" if self.private else "public", f"licence {self.license}"]
        facts += [f"branch {self.revision}"] if self.revision else []
        facts += [f"tag {self.tag}"] if self.tag else []
        width = max(map(len, self.files))
        lines = [f"{self.repo_id}: {', '.join(facts)}", ""]
        lines += [f"  {path:<{width}}  {readable_size(size):>9}" for path, size in self.files.items()]
        lines += [f"  {f'{len(self.files)} files':<{width}}  {readable_size(sum(self.files.values())):>9}"]
        lines += ["", f"Left out: {', '.join(self.left_out)}"] if self.left_out else []
        lines += [f"Removed from the repository: {', '.join(self.removed)}"] if self.removed else []
        lines += ["", *(f"Warning: {warning}" for warning in self.warnings)] if self.warnings else []
        return "\n".join(lines)


def plan_publication(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    license: str,  # noqa: A002
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    model=None,
    tokenizer=None,
) -> Publication:
    """Checks a folder and says what would be sent. Nothing is asked of the Hub, and nothing in the folder is changed.

    Args:
        folder (`str` or `os.PathLike`): Encoder, tokenizer and card, best with `projection/`.
        repo_id (`str`): `owner/name`.
        license, private, revision, tag, model, tokenizer: See [`push_repository`].

    Returns:
        [`Publication`]: with `url` and `commit` still `None`.

    Raises:
        FileNotFoundError: the folder, or a part that must be in it, is missing.
        ValueError: a check failed; the message says which and what to do.
    """
    folder = Path(folder).expanduser()
    check_license(license)
    if not isinstance(repo_id, str) or not _REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise ValueError(f"`repo_id` must be `owner/name`, such as `me/rtd-lincir-l14`, but is {repo_id!r}.")
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` {folder} does not exist. Give the folder that a training wrote.")
    if not (folder / CARD_FILE).is_file():
        raise FileNotFoundError(
            f"`{folder}` has no `{CARD_FILE}`. Write the folder with `write_repository`, or the card with "
            f"`build_model_card(...).save('{folder / CARD_FILE}')`."
        )
    report = check_drop_in(folder, model, tokenizer=tokenizer)
    paths, left_out = published_paths(folder)
    texts = read_texts(folder, paths)
    check_texts(texts)
    changed = texts_for(texts, folder, repo_id=repo_id, license=license)
    changed |= {} if OWNER_FILE in texts else {OWNER_FILE: ownership()}
    texts |= changed
    sizes = {path: (folder / path).stat().st_size for path in paths}
    return Publication(
        repo_id=repo_id,
        folder=folder,
        files=dict(sorted((sizes | {path: len(text.encode()) for path, text in changed.items()}).items())),
        changed=changed,
        license=license,
        drop_in=report,
        private=private,
        revision=revision,
        tag=tag,
        left_out=tuple(left_out),
        warnings=tuple(warnings_of(folder, license, texts)),
    )


def published_paths(folder: Path) -> tuple[list[str], list[str]]:
    """
    The files of a folder that are published, and the entries that are not, both as paths in it, in order.

    Raises:
        ValueError: an entry to be published is a link to elsewhere.
    """
    paths, left_out = [], []
    for root, names, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        for name in sorted(names):
            if _is_left_out(name):
                names.remove(name)
                left_out.append(f"{(here / name).as_posix()}/")
            else:
                _check_link(folder, here / name)
        for name in sorted(files):
            (left_out if _is_left_out(name) else paths).append((here / name).as_posix())
            if not _is_left_out(name):
                _check_link(folder, here / name)
    return sorted(paths), sorted(left_out)


def _check_link(folder: Path, path: Path) -> None:
    """Whoever made a folder is not to decide which other files of this machine are published with it."""
    if not (folder / path).is_symlink():
        return
    here, target = folder.resolve(), (folder / path).resolve()
    # In the cache of the Hub the files of a snapshot are links to blobs beside it.
    own = here.parents[1] / "blobs" if here.parent.name == "snapshots" else here
    if not target.is_file() or not target.is_relative_to(own):
        raise ValueError(
            f"`{path.as_posix()}` in `{folder}` is a link to {target}, which lies elsewhere. Nothing was sent. Put a "
            f"copy in its place, if it is to be published."
        )


def _is_left_out(name: str) -> bool:
    return name not in KEPT and any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def texts_for(texts: Mapping[str, str], folder: Path, *, repo_id: str, license: str) -> dict[str, str]:  # noqa: A002
    """The texts that must read otherwise on the Hub than in the folder.

    Args:
        texts (`Mapping[str, str]`): All texts by their paths, the card among them.
        folder (`Path`): The folder.
        repo_id (`str`): `owner/name`.
        license (`str`): The licence that was chosen.

    Returns:
        `dict[str, str]`: the card, which loads the repository where it loaded the folder and states the licence; and
        `metrics.json`, if it is there and holds the arguments of the card, with those of this card.

    Raises:
        ValueError: the card states another licence, or its code loads another path of this machine.
    """
    from huggingface_hub import ModelCard

    metrics = json.loads(texts.get(METRICS_FILE, "{}"))
    about = metrics.get("card") if isinstance(metrics, dict) else None
    about = about if isinstance(about, dict) else {}
    try:
        card = ModelCard(texts[CARD_FILE], ignore_metadata_errors=False)
    except TypeError as error:
        raise ValueError(
            f"The metadata of `{CARD_FILE}` in `{folder}` cannot be read ({error}). Every name in it must be a text."
        ) from error
    if card.data.license and card.data.license != license:
        raise ValueError(
            f"`license` is {license!r}, but the card in `{folder}` states {card.data.license!r}. Settle which is "
            "right, and correct the card or the argument."
        )
    former = Path(str(about.get("model_id") or "path/to/repository"))
    name = repo_id.split("/")[1]
    old_name = card.data.model_name or former.name
    card.data.license = license
    if card.data.model_name:
        card.data.model_name = name
    bases = card.data.base_model if isinstance(card.data.base_model, list) else [card.data.base_model]

    def loaded(found: re.Match) -> str:
        inside = None if found["name"] in bases else _inside(found["name"], folder, former)
        if inside is None:
            return found[0]
        subfolder = "" if inside == Path() else f', subfolder="{inside.as_posix()}"'
        return f'{found["call"]}"{repo_id}"{subfolder}'

    def downloaded(found: re.Match) -> str:
        return found[0] if _inside(found["name"], folder, former) is None else found["call"] + repo_id

    body = re.sub(rf"^# {re.escape(old_name)}$", f"# {name}", card.text, count=1, flags=re.MULTILINE)
    body = _DOWNLOADED.sub(downloaded, _LOADED.sub(loaded, body))
    changed = {CARD_FILE: f"---\n{card.data.to_yaml(line_break=chr(10))}\n---\n{body}"}
    if about:
        about |= {"model_id": repo_id, "license": license}
        changed[METRICS_FILE] = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    return changed


def _inside(name: str, folder: Path, former: Path) -> Path | None:
    """Where in the folder a model's name in code lies; `None` where it is a Hub id."""
    here, path = folder.resolve(), Path(name).expanduser()
    if path.is_relative_to(former):  # as the card was written, wherever the folder is now
        return path.relative_to(former)
    if path.exists() and path.resolve().is_relative_to(here):
        return path.resolve().relative_to(here)
    if is_local_path(name):
        raise ValueError(
            f"The code in the card loads {name!r}, a path of this machine that is not in `{folder}`. Write the Hub id "
            "there that everybody can load."
        )
    return None


def readable_size(size: int) -> str:
    """`1234567` -> `1.2 MB`."""
    for bound, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= bound:
            return f"{size / bound:.1f} {unit}"
    return f"{size} B"
