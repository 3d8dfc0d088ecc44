"""The folder that is published: the text encoder as a drop-in and all that belongs to it; and the way back."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contexts import quiet_transformers
from ..files import room_for
from ..parsing import read_object
from ..tokens import load_tokenizer
from .card import WORLD, build_model_card
from .drop_in import verify_drop_in
from .encoders import backbone_of, has_adapters
from .export import ADAPTER_FOLDER, export_text_encoder
from .figures import eval_result_entries
from .modules import describe_modules


if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from ..retrieval import CIREncoder


PROJECTION_FOLDER = "projection"
METRICS_FILE = "metrics.json"
RECIPE_FILE = "recipe.yaml"
CARD_FILE = "README.md"
EVAL_RESULTS_FOLDER = ".eval_results"
_NO_ROOM = "and write it again; a training's last checkpoint leads there (`--resume_from_checkpoint last`)"
RECIPE_HEAD = """\
# How this checkpoint was trained. The same again, in a checkout of rtd_hf:
#     accelerate launch --num_processes {} examples/train_rtd.py --config recipe.yaml
# Paths are relative to the folder it was run in; of files elsewhere only the name stands here.
"""


def write_repository(
    folder: str | os.PathLike,
    model,
    *,
    tokenizer,
    image_processor,
    projection,
    metrics: Mapping[str, Any],
    recipe: Mapping[str, Any],
    license: str,
    base_model: str | None,
    base_revision: str | None = None,
    model_id: str | None = None,
    datasets: Sequence[str] | None = None,
    dataset_ids: Mapping[str, str] | None = None,
    limits: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> Path:
    """Writes everything that a published checkpoint consists of, and proves that it is a drop-in.

    | file | what it is |
    | --- | --- |
    | `config.json`, `model.safetensors` | the text encoder as its stock class, adapters merged |
    | `tokenizer.json` and others | its tokenizer, for transformers 4.57 and 5 |
    | `preprocessor_config.json` | the image processor of the picture encoder it belongs to |
    | `projection/` | the projection it was trained with; its configuration names the base model |
    | `adapter/` | the adapter alone, if it was trained with one |
    | `metrics.json` | `metrics`, with `drop_in` (the proof) and `card` (the arguments of the card) |
    | `recipe.yaml` | `recipe`: `examples/train_rtd.py --config recipe.yaml` repeats the run |
    | `modules.json` and two others | for sentence-transformers, of a CLIP text encoder |
    | `.eval_results/*.yaml` | the figures of benchmarks that are data sets on the Hub |
    | `README.md` | the card; written last, so that a folder that has one is complete |

    Args:
        folder (`str` or `os.PathLike`): See [`prepare_output_dir`] for which folders are taken.
        model: The trained text encoder, as [`export_text_encoder`] takes it.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer it was trained with.
        image_processor: The image processor of the picture encoder it was measured with.
        projection ([`ImageToWordProjection`]): The projection it was trained with.
        metrics (`Mapping`): As [`build_model_card`] takes it.
        recipe (`Mapping`): The resolved arguments of the run, by their names.
        license (`str`): Hub licence identifier of the weights.
        base_model (`str`, *optional*):
            Hub id of the model that the training started from, from which [`load_cir_encoder`] takes the picture
            encoder; `"shapes"` for the small CLIP of the offline world. None if it is on no Hub: then users must name
            their own.
        base_revision (`str`, *optional*): Its revision, a commit at best.
        model_id (`str`, *optional*): Hub id it is going to have, for the code in the card; the folder by default.
        datasets (`Sequence[str]`, *optional*): Hub ids of the data trained on.
        dataset_ids (`Mapping[str, str]`, *optional*): Hub ids of benchmarks that are data sets there, by their names.
        limits (`Sequence[str]`): Sentences added to the card's limits.
        tags (`Sequence[str]`): Added to the card's tags.

    Returns:
        `Path`: The folder.

    Raises:
        TypeError: `model` is not a text encoder with its projection.
        ValueError: `license` is empty, `base_model` is no Hub id, a figure is not finite, or the folder does not give
            the model's embeddings.
        FileExistsError, NotADirectoryError, PermissionError: See [`prepare_output_dir`].
        NoRoomError: The disk is full.
    """
    check_base_model(base_model)
    adapted = has_adapters(model)
    stock_class = backbone_of(model.get_base_model() if adapted else model).stock_class.__name__
    about = {
        "license": license,
        "model_id": str(folder if model_id is None else model_id),
        "base_model": base_model,
        "base_revision": base_revision,
        "datasets": list(datasets) if datasets else None,
        "projection_type": projection.config.projection_type,
        "prompt_template": projection.config.prompt_template,
        "text_encoder_class": stock_class,
        "has_adapter": adapted,
        "limits": list(limits),
        "tags": list(tags),
    }
    # What can be refused is refused before anything is written.
    card = build_model_card(metrics, **about)
    date = (metrics.get("environment") or {}).get("date")
    entries = eval_result_entries(metrics.get("after") or {}, dataset_ids or {}, date=date)

    on_hub = None if base_model == WORLD else base_model
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    with room_for("The trained encoder", Path(folder), needed=size, advice=_NO_ROOM):
        folder = export_text_encoder(model, folder, tokenizer=tokenizer, base_model=on_hub)
        (folder / CARD_FILE).unlink(missing_ok=True)
        proof = verify_drop_in(folder, model, tokenizer=tokenizer)
        with quiet_transformers():
            image_processor.save_pretrained(folder)
            _write_projection(projection, folder / PROJECTION_FOLDER, base_model=base_model, revision=base_revision)
        if stock_class.startswith("CLIP"):
            describe_modules(folder)
        if adapted and base_revision:
            _amend(folder / ADAPTER_FOLDER / "adapter_config.json", revision=base_revision)
        _write_eval_results(folder / EVAL_RESULTS_FOLDER, entries)
        processes = (metrics.get("environment") or {}).get("processes") or 1
        (folder / RECIPE_FILE).write_text(RECIPE_HEAD.format(processes) + _as_yaml(dict(recipe)), encoding="utf-8")
        drop_in = {"max difference": proof.max_difference, "parameters": proof.num_parameters}
        _write_json(folder / METRICS_FILE, {**metrics, "drop_in": drop_in, "card": about})
        card.save(folder / CARD_FILE)
    return folder


def check_base_model(base_model: str | None) -> None:
    """Refuses a base model that others cannot load.

    Args:
        base_model (`str`, *optional*): As [`write_repository`] takes it.

    Raises:
        ValueError: It is a path, or no Hub id.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if base_model is None or base_model == WORLD:
        return
    try:
        validate_repo_id(base_model)
        local = Path(base_model).exists()
    except HFValidationError:
        local = True
    if local:
        raise ValueError(
            f"`base_model` must be a Hub id such as 'openai/clip-vit-large-patch14', but is {base_model!r}, which "
            f"others cannot load. Give the id under which it is published, or None if there is none."
        )


