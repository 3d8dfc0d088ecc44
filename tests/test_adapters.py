"""Adapters that act, or an error: the classes and versions they cross, and what else makes a dead one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import tiny_text_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from test_hub import OLD_TRANSFORMERS, old_transformers  # noqa: F401 (a fixture)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from rtd_hf import CLIPTextModelForRTD, export_text_encoder
from rtd_hf.adapters import check_adapters, load_adapter


TEXTS = ["a photo of a dog", "is red and has a big cat"]
CLASSES = {"bare": CLIPTextModel, "projection": CLIPTextModelWithProjection, "ours": CLIPTextModelForRTD}


def text_model(kind):
    """The same weights in any of the classes."""
    if kind != "bare":
        return tiny_text_model(CLASSES[kind])
    whole = tiny_text_model()
    model = CLIPTextModel(whole.config)
    model.load_state_dict(whole.text_model.state_dict(), strict=True)
    return model.eval()


def trained(model, **options):
    from peft import LoraConfig, get_peft_model

    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], **options}
    model = get_peft_model(model, LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def embed(model):
    with torch.no_grad():
        output = model(**tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt"))
    return output.pooler_output if "text_embeds" not in output else output.text_embeds


@pytest.fixture
def adapter(tmp_path):
    """An adapter of the class with projection, and the embeddings it gives."""
    model = trained(text_model("projection"))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", embed(model)


def rewrite(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


# --------------------------------------------------------------------------------------------------------- the matrix
@pytest.mark.parametrize("loaded", CLASSES)
@pytest.mark.parametrize("saved", CLASSES)
def test_it_is_active_where_the_names_agree_and_refused_elsewhere(saved, loaded, tmp_path):
    source, target = trained(text_model(saved)), text_model(loaded)
    source.save_pretrained(tmp_path)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    if (saved == "bare") == (loaded == "bare"):
        found = load_adapter(tmp_path, target)
        assert embed(found).equal(embed(source))
        assert (embed(found) - embed(text_model(loaded))).abs().max() > 0.1
        assert not found.training
        return
    from peft import PeftModel

    with pytest.warns(UserWarning, match="missing adapter keys"):  # all that PEFT says
        silent = PeftModel.from_pretrained(text_model(loaded), tmp_path)
    assert embed(silent.eval()).equal(embed(text_model(loaded)))
    with pytest.raises(ValueError, match=r"lacks 8 weights, such as `\S+lora_A\S+` and has unknown 8 weights, .*dead"):
        load_adapter(tmp_path, target)
    after = target.state_dict()  # nothing of the attempt stays
    assert after.keys() == before.keys() and all(after[name].equal(before[name]) for name in before)


READER = """
import json, sys
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import CLIPTextModel, CLIPTextModelWithProjection

folder, adapters, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
classes = {"bare": CLIPTextModel, "projection": CLIPTextModelWithProjection}
ids = torch.tensor(json.loads(sys.argv[4]))
active, embeds = {}, {}
for name in adapters:
    for kind, cls in classes.items():
        model = PeftModel.from_pretrained(cls.from_pretrained(folder), f"{out}/{name}").eval()
        layers = [value for key, value in model.named_parameters() if "lora_B" in key]
        active[f"{name} on {kind}"] = all(bool(value.any()) for value in layers)
for kind, cls in classes.items():
    model = get_peft_model(cls.from_pretrained(folder), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for key, value in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.5)
    model.save_pretrained(f"{out}/old-{kind}")
    with torch.no_grad():
        output = model.eval()(ids)
    embeds[kind] = (output.pooler_output if kind == "bare" else output.text_embeds).tolist()
