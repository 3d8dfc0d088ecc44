"""The configurations for `accelerate launch`: accelerate reads them, and they name layers that exist."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from helpers import tiny_text_model

from rtd_hf.models import CLIPTextModelForRTD


FILES = sorted((Path(__file__).parents[1] / "examples" / "accelerate_configs").glob("*.yaml"))


def test_every_kind_of_machine_has_one():
    wanted = {"cpu", "single_gpu", "ddp_4xa100", "fsdp2_8xh100", "multi_node", "deepspeed_zero2", "deepspeed_zero3"}
    assert {file.stem for file in FILES} == wanted


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_it(file):
    config, written = load_config_from_file(str(file)), yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, value in written.items():
        found = getattr(config, name)
        assert str(getattr(found, "value", found)) == str(value), name
    assert config.num_processes % config.num_machines == 0


def test_fsdp_wraps_the_layers_of_the_model():
    config = load_config_from_file(str(next(file for file in FILES if "fsdp" in file.stem)))
    layers = [type(layer).__name__ for layer in tiny_text_model(CLIPTextModelForRTD).text_model.encoder.layers]
    assert set(layers) == {config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]}
