"""FSDP2 on two processes: the training of DDP, checkpoints that plain transformers loads, and resuming from them."""

import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers import tiny_text_model, tiny_trainer
from processes import leave, run_on_processes
from transformers import CLIPTextModelWithProjection

from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.sharding import is_sharded, unsharded, whole_weights


WAYS = {"full": "FULL_STATE_DICT", "shards": "SHARDED_STATE_DICT", "lora": "FULL_STATE_DICT"}
STEPS = 4


def shard_on_cpu() -> None:
    """Lets accelerate use FSDP without GPUs: it asks for its own list of devices, torch does not."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")  # every later instance shares the first one's
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

    AcceleratorState.__init__ = patched


def trainer_for(folder: Path, way: str, state_dict_type: str | None):
    options, peft_config = {}, None
    if state_dict_type:
        layers = {"transformer_layer_cls_to_wrap": ["PackedCLIPEncoderLayer"], "state_dict_type": state_dict_type}
        options = {"fsdp": True, "fsdp_config": {"fsdp_version": 2, "reshard_after_forward": True, **layers}}
    if way == "lora":
        from peft import LoraConfig

        peft_config = LoraConfig(r=2, lora_alpha=4, target_modules=list(CLIPTextModelForRTD.lora_target_modules))
    # Three batches of evaluation for two processes, and a metric that is measured on the encoder in one piece.
    norm = [lambda model: {"norm": float(sum(weight.square().sum() for weight in model.parameters()))}]
    options |= {"save_steps": 2, "evaluators": norm, "peft_config": peft_config}
    return tiny_trainer(folder, max_steps=STEPS, eval_rows=10, **options)


def main(folder: str) -> None:
    """What each process of the tests runs: every way, under DDP, under FSDP2, and resumed half-way."""
    shard_on_cpu()
    found = {}
    # DDP first: where FSDP was used once in a process, the environment says so.
    for engine, (way, state_dict_type) in product(("ddp", "fsdp"), WAYS.items()):
        out, kind = Path(folder) / f"{way}-{engine}", state_dict_type if engine == "fsdp" else None
        trainer = trainer_for(out, way, kind)
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        encoder = trainer.trained_encoder()
        part = is_sharded(trainer.model)
        metrics = {name: value for name, value in trainer.evaluate().items() if name in ("eval_loss", "eval_norm")}
        weights = {name: weight.clone() for name, weight in encoder.state_dict().items()}
        found[way, engine] = {"losses": losses, "sharded": part, "weights": weights, "metrics": metrics}
        if engine == "fsdp":
            resumed = trainer_for(out, way, kind)
            resumed.train(resume_from_checkpoint=str(out / "checkpoint-2"))
            found[way, "resumed"] = {"weights": dict(resumed.trained_encoder().state_dict())}
    torch.save(found, Path(folder) / f"rank{torch.distributed.get_rank()}.pt")
    leave()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    run_on_processes(2, Path(__file__), str(folder))
    return folder, [torch.load(folder / f"rank{number}.pt") for number in range(2)]


def check_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        if "k_proj.bias" not in name:  # no true gradient: Adam makes steps out of rounding errors
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_shards_train_as_ddp_does(runs, way):
    for rank in runs[1]:
        ddp, fsdp = rank[way, "ddp"], rank[way, "fsdp"]
        assert fsdp["sharded"] and not ddp["sharded"]
        assert fsdp["losses"] == pytest.approx(ddp["losses"], rel=1e-6) and len(ddp["losses"]) == STEPS
        assert fsdp["metrics"] == pytest.approx(ddp["metrics"], rel=1e-5) and len(ddp["metrics"]) == 2
        check_same(fsdp["weights"], ddp["weights"])
    start = tiny_text_model(CLIPTextModelForRTD).state_dict()
    if way != "lora":
        moved = max((runs[1][0][way, "fsdp"]["weights"][name] - weight).abs().max() for name, weight in start.items())
        assert moved > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_ends_as_the_uninterrupted_one(runs, way):
    for rank in runs[1]:
        check_same(rank[way, "resumed"]["weights"], rank[way, "fsdp"]["weights"])


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_load_in_plain_transformers(runs, way):
    folder, ranks = runs
    models = []
    for engine in ("ddp", "fsdp"):
        checkpoint = folder / f"{way}-{engine}" / f"checkpoint-{STEPS}" / ("merged" if way == "lora" else "")
        model, report = CLIPTextModelWithProjection.from_pretrained(checkpoint, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        models.append(model.state_dict())
    check_same(models[1], models[0])
    if way != "lora":
        check_same(models[1], ranks[0][way, "fsdp"]["weights"])


def test_a_model_in_one_piece_is_left_alone():
    model = tiny_text_model(CLIPTextModelForRTD)
    assert unsharded(model) is model and not is_sharded(model)
    weights = dict(model.state_dict())
    assert all(whole_weights(weights)[name] is weight for name, weight in weights.items())


if __name__ == "__main__":
    main(*sys.argv[1:])