print(json.dumps({"version": transformers.__version__, "active": active, "embeds": embeds}))
"""


@pytest.mark.slow
def test_versions_cross_where_the_names_agree(old_transformers, tmp_path):  # noqa: F811 (the fixture)
    model, tokenizer = text_model("projection"), tiny_tokenizer()
    folder = export_text_encoder(model, tmp_path / "base", tokenizer=tokenizer)
    for kind in ("bare", "projection"):
        trained(text_model(kind)).save_pretrained(tmp_path / kind)
    ids = tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    arguments = [str(folder), json.dumps(["bare", "projection"]), str(tmp_path), json.dumps(ids.tolist())]
    environment = {**os.environ, "PYTHONPATH": str(old_transformers)}
    done = subprocess.run(
        [sys.executable, "-c", READER, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read["version"] == OLD_TRANSFORMERS["transformers"]
    # An adapter of 5.x reaches 4.57 from the class with projection only.
    assert read["active"] == {
        **{f"bare on {kind}": False for kind in ("bare", "projection")},
        **{f"projection on {kind}": True for kind in ("bare", "projection")},
    }
    # Those of 4.57 have `text_model.` in their names, whatever they were trained on.
    for saved in ("bare", "projection"):
        with pytest.raises(ValueError, match=r"lacks 8 weights"):
            load_adapter(tmp_path / f"old-{saved}", text_model("bare"))
        for loaded in ("projection", "ours"):
            found = load_adapter(tmp_path / f"old-{saved}", text_model(loaded))
            with torch.no_grad():
                output = found(ids) if loaded == "projection" else found(input_ids=ids)
                expected = torch.tensor(read["embeds"][saved])
                if saved == "bare":
                    expected = found.text_projection(expected)
            torch.testing.assert_close(output.text_embeds, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- what is refused
def test_one_dead_layer_is_one_too_many(adapter):
    folder, _ = adapter
    name = "base_model.model.text_model.encoder.layers.1.self_attn.v_proj.lora_B.weight"
    rewrite(folder, lambda tensors: {**tensors, name: torch.zeros_like(tensors[name])})
    model = text_model("projection")
    with pytest.raises(ValueError, match=r"dead in 1 of 4 layers: `\S+layers\.1\S+v_proj\.lora_B\S+` is all zero"):
        load_adapter(folder, model)
    assert embed(model).equal(embed(text_model("projection")))


def test_an_untrained_adapter_is_dead():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(text_model("ours"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="The adapter `model` is dead in 2 of 2 layers"):
        check_adapters(model)
    check_adapters(trained(text_model("ours")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {key: value for key, value in tensors.items() if "layers.0" in key}, r"lacks 4 weights"),
        (lambda tensors: {**tensors, "base_model.model.text_model.x.lora_A.weight": torch.ones(2, 2)}, r"unknown 1"),
        (
            lambda tensors: {key: torch.ones(3, 5) for key in tensors},
            r"does not fit the text encoder: .*size mismatch",
        ),
    ],
    ids=["missing", "unexpected", "shapes"],
)
def test_what_does_not_fit_is_refused(adapter, change, message):
    folder, _ = adapter
    rewrite(folder, change)
    with pytest.raises(ValueError, match=f"(?s)`{folder}` .*{message}"):
        load_adapter(folder, text_model("ours"))


# ------------------------------------------------------------------------------------------------------ the base model
def record(folder, **entries):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_the_base_is_found_by_the_adapter_itself(adapter, tmp_path):
    folder, expected = adapter
    base = export_text_encoder(text_model("ours"), tmp_path / "base")
    record(folder, base_model_name_or_path=str(base))
    found = load_adapter(folder)
    assert isinstance(found.get_base_model(), CLIPTextModelForRTD)
    assert embed(found).equal(expected)
    record(folder, base_model_name_or_path=None)
    assert embed(load_adapter(folder, base)).equal(expected)
    with pytest.raises(ValueError, match="names no base model. Give the text encoder"):
        load_adapter(folder)


def test_the_recorded_revision_is_asked_for(adapter, monkeypatch):
    folder, expected = adapter
    record(folder, base_model_name_or_path="somebody/clip", revision="abc123")
    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options))
        return text_model("ours")

    monkeypatch.setattr("rtd_hf.adapters.AutoTextModelForRTD.from_pretrained", from_pretrained)
    assert embed(load_adapter(folder)).equal(expected)
    load_adapter(folder, base_revision="def456")
    load_adapter(folder, "somebody/clip")
    assert asked == [("somebody/clip", {"revision": revision}) for revision in ("abc123", "def456", "abc123")]


def test_another_base_on_the_hub_is_refused(adapter):
    folder, expected = adapter
    record(folder, base_model_name_or_path="somebody/clip")
    with pytest.raises(ValueError, match="was trained on `somebody/clip`, but `model` is `else/clip`"):
        load_adapter(folder, "else/clip")
    model = text_model("ours")
    model.name_or_path = "else/clip"
    with pytest.raises(ValueError, match="was trained on `somebody/clip`, but `model` is `else/clip`"):
        load_adapter(folder, model)
    model.name_or_path = "somebody/clip"
    assert embed(load_adapter(folder, model)).equal(expected)


def test_what_an_export_writes_beside_the_weights_loads(tmp_path):
    model = trained(text_model("ours"))
    folder = export_text_encoder(model, tmp_path / "out", base_model="somebody/clip")
    found = load_adapter(folder, text_model("ours"), subfolder="adapter")
    assert embed(found).equal(embed(model))
    torch.testing.assert_close(embed(found.merge_and_unload()), embed(model), rtol=0, atol=1e-5)


def test_it_is_trained_on(adapter):
    folder, _ = adapter
    found = load_adapter(folder, text_model("ours"), is_trainable=True)
    learning = {name for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert len(learning) == 8 and all("lora_" in name for name in learning)
    frozen = load_adapter(folder, text_model("ours"))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
