"""The recipes of the backbones: each parses into the arguments of its script and names a model on the Hub."""

import sys
from pathlib import Path

import pytest
import yaml
from backbone_models import TOWERS


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


def test_every_backbone_has_a_recipe():
    found = {path.stem.removeprefix("lincir_") for path in (EXAMPLES / "recipes").glob("lincir_*.yaml")}
    assert found == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_names_a_model_on_the_hub(train_rtd, name, tmp_path):
    from utils.arguments import parse
    from utils.parts import ModelArguments

    from rtd_hf import RTDTrainingArguments

    path, tower = EXAMPLES / "recipes" / f"lincir_{name}.yaml", TOWERS[RECIPES[name]]
    kinds = (train_rtd.ScriptArguments, ModelArguments, RTDTrainingArguments)
    argv = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "True"]
    script, _, args = parse(kinds, argv, default_recipe=None, description="")
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
