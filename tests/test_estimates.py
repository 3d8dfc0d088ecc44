"""What `--estimate` says is held to real tensors: weights, moments, what autograd keeps, the peak of a whole step."""

import runpy
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from backbone_models import text_config
from helpers import tiny_text_config, tiny_tokenizer, tiny_triplets

from rtd_hf import (
    ImageToWordProjection,
    RTDTrainer,
    RTDTrainingArguments,
    SiglipTextModelForRTD,
    estimate_training,
    probe_step_seconds,
    target_anchored_contrastive_loss,
)
from rtd_hf.estimates import ENGINES, _loss_bytes
from rtd_hf.fake_steps import FakeStep, build_encoder
from rtd_hf.live_memory import LiveMemory
from rtd_hf.models import CLIPTextModelForRTD


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
VARIANTS = {
    "full": {},
    "lora": {"lora": True},
    "mini_batches": {"mini_batch_size": 4},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "literal": {"refined_concatenation": False},
    "info_nce": {"loss_type": "info_nce", "refined_batch": False},
}


@pytest.fixture
def utils(monkeypatch):
    """The modules of `examples/utils` by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in [name for name in sys.modules if name.split(".")[0] == "utils"]:
        monkeypatch.delitem(sys.modules, name)

    def load(name: str):
        __import__(f"utils.{name}")
        return sys.modules[f"utils.{name}"]

    yield load
    for name in [name for name in sys.modules if name.split(".")[0] == "utils"]:
        sys.modules.pop(name, None)


def config(**options):
    """Wide enough that tensors outweigh indices and masks."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "projection_dim": 96, "num_hidden_layers": 3}
    return tiny_text_config(**{**sizes, "num_attention_heads": 2, **options})


def arguments(folder, **options) -> RTDTrainingArguments:
    defaults = {"per_device_train_batch_size": 12, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return RTDTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def lora_config():
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=list(CLIPTextModelForRTD.lora_target_modules))


def request(folder, *, lora: bool = False, text=None, **options) -> dict:
    """What `estimate_training` is asked for."""
    text = text or config()
    return {
        "config": text,
        "args": arguments(folder, **options),
        "projection": ImageToWordProjection.build("lincir", text.projection_dim, text.hidden_size),
        "tokenizer": tiny_tokenizer(),
        "triplets": tiny_triplets(12),
        "lora": lora_config() if lora else None,
    }


def trainer_for(asked: dict) -> RTDTrainer:
    model = CLIPTextModelForRTD(asked["config"]).train()
    if asked["args"].gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return RTDTrainer(
        model,
        asked["args"],
        projection=asked["projection"],
        processing_class=asked["tokenizer"],
        peft_config=asked["lora"],
    )


@cache
def _alone(folder):
    return estimate_training(**request(folder, bf16=True))


class TestLiveMemory:
    def test_counts_storages_once_and_until_they_are_free(self):
        known = torch.ones(1000)
        with LiveMemory([known]) as memory:
            assert known.view(10, 100).storage_offset() == 0 and memory.live == 0
            first = torch.ones(500)
            view = first[10:]
            assert memory.live == 2000
            second = first + 1
            assert (memory.live, memory.peak) == (4000, 4000)
            del first
            assert memory.live == 4000  # the view holds it
            del view
            assert (memory.live, memory.peak) == (2000, 4000)
            assert memory.restart() == 2000 == memory.peak
            del second
        assert memory.live == 0

    def test_sees_what_autograd_alone_holds(self):
        weight = torch.ones(100, 100, requires_grad=True)
        with LiveMemory([weight]) as memory:
            output = (weight.exp() * 2).sum()
            assert memory.live == 40_000 + 4
            output.backward()
            assert memory.peak >= 80_000
            weight.grad = None
            del output
        assert memory.live == 0


