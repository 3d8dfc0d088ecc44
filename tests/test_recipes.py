"""The recipes of the backbones and of the paper's rows: each parses into the arguments of its script, and fits."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from backbone_models import TOWERS, text_config


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RECIPES = {
    "b32": "openai-b32",
    "b16": "openai-b16",
    "l14": "openai-l14",
    "h14": "laion-h14",
    "bigg14": "laion-bigg14",
    "metaclip_l14": "metaclip-l14",
    "metaclip_h14": "metaclip-h14",
    "siglip_so400m": "siglip-so400m",
    "siglip2_base": "siglip2-b16",
}
SEVERAL_GPUS = ("l14_4xa100", "bigg14_4xa100")
# Of the paper's rows: the tower of a backbone, and what its recipe includes.
ROWS = {"b32": ("openai-b32", "b32"), "l14": ("openai-l14", "l14"), "g14": ("laion-bigg14", "bigg14")}
PROJECTIONS = ("pic2word", "searle", "lincir", "context_i2w", "fti4cir")
# The published settings, for which no recipe gives its own.
PUBLISHED = {
    "max_steps": 2000,
    "per_device_train_batch_size": 128,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "temperature": 0.07,
    "noise_scale": 0.5,
    "seed": 12345,
}


@pytest.fixture
def train_rtd(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_rtd

    yield train_rtd
    for name in ("train_rtd", *(name for name in sys.modules if name.split(".")[0] == "utils")):
        sys.modules.pop(name, None)  # another test's `utils` may be another folder's


def arguments_of(train_rtd, recipe: str, tmp_path):
    """What a recipe is understood as: the script's arguments and the training's."""
    from utils.arguments import parse
    from utils.parts import ModelArguments

    from rtd_hf import RTDTrainingArguments

    kinds = (train_rtd.ScriptArguments, ModelArguments, RTDTrainingArguments)
    path = EXAMPLES / "recipes" / f"{recipe}.yaml"
    argv = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "True"]
    script, _, args = parse(kinds, argv, default_recipe=None, description="")
    return script, args


def test_every_backbone_has_a_recipe():
    found = {path.stem.removeprefix("lincir_") for path in (EXAMPLES / "recipes").glob("lincir_*.yaml")}
    assert found == {*RECIPES, *SEVERAL_GPUS}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_names_a_model_on_the_hub(train_rtd, name, tmp_path):
    path, tower = EXAMPLES / "recipes" / f"lincir_{name}.yaml", TOWERS[RECIPES[name]]
    script, args = arguments_of(train_rtd, f"lincir_{name}", tmp_path)
    assert script.clip_model == tower.hub_id
    assert {key: getattr(args, key) for key in PUBLISHED} == PUBLISHED
    assert Path(script.projection).name == f"lincir-{name}".replace("_", "-")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["output_dir"] == f"outputs/rtd_lincir_{name}"
    causal = tower.backbone.padding == "longest"
    assert causal or args.mini_batch_size is None, "SigLIP takes no packed rows"
    assert args.mini_batch_size is None or args.per_device_train_batch_size % args.mini_batch_size == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_is_not_measured(name):
    comments = [
        line for line in (EXAMPLES / "recipes" / f"lincir_{name}.yaml").read_text().splitlines() if line[:1] == "#"
    ]
    assert name == "l14" or "is not measured" in " ".join(line.lstrip("# ") for line in comments)


@pytest.mark.parametrize("name", SEVERAL_GPUS)
def test_a_recipe_for_several_gpus_says_how_it_is_launched(train_rtd, name, tmp_path):
    path = EXAMPLES / "recipes" / f"lincir_{name}.yaml"
    script, args = arguments_of(train_rtd, path.stem, tmp_path)
    alone, _ = arguments_of(train_rtd, f"lincir_{name.removesuffix('_4xa100')}", tmp_path)
    assert (script.clip_model, script.projection) == (alone.clip_model, alone.projection)
    assert {key: getattr(args, key) for key in PUBLISHED} == PUBLISHED
    assert args.mini_batch_size is None and args.gather_across_devices
    (command,) = [line for line in path.read_text(encoding="utf-8").splitlines() if "accelerate launch" in line]
    words = command.lstrip("# ").split()
    assert words[:3] == ["accelerate", "launch", "--config_file"] and words[-1] == f"examples/recipes/{path.name}"
    for word in words:
        assert not word.startswith("examples/") or (EXAMPLES.parent / word).is_file(), word


def test_every_row_has_a_recipe():
    found = {path.stem for path in (EXAMPLES / "recipes").glob("reproduce_*.yaml")}
    assert found == {f"reproduce_{backbone}_{projection}" for backbone in ROWS for projection in PROJECTIONS}


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("backbone", ROWS)
def test_a_row_fits_its_backbone(train_rtd, backbone, projection, tmp_path):
    from rtd_hf import PROJECTIONS as KINDS
    from rtd_hf import ImageToWordProjection
    from rtd_hf.preparation import check_fit

    tower, base = ROWS[backbone]
    script, args = arguments_of(train_rtd, f"reproduce_{backbone}_{projection}", tmp_path)
    alone, _ = arguments_of(train_rtd, f"lincir_{base}", tmp_path)
    assert script.clip_model == TOWERS[tower].hub_id == alone.clip_model
    assert script.projection_type == projection
    assert Path(script.projection).name == f"{projection.replace('_', '-')}-{base}"
    assert {key: getattr(args, key) for key in PUBLISHED} == PUBLISHED

    facts = TOWERS[tower]
    more = {"vision_hidden_size": facts.vision["hidden_size"]} if KINDS[projection].needs_patches else {}
    with torch.device("meta"):
        model = facts.backbone(text_config(tower, layers=1))
        words = ImageToWordProjection.build(script.projection_type, facts.width, facts.text["hidden_size"], **more)
        another = ImageToWordProjection.build(script.projection_type, facts.width + 8, 64, **more)
    check_fit(words, model, args)
    with pytest.raises(ValueError, match="Use the projection that was fitted to this CLIP"):
        check_fit(another, model, args)
    if script.prompt_template:
        words.use_template(script.prompt_template)
    if projection in ("pic2word", "searle", "lincir"):  # what the authors' code composes, whatever the projection
        assert words.config.prompt_template == "a photo of $ that {caption}"
