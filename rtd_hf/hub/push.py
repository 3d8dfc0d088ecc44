"""Publishing a folder on the Hub: checked before, in one commit, and read back after."""

import fnmatch
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers.utils import logging

from .drop_in import check_safetensors
from .export import ADAPTER_FOLDER
from .folders import OWNER_FILE
from .publication import Publication, plan_publication
from .refusals import SILENCE, PushError, explained
from .repository import EVAL_RESULTS_FOLDER, PROJECTION_FOLDER


logger = logging.get_logger(__name__)

# Files of an earlier push that contradict a later one, where the later has none of that name.
OUTDATED = (
    *("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "training_args.bin"),
    *(f"{ADAPTER_FOLDER}/*", f"{PROJECTION_FOLDER}/*", f"{EVAL_RESULTS_FOLDER}/*"),
)
# What HF's `hub_strategy` keeps there to resume a training from.
CHECKPOINTS = ("checkpoint-*/*", "last-checkpoint/*")
# Seconds before the commit is tried again after an error of the Hub's own; it happens or does not as a whole.
_WAITS = (1.0, 4.0)


def push_repository(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    license: str,  # noqa: A002
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    token: str | bool | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    commit_message: str = "Publish the text encoder",
    model=None,
    tokenizer=None,
) -> Publication:
    """Publishes a trained text encoder: all of its folder in one commit, or nothing.

    First the folder is checked: it is a drop-in ([`verify_drop_in`]), the licence is settled, and no path of this
    machine stands where the base model should. The card is sent as it must be read on the Hub: its code loads
    `repo_id`. Large files go first and the commit last, so a push that broke off left nothing to see, and the same
    call again sends only what is missing. After the commit the header of the weights is read back from the Hub.

    ```python
    push_repository("outputs/run", "me/rtd-lincir-l14", license="mit", dry_run=True)  # says what would be sent
    ```

    Args:
        folder (`str` or `os.PathLike`): What [`write_repository`] or a training wrote: encoder, tokenizer, card, best
            with `projection/`. What a training leaves there besides (checkpoints, `training_args.bin`) is not sent.
        repo_id (`str`): `owner/name`. Made where it is not there yet.
        license (`str`): Hub licence identifier, such as `mit`; must be the one of the card, where that states one.
        private (`bool`): Whether a new repository is private. One that is there stays as it is.
        revision (`str`, *optional*): Branch to publish to; `main` by default. Made where it is not there yet.
        tag (`str`, *optional*): Tag for the commit, such as `v1`; a tag that is there already is refused, not moved.
        token (`str` or `bool`, *optional*): A token that may write; the one that is logged in by default.
        dry_run (`bool`): Only check, and say what would be sent; the Hub is not asked anything.
        overwrite (`bool`): Publish into a repository that holds something that `rtd_hf` did not publish; files of the
            same names are lost there then, but for its history.
        commit_message (`str`): First line of the commit.
        model, tokenizer (*optional*): What the folder was written from, to compare with; see [`check_drop_in`].

    Returns:
        [`Publication`]: What was sent, with `url` and `commit`; or would be.

    Raises:
        FileNotFoundError: The folder, or something that must be in it, is missing.
        ValueError: A check failed; nothing was sent.
        PushError: The Hub, or the way to it, did not let it through. The message says why and what to do.
    """
    plan = plan_publication(
        folder,
        repo_id,
        license=license,
        private=private,
        revision=revision,
        tag=tag,
        model=model,
        tokenizer=tokenizer,
    )
    if dry_run:
        return plan
    for warning in plan.warnings:
        logger.warning(warning)
    from huggingface_hub import HfApi

    _check_access(repo_id, token)
    api = HfApi(token=token, library_name="rtd_hf")
    with explained(repo_id, f"create `{repo_id}`"):
        url = str(api.create_repo(repo_id, private=private, exist_ok=True))
    outdated, is_private = _prepare(api, plan, overwrite=overwrite)
    commit = _commit(api, plan, outdated, message=commit_message)
    with explained(repo_id, "read back what was published"):
        _read_back(api, plan, commit)
    if tag:
        with explained(repo_id, f"set the tag `{tag}` on commit {commit}, which is published"):
            api.create_tag(repo_id, tag=tag, revision=commit)
    return replace(plan, url=url, commit=commit, removed=outdated, private=is_private)


def _check_access(repo_id: str, token: str | bool | None) -> None:
    """What can be said without asking the Hub."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import OfflineModeIsEnabled

    with explained(repo_id, f"publish `{repo_id}`"):
        if is_offline_mode():
            raise OfflineModeIsEnabled
    if not (token if isinstance(token, str) else token is not False and get_token()):
        raise PushError(
            f"Could not publish `{repo_id}`: there is no token. Make one that may write at "
            "https://huggingface.co/settings/tokens and give it by `hf auth login`, `HF_TOKEN` or `token`."
        )


def _prepare(api, plan: Publication, *, overwrite: bool) -> tuple[tuple[str, ...], bool]:
    """Looks at the repository, makes the branch, and says which of its files are outdated and if it is private."""
    branch = plan.revision or "main"
    with explained(plan.repo_id, f"look at `{plan.repo_id}`"):
        there = api.model_info(plan.repo_id, timeout=SILENCE)
        if plan.private != bool(there.private):
            logger.warning(
                f"`{plan.repo_id}` was there already and is {'private' if there.private else 'public'}; "
                f"`private={plan.private}` does not change that. Change it in its settings."
            )
        refs = api.list_repo_refs(plan.repo_id)
    if plan.tag and plan.tag in {ref.name for ref in refs.tags}:
        raise PushError(
            f"`{plan.repo_id}` has a tag `{plan.tag}` already, and somebody may rely on it. Nothing was sent. Choose "
            f"another `tag`, or delete that one first: `hf repos tag delete {plan.repo_id} {plan.tag}`."
        )
    with explained(plan.repo_id, f"make the branch `{branch}`"):
        if branch not in {ref.name for ref in refs.branches}:
            api.create_branch(plan.repo_id, branch=branch, exist_ok=True)
        files = api.model_info(plan.repo_id, revision=branch, timeout=SILENCE).siblings or []
    paths = [file.rfilename for file in files]
    if not overwrite:
        refuse_foreign(
            plan.repo_id, paths, advice="Choose another `repo_id`, or give `overwrite=True` if they may go."
        )
    return tuple(
        path
        for path in paths
        if path not in plan.files and _matches(path, OUTDATED) and not _matches(path, CHECKPOINTS)
    ), bool(there.private)


def refuse_foreign(repo_id: str, paths: Sequence[str], *, advice: str) -> None:
    """Refuses a repository that holds something else than what `rtd_hf` published, as a folder is refused too.

    Args:
        repo_id (`str`): `owner/name`.
        paths (`Sequence[str]`): The files it holds.
        advice (`str`): What to do.

    Raises:
        PushError: it does.
    """
    foreign = [path for path in paths if path not in (".gitattributes", "README.md", "LICENSE")]
    if foreign and OWNER_FILE not in paths:
        raise PushError(
            f"`{repo_id}` is taken: it holds {len(foreign)} files that rtd_hf did not publish, such as "
            f"`{foreign[0]}`. Nothing was sent. {advice}"
        )


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _commit(api, plan: Publication, outdated: tuple[str, ...], *, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def operations() -> list:
        changed = {path: text.encode() for path, text in plan.changed.items()}
        add = [CommitOperationAdd(path, changed.get(path, plan.folder / path)) for path in plan.files]
        return add + [CommitOperationDelete(path) for path in outdated]

    with explained(plan.repo_id, f"upload to `{plan.repo_id}`"):
        return commit(api, plan.repo_id, operations, message=message, revision=plan.revision)


def commit(api, repo_id: str, operations: Callable[[], list], *, message: str, revision: str | None) -> str:
    """
    Makes one commit; after errors of the Hub's own it is tried again.

    Args:
        api (`huggingface_hub.HfApi`): Who does it.
        repo_id (`str`): `owner/name`.
        operations (`Callable[[], list]`): Makes the client's operations, which serve one attempt.
        message (`str`): Of the commit.
        revision (`str`, *optional*): The branch; `main` by default.

    Returns:
        `str`: The commit's name.
    """

    def send() -> str:
        # `create_commit` and not `upload_folder`, which may split what belongs together into several commits. Files
        # that are there already are left out, so a commit whose answer was lost is not made twice.
        return api.create_commit(repo_id, operations(), commit_message=message, revision=revision or "main").oid

    for wait in _WAITS:
        try:
            return send()
        except OSError as error:
            if getattr(getattr(error, "response", None), "status_code", 0) < 500:
                raise
            logger.warning(f"The Hub has trouble ({error}). Trying again in {wait:g} seconds.")
            time.sleep(wait)
    return send()


def _read_back(api, plan: Publication, commit: str) -> None:
    """Compares what the Hub has now with what was sent: every size, and the header of the weights."""
    arrived = {file.path: file.size for file in api.get_paths_info(plan.repo_id, list(plan.files), revision=commit)}
    wrong = sorted(path for path, size in plan.files.items() if arrived.get(path) != size)
    if wrong:
        raise PushError(
            f"{len(wrong)} of {len(plan.files)} files on the Hub are not those that were sent, such as `{wrong[0]}` "
            f"({arrived.get(wrong[0])} instead of {plan.files[wrong[0]]} bytes). Do not use commit {commit}; run it "
            "again."
        )
    names, _ = check_safetensors(plan.folder)
    published = api.get_safetensors_metadata(plan.repo_id, revision=commit)
    found = {name for file in published.files_metadata.values() for name in file.tensors}
    if found != set(names):
        raise PushError(
            f"The weights on the Hub hold other tensors than `{plan.folder}`: {len(found)} instead of {len(names)}. "
            f"Do not use commit {commit}; run it again."
        )
