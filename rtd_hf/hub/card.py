"""The model card of a trained text encoder, filled from the figures of its own run and from nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import markup
from .figures import (
    NOT_MEASURED,
    baselines_table,
    benchmarks_of,
    checked_figures,
    eval_results,
    options_table,
    preservation_table,
    results_table,
)


if TYPE_CHECKING:
    from huggingface_hub import ModelCard


TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("rtd", "composed-image-retrieval", "zero-shot")
WORLD = "shapes"


def build_model_card(
    metrics: Mapping[str, Any],
    *,
    license: str,
    model_id: str = "path/to/repository",
    base_model: str | None = None,
    base_revision: str | None = None,
    datasets: Sequence[str] | None = None,
    projection_type: str = "lincir",
    prompt_template: str = "a photo of $ that {caption}",
    text_encoder_class: str = "CLIPTextModelWithProjection",
    has_adapter: bool = False,
    limits: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> "ModelCard":
    """Builds the card of one trained text encoder. Nothing is asked of the Hub.

    Every figure comes from `metrics`; what is not in there reads "not measured". Texts are shown as they are: signs
    that mean something in Markdown, HTML or YAML mean nothing in them.

    Args:
        metrics (`Mapping`):
            Every part is optional. `{"before": {key: value}, "after": {key: value}, "gain": {key: {"gain", "low",
            "high"}}, "baselines": {name: {key: value}}}` with values in percent and keys such as `shapes_recall@10`;
            `published` `{key: value}`, a paper's figures, which get a column of their own; `preservation` `{"before",
            "after", "change"}`, of plain retrieval; `run` `{option: value}`, with `command`, `seed` and `seconds` in
            places of their own; `data`, `environment` (with `versions`, a mapping) and `cost` (`seconds`, `training
            seconds`, `energy Wh`, `energy scope`, `peak memory GiB`), as [`describe_environment`] and [`EnergyMeter`]
            give them; `protocols` `{benchmark: {choice: value}}`; `curve` ([`learning_curve`]), `drop_in` and `card`,
            which are not shown.
        license (`str`):
            Hub licence identifier of the weights. There is no default: what the encoder, the projection and the texts
            were released under decides it.
        model_id (`str`): Hub id or path of the repository, for the code in the card.
        base_model (`str`, *optional*): Hub id of the model the training started from; `"shapes"` for the small CLIP of
            the offline world.
        base_revision (`str`, *optional*): Its revision.
        datasets (`Sequence[str]`, *optional*): Hub ids of the data trained on.
        projection_type (`str`): The projection it was trained with, to cite it: `"lincir"`, `"searle"`, `"pic2word"`,
            `"context_i2w"` or `"fti4cir"`.
        prompt_template (`str`): The query prompt, with `$` for the pseudo-word.
        text_encoder_class (`str`): The stock class that loads it, `"SiglipTextModel"` for SigLIP.
        has_adapter (`bool`): Whether the unmerged adapter lies in `adapter/`.
        limits (`Sequence[str]`): Sentences added to the card's limits.
        tags (`Sequence[str]`): Added to the card's tags.

    Returns:
        `huggingface_hub.ModelCard`: Write it with `card.save("README.md")`.

    Raises:
        ValueError: `license` is empty, a part of `metrics` is unknown, or a figure is not a finite number.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if not license:
        raise ValueError(
            f"`license` must be a Hub licence identifier such as 'mit', but is {license!r}. Settle it with the "
            "owners of the encoder, the projection and the texts that the weights come from."
        )
    figures = checked_figures(metrics)
    name = markup.one_line(model_id).rstrip("/").split("/")[-1] or "text encoder"
    family = _family(text_encoder_class)
    results = eval_results(figures["after"])
    on_hub = base_model if base_model != WORLD else None
    data = ModelCardData(
        base_model=on_hub,
        base_model_relation="finetune" if on_hub else None,
        datasets=list(datasets) if datasets else None,
        eval_results=results or None,
        library_name="transformers",
        license=license,
        model_name=name if results else None,
        pipeline_tag="feature-extraction",
        tags=list(dict.fromkeys([*TAGS, family.lower().replace(" ", ""), *tags])),
    )
    keys = {*figures["before"], *figures["after"]}
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **_code_of(text_encoder_class, model_id, base_model=base_model),
        **_tables_of(figures),
        **_run_of(metrics),
        model_name=markup.plain(name),
        family=family,
        base_model=markup.plain(base_model) if base_model else None,
        base_link=on_hub,
        base_revision=markup.code(base_revision) if base_revision else None,
        has_adapter=has_adapter,
        projection_type=projection_type,
        projection_name=markup.plain(projection_type),
        prompt_template=markup.code(prompt_template),
        only_shapes=bool(keys) and all(key.startswith("shapes_") for key in keys),
        limits=[markup.plain(limit) for limit in limits if limit.strip()],
        not_measured=NOT_MEASURED,
    )


def _family(text_encoder_class: str) -> str:
    for stem, family in (("Siglip2", "SigLIP 2"), ("Siglip", "SigLIP"), ("CLIP", "CLIP")):
        if text_encoder_class.startswith(stem):
            return family
    raise ValueError(
        f"`text_encoder_class` must be a class of CLIP's or SigLIP's text encoder, but is {text_encoder_class!r}."
    )


def _code_of(text_encoder_class: str, model_id: str, *, base_model: str | None) -> dict[str, str]:
    """The blocks of code."""
    repository = markup.literal(model_id)
    load = [
        f"from transformers import AutoTokenizer, {text_encoder_class}\n",
        f"tokenizer = AutoTokenizer.from_pretrained({repository})",
        f"text_encoder = {text_encoder_class}.from_pretrained({repository})",
    ]
    where = repository if base_model else f'{repository}, base_model="path/to/the/clip/it/started/from"'
    compose = [
        "from rtd_hf import ComposedImageRetriever\n",
        f"retriever = ComposedImageRetriever.from_pretrained({where})",
        'retriever.index("pictures")  # or embeddings that the original model made: those of pictures stay valid',
        'for name, score in retriever.search("reference.jpg", "is red instead of blue", 5):',
        '    print(f"{score:.3f}  {name}")',
    ]
    return {
        "load_code": markup.block("\n".join(load), "python"),
        "compose_code": markup.block("\n".join(compose), "python"),
        "repeat_code": markup.block("accelerate launch examples/train_rtd.py --config recipe.yaml", "shell"),
    }


def _tables_of(figures: Mapping[str, Mapping]) -> dict[str, Any]:
    return {
        "results_table": results_table(figures),
        "baselines_table": baselines_table(figures),
        "preservation_table": preservation_table(figures),
        "benchmarks": benchmarks_of(figures),
    }


def _run_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the run says of itself beside its figures, as Markdown."""
    run, data = dict(metrics.get("run") or {}), dict(metrics.get("data") or {})
    environment, cost = dict(metrics.get("environment") or {}), dict(metrics.get("cost") or {})
    versions = {**(run.pop("versions", None) or {}), **(environment.pop("versions", None) or {})}
    seconds = cost.pop("seconds", run.pop("seconds", None))
    command = run.pop("command", None)
    training, memory, energy = (cost.get(key) for key in ("training seconds", "peak memory GiB", "energy Wh"))
    scope = markup.plain(cost.get("energy scope") or "counters of the machine")
    said = [
        ("the whole run", NOT_MEASURED if seconds is None else f"{seconds:.0f} s"),
        ("the training alone", NOT_MEASURED if training is None else f"{training:.0f} s"),
        ("peak memory of one process", NOT_MEASURED if memory is None else f"{memory:.1f} GiB"),
        ("energy of the whole run", NOT_MEASURED if energy is None else f"{energy:.3g} Wh, {scope}"),
        *((key, _listed(value)) for key, value in environment.items()),
        ("versions", _listed([f"{key} {value}" for key, value in versions.items()])),
    ]
    return {
        "options_table": options_table(run),
        "protocols_table": options_table(
            {key: _joined(value) for key, value in (metrics.get("protocols") or {}).items()}, head="benchmark"
        ),
        "data_table": options_table({key: _joined(value) for key, value in data.items()}),
        "cost_table": markup.table(["", ""], [[what, value] for what, value in said if value]).replace("---:", "---"),
        "seed": None if run.get("seed") is None else markup.plain(run["seed"]),
        "command": markup.block(command, "shell") if command else None,
    }


def _joined(value: Any) -> Any:
    if isinstance(value, Mapping):
        parts = ((key, f"({_joined(part)})" if isinstance(part, Mapping) else part) for key, part in value.items())
        return ", ".join(f"{key} {part}" for key, part in parts)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _listed(value: Any) -> str:
    return markup.plain(_joined(value))