def cached_revision(base_model: str | None, *, cache_dir: str | os.PathLike | None = None) -> str | None:
    """The commit of a model that the last download gave; the Hub is not asked.

    Args:
        base_model (`str`, *optional*): As [`write_repository`] takes it.
        cache_dir (`str` or `os.PathLike`, *optional*): The cache of `huggingface_hub`; the usual one by default.

    Returns:
        `str`: 40 signs; None where the model did not come from the Hub, or lies in no cache.
    """
    from huggingface_hub import try_to_load_from_cache

    if base_model is None or base_model == WORLD:
        return None
    found = try_to_load_from_cache(base_model, "config.json", cache_dir=cache_dir)
    return Path(found).parent.name if isinstance(found, str) else None  # else that there is none, or was none


def _write_projection(projection, folder: Path, *, base_model: str | None, revision: str | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    projection.save_pretrained(folder)
    # The picture encoder that the figures were measured with; a path of this machine is no address for others.
    own = projection.config.base_model
    base_model = base_model or (None if own and Path(own).exists() else own)
    _amend(folder / "config.json", base_model=base_model, **({"base_revision": revision} if revision else {}))


def _amend(file: Path, **entries: Any) -> None:
    _write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **entries})


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _as_yaml(values: Any) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _write_eval_results(folder: Path, entries: Mapping[str, list]) -> None:
    from huggingface_hub import eval_result_entries_to_yaml

    shutil.rmtree(folder, ignore_errors=True)
    for benchmark, found in entries.items():
        folder.mkdir(exist_ok=True)
        (folder / f"{benchmark}.yaml").write_text(_as_yaml(eval_result_entries_to_yaml(found)), encoding="utf-8")


