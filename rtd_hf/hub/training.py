"""What a training pushes: the drop-in at its checkpoints, and at its end the repository that is published."""

import os
import shutil
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from .checks import check_license, is_local_path
from .circumstances import describe_environment
from .folders import OWNER_FILE, ownership
from .publication import Publication
from .push import commit, push_repository, refuse_foreign
from .refusals import SILENCE, PushError, explained
from .repository import write_repository


logger = logging.get_logger(__name__)

PUBLISHED_FOLDER = "published"
_PUSHING_FOLDER = ".pushing"
# Files of a drop-in. `training_args.bin`, which HF pushes too, holds the token in plain text.
_ENCODER_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.json", "merges.txt")
_NOT_OF_CHECKPOINTS = ("training_args.bin", "merged")
# Options that say where and how a run was made, and not what was trained.
_NOT_IN_RECIPE = ("output_dir", "logging_dir", "run_name", "report_to", "push_to_hub", "resume_from_checkpoint")


class PushesDropIns:
    """HF's `Trainer` methods about the Hub, for a trainer of a text encoder.

    `push_to_hub`, `hub_model_id`, `hub_strategy`, `hub_token`, `hub_private_repo`, `hub_always_push` and
    `hub_revision` mean what they mean in HF, with three differences: a new repository is private unless
    `hub_private_repo=False`; what is pushed is always the drop-in (of adapters the merged encoder), never
    `training_args.bin`; and a push that fails ends no training. `hub_license` is required, and goes into the card.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """HF's, private by default, with the branch `hub_revision`; called before the training starts.

        Args:
            token (`str`, *optional*): A token that may write; `hub_token` by default.
            private (`bool`, *optional*): Whether a new repository is private; as `hub_private_repo` says by default.

        Raises:
            ValueError: `hub_license` is missing.
            PushError: The Hub does not let it be made.
        """
        check_license(self.args.hub_license)
        if self.is_world_process_zero():  # what a killed run was about to push
            shutil.rmtree(Path(self.args.output_dir) / _PUSHING_FOLDER, ignore_errors=True)
        asked = self.args.hub_private_repo if private is None else private
        repo_id = self.args.hub_model_id or f"you/{Path(self.args.output_dir).absolute().name}"
        repo_id = repo_id if "/" in repo_id else f"you/{repo_id}"
        with explained(repo_id, f"create `{repo_id}`"):
            super().init_hf_repo(token=token, private=asked is not False)
            if not self.is_world_process_zero():
                return
            from huggingface_hub import HfApi

            api = HfApi(token=token or self.args.hub_token)
            if self.args.hub_revision:
                api.create_branch(self.hub_model_id, branch=self.args.hub_revision, exist_ok=True)
            there = api.model_info(self.hub_model_id, revision=self.args.hub_revision, timeout=SILENCE).siblings or []
            # Found out now, and not when the training is over.
            advice = "Choose another `hub_model_id`, or delete them first."
            refuse_foreign(self.hub_model_id, [file.rfilename for file in there], advice=advice)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """HF's, of the drop-in: in the background, and not while another push is under way."""
        args, strategy = self.args, self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        under_way = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if under_way and not args.hub_always_push:
            return
        self._report_failed_pushes()
        self.callback_handler.on_push_begin(args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        merged = checkpoint / "merged"
        job = push_checkpoint(
            self._pushing_api(),
            checkpoint,
            merged if merged.is_dir() else checkpoint,
            repo_id=self.hub_model_id,
            copies=Path(args.output_dir) / _PUSHING_FOLDER,
            strategy=strategy,
            message=f"Training in progress, step {self.state.global_step}",
            revision=args.hub_revision,
        )
        if under_way:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _pushing_api(self):
        """One for all checkpoints: it has one thread, so that a later one is not overtaken by an earlier one."""
        from huggingface_hub import HfApi

        if getattr(self, "_hub_api", None) is None:
            self._hub_api = HfApi(token=self.args.hub_token, library_name="rtd_hf")
        return self._hub_api

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._report_failed_pushes()

    def _report_failed_pushes(self) -> None:
        """HF drops what goes wrong in the background; the training goes on, but nobody should rely on the push."""
        progress = getattr(self, "push_in_progress", None)
        if progress is None:
            return
        for job in [job for job in progress.jobs if job.done()]:
            progress.jobs.remove(job)
            error = job.exception()
            if error is not None:
                logger.warning(
                    f"A checkpoint was not pushed to `{self.hub_model_id}`: {error} The training goes on, and its "
                    f"checkpoints are in `{self.args.output_dir}`."
                )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        folder: str | Path | None = None,
        tag: str | None = None,
        **repository: Any,
    ) -> Publication | Future | None:
        """Publishes the encoder as it is now, with its card; see [`push_repository`] for what is checked before.

        What is published lies complete in a folder before the Hub is asked anything, so a push that fails loses
        nothing, and can be made up for with `push_repository` or `examples/push_to_hub.py`.

        Args:
            commit_message (`str`, *optional*): First line of the commit.
            blocking (`bool`): Whether to return only when it is done.
            token (`str`, *optional*): A token that may write; `hub_token` by default.
            revision (`str`, *optional*): Branch; `hub_revision` by default.
            private (`bool`, *optional*): Whether a new repository is private; as `hub_private_repo` says by default.
            folder (`str` or `Path`, *optional*): What [`write_repository`] wrote of this encoder; by default it is
                written to the sub-folder `published` of `output_dir`.
            tag (`str`, *optional*): Tag for the commit.
            repository: For [`write_repository`], where no `folder` is given: `image_processor`, `metrics`, `recipe`,
                `base_model`, `base_revision`, `datasets`, `limits`, `tags`. The image processor and the base model are
                by default those of the folder or Hub id that the model was loaded from.

        Returns:
            [`Publication`], or the `Future` of it; `None` in all processes but the first.

        Raises:
            ValueError: A check failed; nothing was sent.
            PushError: The Hub, or the way to it, did not let it through.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        model = self.trained_encoder() if folder is None else None  # sharded weights are gathered by all processes
        if not self.is_world_process_zero():
            return None
        check_license(self.args.hub_license)
        folder = self._write_published(model, **repository) if folder is None else Path(folder)
        token = self.args.hub_token if token is None else token
        self._finish_current_push()
        asked = self.args.hub_private_repo if private is None else private

        def push() -> Publication:
            try:
                if self.hub_model_id is None:
                    self.init_hf_repo(token=token, private=private)
                return push_repository(
                    folder,
                    self.hub_model_id,
                    license=self.args.hub_license,
                    private=asked is not False,
                    revision=revision or self.args.hub_revision,
                    tag=tag,
                    token=token,
                    commit_message=commit_message or "End of training",
                )
            except PushError as error:
                raise PushError(
                    f"{error} Nothing is lost: what was to be published is in `{folder}`; publish it with `python "
                    f"examples/push_to_hub.py {folder} --repo_id OWNER/NAME --license {self.args.hub_license}`.",
                    status=error.status,
                ) from error

        if blocking:
            return push()
        from huggingface_hub import HfApi

        return HfApi().run_as_future(push)

    def _write_published(self, model, **repository: Any) -> Path:
        encoder = model.get_base_model() if self.has_adapters else model
        origin = encoder.config.name_or_path
        known = [name for name in (origin, self.projection.config.base_model) if name and not is_local_path(name)]
        parts = {"base_model": known[0] if known else None, "recipe": recipe_of(self.args, known), **repository}
        if parts.get("image_processor") is None:
            if not origin:
                raise ValueError(
                    "`image_processor` is missing: the model was loaded from no folder or Hub id that could tell. "
                    "Give `push_to_hub(image_processor=...)`, that of the picture encoder the text encoder belongs to."
                )
            parts["image_processor"] = encoder.load_image_processor(origin)
        parts.setdefault("metrics", self._describe())
        return write_repository(
            Path(self.args.output_dir) / PUBLISHED_FOLDER,
            model,
            tokenizer=self.processing_class,
            projection=self.projection,
            license=self.args.hub_license,
            model_id=self.hub_model_id or self.args.hub_model_id,
            **parts,
        )

    def _describe(self) -> dict[str, Any]:
        """What the trainer knows of its run; it knows no figures of benchmarks."""
        args = self.args
        run = {"seed": args.seed, "steps": self.state.global_step, "learning rate": args.learning_rate}
        run |= {"triplets per step": args.train_batch_size * args.world_size, "temperature": args.temperature}
        run |= {"noise scale": args.noise_scale, "loss": args.loss_type}
        run["adapters"] = "LoRA, merged" if self.has_adapters else "none, all weights trained"
        run |= {"stopped": self.stopped["reason"]} if self.stopped else {}
        return {"run": run, "environment": describe_environment(processes=args.world_size)}


def recipe_of(args, base_models: list[str]) -> dict[str, Any]:
    """The options of a run that are not the defaults, as a recipe of `examples/train_rtd.py` names them.

    Args:
        args ([`RTDTrainingArguments`]): The run's.
        base_models (`list[str]`): Hub ids of the model it started from, the first counts.
    """
    plain = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    recipe: dict[str, Any] = {"clip_model": base_models[0]} if base_models else {}
    for option in fields(args):
        value = getattr(args, option.name)
        if not option.init or option.name in _NOT_IN_RECIPE or option.name.startswith("hub_"):
            continue
        simple = isinstance(value, str | int | float | bool) or option.name == "stop_when"
        if value != getattr(plain, option.name) and simple:
            # HF's enumerations are texts, which YAML must not show as Python objects.
            recipe[option.name] = str(getattr(value, "value", value)) if isinstance(value, str) else value
    return recipe


def push_checkpoint(
    api,
    checkpoint: Path,
    encoder: Path,
    *,
    repo_id: str,
    copies: Path,
    strategy: HubStrategy,
    message: str,
    revision: str | None,
) -> Future:
    """Starts the push of one checkpoint in the background: one commit, so that the Hub never has half of it.

    Args:
        api (`huggingface_hub.HfApi`): Who does it.
        checkpoint (`Path`): The checkpoint, for strategies that push what resumes a training.
        encoder (`Path`): Where its drop-in lies.
        repo_id (`str`): `owner/name`.
        copies (`Path`): Where its files are held until they have arrived; checkpoints may be deleted meanwhile.
        strategy (`HubStrategy`): HF's `hub_strategy`.
        message, revision (`str`): Of the commit.

    Returns:
        `Future`: of the commit's name.
    """
    copy = copies / checkpoint.name
    shutil.rmtree(copy, ignore_errors=True)
    files = {file.name: file for pattern in _ENCODER_FILES for file in encoder.glob(pattern)}
    if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        path = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
        for file in checkpoint.rglob("*"):
            inside = file.relative_to(checkpoint)
            if file.is_file() and inside.parts[0] not in _NOT_OF_CHECKPOINTS:
                files[f"{path}/{inside.as_posix()}"] = file
    for name, file in files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        _hold(file, copy / name)
    (copy / OWNER_FILE).write_text(ownership(), encoding="utf-8")  # so that the last push knows the repository

    def push() -> str:
        from huggingface_hub import CommitOperationAdd

        try:
            with explained(repo_id, f"push `{checkpoint.name}`"):
                return commit(
                    api,
                    repo_id,
                    lambda: [CommitOperationAdd(name, copy / name) for name in (*files, OWNER_FILE)],
                    message=message,
                    revision=revision,
                )
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    return api.run_as_future(push)


def _hold(file: Path, name: Path) -> None:
    """Another name for a file, which takes no room and no time; a copy where the disk has no such thing."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copy(file, name)