class TestWhatIsExact:
    def test_weights_and_moments_are_those_of_a_real_model(self, tmp_path):
        asked = request(tmp_path)
        estimate, model = estimate_training(**asked), CLIPTextModelForRTD(asked["config"])
        weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        optimizer.step()
        moments = sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for name, value in state.items()
            if name != "step"
        )
        assert estimate.held == {
            "weights": weights,
            "moments": moments,
            "frozen copy": weights,
            "projection": sum(4 * weight.numel() for weight in asked["projection"].parameters()),
        }
        assert estimate.parts["gradients"] == weights == 4 * estimate.num_parameters
        assert estimate.num_trainable == estimate.num_parameters == model.num_parameters()

    def test_adapters_need_no_frozen_copy_and_few_moments(self, tmp_path):
        estimate = estimate_training(**request(tmp_path, lora=True))
        trainable = 3 * 4 * (4 * 2 * 128 + 2 * (128 + 512))  # layers, rank, inputs and outputs of six products
        assert estimate.num_trainable == trainable and estimate.held["moments"] == 8 * trainable
        assert "frozen copy" not in estimate.held and estimate.peaks["frozen encoder"] > 0
        assert estimate.held["weights"] == 4 * estimate.num_parameters

    def test_anchors_ahead_need_no_frozen_encoder(self, tmp_path):
        asked = request(tmp_path)
        with_copy, ahead = estimate_training(**asked), estimate_training(**asked, anchors_ahead=True)
        assert "frozen copy" not in ahead.held and ahead.peaks["frozen encoder"] == 0
        assert set(ahead.tokens) == {"prompts"} and ahead.flops < with_copy.flops
        assert ahead.peaks["backward"] == pytest.approx(with_copy.peaks["backward"], rel=0.02)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_what_processes_share(self, tmp_path, engine):
        asked = request(tmp_path, bf16=True)
        alone = _alone(Path(tmp_path.parent))
        four = estimate_training(**asked, processes=4, engine=engine)
        number = alone.num_parameters  # divisible by four
        assert number % 4 == 0
        wanted = {
            "ddp": {"weights": 4 * number, "moments": 8 * number, "DDP's buckets": 4 * number},
            "fsdp2": {"weights": number, "moments": 2 * number},
            # ZeRO: 2 P + 14 P / N and 16 P / N, of which gradients are 2 P / N
            "zero2": {"weights": 2 * number, "moments": 2 * number, "weights in float32": number},
            "zero3": {"weights": number // 2, "moments": 2 * number, "weights in float32": number},
        }[engine]
        wanted |= {"frozen copy": 4 * number, "projection": alone.held["projection"]}
        if engine.startswith("zero"):
            wanted["ZeRO's buckets"] = 2 * number
        assert four.held == wanted
        gradients = {"ddp": 4 * number, "fsdp2": number, "zero2": number // 2, "zero3": number // 2}[engine]
        assert four.parts["gradients"] == four.peaks["optimizer"] == gradients
        assert four.facts["pairs compared"] == 4 * 24
        assert (four.parts["weights gathered at once"] > 0) == (engine in ("fsdp2", "zero3"))

    def test_fsdp_gathers_what_is_outside_the_layers_and_two_of_them(self, tmp_path):
        asked = request(tmp_path)
        estimate = estimate_training(**asked, processes=2, engine="fsdp2")
        model = CLIPTextModelForRTD(asked["config"])
        layer = sum(weight.numel() for weight in model.text_model.encoder.layers[0].parameters())
        outside = model.num_parameters() - 3 * layer
        assert estimate.parts["weights gathered at once"] == 4 * (outside + 3 * layer)

    @pytest.mark.parametrize("loss_type", ["nt_xent", "info_nce"])
    def test_the_loss(self, loss_type):
        queries, anchors = torch.randn(600, 64, requires_grad=True), torch.randn(600, 64)
        with LiveMemory([queries, anchors]) as memory:
            loss = target_anchored_contrastive_loss(queries, anchors, loss_type=loss_type, gather=False)
            kept, peak = memory.live, memory.peak
            del loss
        said_kept, said_passing = _loss_bytes(600, 600, 64, loss_type)
        assert said_kept + said_passing == pytest.approx(peak, rel=0.15)
        assert kept == pytest.approx(said_kept, rel=0.5)  # and the norms, which are small beside the blocks
        whole, parts = (_loss_bytes(4096, 4 * pairs, 64, loss_type)[1] for pairs in (4096, 65536))
        assert parts < 2 * whole  # more columns, fewer rows in a block


class TestHeldToRealSteps:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_peak_of_a_step(self, tmp_path, variant):
        asked = request(tmp_path, **VARIANTS[variant])
        estimate, trainer = estimate_training(**asked), trainer_for(asked)
        parts = [trainer.model, trainer.projection, *([trainer.anchor_model] if trainer.anchor_model else [])]
        known = [weight for part in parts for weight in part.parameters()]
        with LiveMemory(known) as memory:
            inputs = trainer.data_collator(asked["triplets"])
            memory.restart()
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model.train(), inputs)
            loss.backward()
            peak = memory.peak
        held = sum(weight.numel() * weight.element_size() for weight in known)
        said = estimate.peak_bytes - estimate.held["moments"]
        assert said == pytest.approx(held + peak, rel=0.06)

    def test_activations_are_what_autograd_saves(self, tmp_path):
        asked = request(tmp_path)
        estimate, trainer = estimate_training(**asked), trainer_for(asked)
        model, inputs = trainer.model.train(), trainer.data_collator(asked["triplets"])
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(packed_rows=inputs["packed_rows"], pseudo_words=torch.zeros(12, 1, 128))
        assert estimate.parts["activations"] == pytest.approx(sum(saved.values()), rel=0.05)
        rows = inputs["packed_rows"][0]
        assert estimate.tokens["prompts"]["computed"] == rows.num_nodes
        assert estimate.bytes_per_token_and_layer * rows.num_nodes * 3 == pytest.approx(estimate.parts["activations"])

    def test_copies_in_half_precision(self, tmp_path):
        estimate = estimate_training(**request(tmp_path, bf16=True))
        linear = 3 * (4 * (128 * 128 + 128) + 128 * 512 + 512 + 512 * 128 + 128) + 128 * 96
        assert estimate.parts["half-precision copies of weights"] == 2 * linear

    def test_work_is_that_of_the_products(self, tmp_path):
        asked = request(tmp_path)
        estimate = estimate_training(**asked)
        batch = trainer_for(asked).data_collator(asked["triplets"])

        def forward(rows):
            # The last layer asks of the ends alone, and makes keys and values of all.
            width, nodes, ends = 128, rows.num_nodes, len(rows.ends)
            return 2 * 24 * width**2 * nodes + 4 * width**2 * nodes + 20 * width**2 * ends + 2 * width * 96 * ends

        products = 3 * forward(batch["packed_rows"][0]) + forward(batch["anchor_packed_rows"][0])
        assert products < estimate.flops < 1.2 * products  # attention and the loss on top

    def test_mini_batches_are_counted_from_a_few(self, tmp_path):
        """As if all of them had been run, at full depth."""
        asked = request(tmp_path, mini_batch_size=3, text=config(num_hidden_layers=4))
        trainer = trainer_for(asked)
        batch = {name: rows for name, rows in trainer.data_collator(asked["triplets"]).items() if "packed" in name}
        for rows in (rows for part in batch.values() for rows in part):
            assert rows.groups and rows.end_groups and rows.longest
        step = FakeStep(asked["config"], asked["args"], lora=None, half=None, width=128)
        found, whole = step.run(batch), step._run(batch, 4, drop_gradients=False)
        assert found.chunks == 4 and found.backward == pytest.approx(whole.backward, rel=0.05)
        assert found.flops == pytest.approx(whole.flops, rel=0.1)

    def test_accumulated_gradients_wait(self, tmp_path):
        one, two = (estimate_training(**request(tmp_path, gradient_accumulation_steps=n)) for n in (1, 2))
        gradients = one.parts["gradients"]
        for phase in ("frozen encoder", "forward and loss", "backward"):
            assert two.peaks[phase] == one.peaks[phase] + gradients
        assert two.flops == 2 * one.flops

    def test_attention_of_a_gpu_keeps_less(self, tmp_path):
        asked = request(tmp_path, bf16=True)
        cpu, cuda = estimate_training(**asked), estimate_training(**asked, device_type="cuda")
        assert 0.5 < cuda.parts["activations"] / cpu.parts["activations"] < 1
        assert cuda.held == cpu.held and cuda.peak_bytes <= cpu.peak_bytes

    def test_the_model_is_counted_and_not_made(self):
        model = build_encoder(text_config("laion-bigg14"))
        assert {weight.device.type for weight in model.parameters()} == {"meta"}
        assert sum(weight.numel() for weight in model.parameters()) == 694_659_840


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"engine": "horovod"}, {}, "`engine` must be one of ddp, fsdp2"),
        ({"precision": "int8"}, {}, "`precision` must be fp32"),
        ({"processes": 0}, {}, "`processes` must be at least 1"),
        ({"engine": "zero3", "processes": 2}, {}, "Set `precision` to bf16"),
        ({"triplets": tiny_triplets(3)}, {}, "`triplets` holds 3 rows, fewer than the 12"),
        ({}, {"optim": "adafactor"}, "`optim` 'adafactor' has a memory that is not known"),
        ({}, {"packing": False}, "is to get padded ones"),
    ],
)
def test_what_is_refused(tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        estimate_training(**{**request(tmp_path, **options), **change})


def test_an_encoder_without_packed_rows_is_refused(tmp_path):
    siglip = SiglipTextModelForRTD.config_class(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        projection_size=32,
    )
    asked = request(tmp_path)
    asked["projection"] = ImageToWordProjection.build("lincir", 32)
    with pytest.raises(ValueError, match="takes none"):
        estimate_training(**{**asked, "config": siglip})


class TestProbe:
    def test_it_times_the_true_step(self, tmp_path):
        asked = request(tmp_path, mini_batch_size=6)
        before = asked["args"].to_dict()
        found = probe_step_seconds(**asked, repeats=1)
        assert found.seconds == pytest.approx(found.pass_seconds + found.optimizer_seconds)
        assert found.pass_seconds > 0 and found.optimizer_seconds > 0 and found.triplets == 12
        assert asked["args"].to_dict() == before and list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("options", [{"lora": True}, {"gradient_checkpointing": True}, {"bf16": True}])
    def test_variants(self, tmp_path, options):
        assert probe_step_seconds(**request(tmp_path, **options), anchors_ahead=True, repeats=1).seconds > 0

    def test_layers_and_triplets_are_extrapolated(self, tmp_path, monkeypatch):
        import rtd_hf.step_probe as probe

        seen = []

        def timed(trainer, rows, **_):
            layers = trainer.model.config.num_hidden_layers
            seen.append((layers, len(rows)))
            return len(rows) * (0.5 + 0.25 * layers), 3 + 2 * layers, 7.0 + 5 * layers

        monkeypatch.setattr(probe, "_time", timed)
        asked = request(tmp_path, per_device_train_batch_size=128, gradient_accumulation_steps=3)
        found = probe_step_seconds(**{**asked, "triplets": tiny_triplets(90)})
        assert seen == [(1, 64), (3, 64)]
        assert found.pass_seconds == pytest.approx(3 * 128 * (0.5 + 0.25 * 3))
        assert found.optimizer_seconds == pytest.approx(3 + 2 * 3)
        timed_step = 64 * (0.5 + 0.25 * 3) + 3 + 2 * 3
        assert found.cpu_seconds == pytest.approx((7 + 5 * 3) * found.seconds / timed_step)

    def test_what_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="holds 3 rows, and 12 are timed"):
            probe_step_seconds(**{**request(tmp_path), "triplets": tiny_triplets(3)})
        with pytest.raises(ValueError, match="`repeats` must be at least 1"):
            probe_step_seconds(**request(tmp_path), repeats=0)