def card_of(folder: str | os.PathLike, **changes: Any) -> "ModelCard":
    """The card of a repository made again from its `metrics.json`, with nothing else read.

    Args:
        folder (`str` or `os.PathLike`): What [`write_repository`] wrote.
        changes: Arguments of [`build_model_card`] that are other than they were, such as `model_id`.

    Returns:
        `huggingface_hub.ModelCard`

    Raises:
        FileNotFoundError: There is no `metrics.json`.
        ValueError: It was not written by [`write_repository`].
    """
    file = Path(folder) / METRICS_FILE
    metrics = read_object(file)
    if not isinstance(metrics.get("card"), dict):
        raise ValueError(
            f"`{file}` has no part `card`, so `write_repository` did not write it. Write the folder with it."
        )
    try:
        return build_model_card(metrics, **{**metrics["card"], **changes})
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"No card can be made of `{file}`, which was edited or is of another version ({type(error).__name__}: "
            f"{error}). Write the folder with `write_repository`."
        ) from error


def load_cir_encoder(
    repository: str | os.PathLike,
    *,
    base_model: str | os.PathLike | None = None,
    original: bool = False,
    device: Any = "cpu",
    revision: str | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> "CIREncoder":
    """Loads all that composed retrieval takes: a published text encoder, its projection, and the picture encoder.

    Args:
        repository (`str` or `os.PathLike`): Hub id or folder of what [`write_repository`] wrote.
        base_model (`str` or `os.PathLike`, *optional*):
            Hub id or folder of the model whose picture encoder is taken; the one that the repository names by default.
        original (`bool`, *optional*, defaults to `False`): Take its text encoder too, as it was before the training.
        device (*optional*): Where the models are put.
        revision (`str`, *optional*): Of the repository.
        token (`str` or `bool`, *optional*): For private repositories; the one that is logged in by default.
        options: Of [`CIREncoder`], such as `batch_size`.

    Returns:
        [`CIREncoder`]

    Raises:
        ValueError: The repository names no base model and none is given, or a part is damaged.
        OSError: There is no such repository, or a part of it is missing.
    """
    from ..models import AutoTextModelForRTD
    from ..projections import ImageToWordProjection
    from ..retrieval import CIREncoder

    repository = os.fspath(repository)
    _check_is_repository(repository)
    access = {"revision": revision, "token": token}
    with quiet_transformers():
        projection = ImageToWordProjection.from_pretrained(repository, subfolder=PROJECTION_FOLDER, **access)
        base = _base_of(repository, projection.config, base_model)
        recorded = None if base_model else getattr(projection.config, "base_revision", None)
        its_access = {"revision": recorded, "token": token}
        text_encoder = AutoTextModelForRTD.from_pretrained(repository, **access)
        vision_model = text_encoder.load_vision_model(base, **its_access)
        if original:
            text_encoder = type(text_encoder).from_pretrained(base, **its_access)
        context_encoder = None
        if projection.needs_context:  # reads the query's text by the encoder it was fitted with
            context_encoder = type(text_encoder).from_pretrained(base, **its_access).eval().requires_grad_(False)
        return CIREncoder(
            text_encoder.eval().to(device),
            vision_model.to(device),
            projection=projection.to(device),
            tokenizer=load_tokenizer(repository, **access),
            image_processor=text_encoder.load_image_processor(repository, **access),
            context_encoder=context_encoder and context_encoder.to(device),
            **options,
        )


def _check_is_repository(repository: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    folder = Path(repository)
    if folder.is_dir() and not (folder / PROJECTION_FOLDER / "config.json").is_file():
        raise FileNotFoundError(
            f"`{repository}` is no repository of a trained encoder: there is no `{PROJECTION_FOLDER}/config.json`. "
            f"Give the folder that `write_repository` or `examples/train_rtd.py` wrote; of a text encoder and a "
            f"projection that lie apart make a `CIREncoder`."
        )
    if folder.exists():
        return
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise FileNotFoundError(f"There is no folder `{repository}`, and it can be no Hub id either.") from error


def _base_of(repository: str, config, base_model: str | os.PathLike | None) -> str:
    base = config.base_model if base_model is None else os.fspath(base_model)
    if not base:
        raise ValueError(
            f"`{repository}` does not say which model it was trained from, so the picture encoder is unknown. Give "
            f"its Hub id or folder as `base_model`."
        )
    if base == WORLD and base_model is None:
        from ..shapes import ASSETS

        return str(ASSETS / "clip")
    return base