class TestScript:
    @pytest.fixture
    def train_rtd(self, monkeypatch, capsys):
        monkeypatch.syspath_prepend(str(EXAMPLES))

        def call(*arguments):
            monkeypatch.setattr(sys, "argv", [str(EXAMPLES / "train_rtd.py"), *map(str, arguments)])
            runpy.run_path(str(EXAMPLES / "train_rtd.py"), run_name="__main__")
            return capsys.readouterr().out

        yield call
        for name in [name for name in sys.modules if name.split(".")[0] == "utils"]:
            sys.modules.pop(name, None)

    def failure(self, call, *arguments) -> str:
        with pytest.raises(SystemExit) as caught:
            call(*arguments)
        assert caught.value.code not in (0, None)
        return str(caught.value.code)

    def test_on_a_gpu_that_is_not_here(self, train_rtd, tmp_path):
        launch = EXAMPLES / "accelerate_configs" / "ddp_4xa100.yaml"
        recipe = EXAMPLES / "recipes" / "lincir_l14_4xa100.yaml"
        shown = train_rtd(
            *("--config", recipe, "--estimate", "a100", "--estimate_launch", launch, "--estimate_share", "0.5"),
            *("--per_device_train_batch_size", 8, "--output_dir", tmp_path / "o"),
        )
        assert "123,650,304 parameters" in shown and "processes  4, ddp" in shown and "bf16 autocast" in shown
        assert "counted, not measured" in shown and "the vendor's figure" in shown
        assert "50% (an assumption" in shown and "2,000 steps" in shown and "triplets.jsonl is not at hand" in shown
        assert "Left out: loading" in shown and not (tmp_path / "o").exists()

    def test_here_in_the_offline_world(self, train_rtd, tmp_path):
        shown = train_rtd("--estimate", "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "o")
        assert "drawn from shapes" in shown and "Time on this machine (cpu" in shown and "300 steps" in shown
        assert not (tmp_path / "o").exists()

    def test_a_clip_that_is_not_known(self, train_rtd, tmp_path):
        recipe = ("--config", EXAMPLES / "recipes" / "lincir_l14.yaml", "--estimate", "h100")
        small = ("--per_device_train_batch_size", 4, "--output_dir", tmp_path)
        message = self.failure(train_rtd, *recipe, *small, "--clip_model", "nobody/clip")
        assert "nobody/clip can not be had" in message and "`--estimate_size`" in message and "bigg14" in message
        shown = train_rtd(*recipe, *small, "--clip_model", "nobody/clip", "--estimate_size", "b32")
        assert "63,428,096 parameters" in shown and "as told, of the size b32" in shown

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--estimate", "tpu"), "`--estimate` must be here, a100"),
            (("--estimate", "a100", "--estimate_share", "0"), "`--estimate_share` must be above 0"),
            (("--estimate", "a100", "--estimate_size", "xxl"), "`--estimate_size` must be one of b32"),
            (("--estimate", "a100", "--estimate_launch", "none.yaml"), "none.yaml does not exist"),
            (("--dry_run", "0"), "`--dry_run` must be at least 1"),
            (("--estimate", "a100", "--projection", "mine"), "Say `--projection_type`"),
        ],
    )
    def test_what_is_refused(self, train_rtd, tmp_path, arguments, message):
        assert message in self.failure(train_rtd, *arguments, "--output_dir", tmp_path / "o")

    def test_dry_run_leaves_nothing(self, train_rtd, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shown = train_rtd("--dry_run", 2, "--per_device_train_batch_size", 4, "--use_peft", "--anchors", "beside")
        assert "Dry run: random weights" in shown and "2 steps of 1 x 4 triplets ran" in shown
        assert "nothing is saved" in shown and list(tmp_path.iterdir()) == []

    def test_a_projection_of_another_kind_is_refused(self, train_rtd, tmp_path):
        message = self.failure(train_rtd, "--projection_type", "searle", "--output_dir", tmp_path / "o")
        assert "is of the kind `lincir`, not `searle`" in message


def test_published_sizes(utils):
    """Those of the other list, which stands beside the tests of true configurations."""
    names = {"b32": "openai-b32", "b16": "openai-b16", "l14": "openai-l14", "h14": "laion-h14"}
    names |= {"bigg14": "laion-bigg14", "metaclip_l14": "metaclip-l14", "metaclip_h14": "metaclip-h14"}
    clips = utils("clips")
    assert set(clips.SIZES) == set(names)
    from backbone_models import TOWERS

    for size, name in names.items():
        found, vision = clips.known_config(size)
        wanted = text_config(name)
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim"):
            assert getattr(found, key) == getattr(wanted, key), (size, key)
        assert (found.hidden_act, found.vocab_size) == (wanted.hidden_act, wanted.vocab_size)
        assert vision == TOWERS[name].vision["hidden_size"]
        assert clips.size_of(TOWERS[name].hub_id) == size


def test_launches_are_read(utils, tmp_path):
    launches = utils("launches")
    folder = EXAMPLES / "accelerate_configs"
    found = {path.stem: launches.read_launch(path) for path in folder.glob("*.yaml")}
    assert found["ddp_4xa100"] == launches.Launch(4, "ddp", "bf16")
    assert found["fsdp2_8xh100"] == launches.Launch(8, "fsdp2", "bf16")
    assert found["deepspeed_zero3"] == launches.Launch(4, "zero3", "bf16")
    assert found["cpu"] == launches.Launch(1, "ddp", None)
    (tmp_path / "other.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match="no `distributed_type`"):
        launches.read_launch(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("distributed_type: MEGATRON_LM\n")
    with pytest.raises(ValueError, match="MEGATRON_LM is not counted"):
        launches.read_launch(tmp_path / "other.yaml")


def test_steps_of_a_run(utils, tmp_path):
    estimates = utils("estimates")
    assert estimates.steps_of(arguments(tmp_path, max_steps=70), None, 4) == 70
    epochs = arguments(tmp_path, max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2)
    assert estimates.steps_of(epochs, 1000, 4) == 3 * (1000 // (12 * 4 * 2))
    assert estimates.steps_of(epochs, None, 4) is None
