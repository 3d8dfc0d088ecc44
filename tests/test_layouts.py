"""Other forms of a text encoder: there and back bit by bit, read by the software they are for, wrong files named."""

import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_projection, tiny_text_model, tiny_tokenizer
from PIL import Image
from processes import installed_beside
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_hub import lora, old_transformers  # noqa: F401 (a fixture)
from torch import nn
from transformers import CLIPModel, CLIPProcessor, CLIPTextModelWithProjection
from world_models import random_clip, random_projection, random_retriever, save_random_clip, world_tokenizer

from rtd_hf import (
    CLIPTextModelForRTD,
    PromptTokenizer,
    SiglipTextModelForRTD,
    UnreadableImagesError,
    export_text_encoder,
)
from rtd_hf.hub import describe_modules
from rtd_hf.layouts import (
    LAYOUTS,
    Layout,
    export_layout,
    import_layout,
    load_sentence_transformer,
)
from rtd_hf.registry import RegistryError


OPEN_CLIP = {
    "open_clip_torch": "3.3.0",
    "torchvision": "0.28.0",
    "timm": "1.0.31",
    "ftfy": "6.3.1",
    "wcwidth": "0.9.4",
}
READABLE = sorted(name for name, layout in LAYOUTS.items() if layout.readable)
TEXTS = ["a photo of a dog", "a photo of $ that is red", "Green, on the left!", ""]


def text_model(*, legacy_eos=False, **options):
    """A tiny encoder such as OpenAI's package could hold: heads of width 64, `quick_gelu`."""
    options = {"hidden_size": 128, "num_attention_heads": 2, "hidden_act": "quick_gelu", **options}
    return tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos, **options)


def embed(model, texts=TEXTS):
    with torch.no_grad():
        return model(**tiny_tokenizer()(list(texts), padding=True, return_tensors="pt")).text_embeds


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A whole CLIP on disk, and its text tower after some training."""
    folder = save_random_clip(tmp_path_factory.mktemp("clip"))
    model = CLIPTextModelForRTD.from_pretrained(folder).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return folder, model


def parts_for(layout, world):
    """All that a layout takes, for the trained text tower of the offline world."""
    known = {"base": world[0], "tokenizer": world_tokenizer(), "projection": random_projection("lincir")}
    return {name: known[name] for name in layout.needs}


# -------------------------------------------------------------------------------------------------- over the registry
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_layout_says_what_it_is_and_what_it_needs(name, world, tmp_path):
    layout = LAYOUTS[name]
    assert issubclass(layout, Layout) and layout.summary and layout.__doc__
    assert {*layout.needs, *layout.takes} <= {"tokenizer", "projection", "base", "revision"}
    for part in layout.needs:
        given = {key: value for key, value in parts_for(layout, world).items() if key != part}
        with pytest.raises(ValueError, match=f"The layout `{name}` needs `{part}`"):
            export_layout(world[1], tmp_path / "out", layout=name, **given)
    if "base" in layout.needs:  # found on the Hub, perhaps
        assert "revision" in layout.takes
    for part in {"tokenizer", "projection"} - {*layout.needs, *layout.takes}:
        with pytest.raises(ValueError, match=f"The layout `{name}` has no place for `{part}`"):
            export_layout(world[1], tmp_path / "out", layout=name, **parts_for(layout, world), **{part: object()})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_no_layout_writes_what_it_cannot_hold(name, world, tmp_path):
    from backbone_models import tiny_backbone

    parts = parts_for(LAYOUTS[name], world)
    with pytest.raises(ValueError, match=f"`{name}` holds 'clip_text_model', but `model` is a 'siglip_text_model'"):
        export_layout(tiny_backbone(SiglipTextModelForRTD), tmp_path / "out", layout=name, **parts)
    broken = text_model()
    with torch.no_grad():
        broken.text_projection.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite in 1 of"):
        export_layout(broken, tmp_path / "out", layout=name, **parts)
    with pytest.raises(TypeError, match="must be a text encoder with its projection"):
        export_layout(nn.Linear(2, 2), tmp_path / "out", layout=name, **parts)
    assert not (tmp_path / "out").exists()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds 1 entries that rtd_hf did not write"):
        export_layout(world[1], taken, layout=name, **parts)


@pytest.mark.parametrize("legacy_eos", [False, True], ids=["eos", "legacy-eos"])
@pytest.mark.parametrize("name", READABLE)
def test_there_and_back_is_the_same_encoder(name, legacy_eos, tmp_path):
    model = text_model(legacy_eos=legacy_eos)
    base = model.to_stock()
    base.save_pretrained(tmp_path / "base")
    file = export_layout(model, tmp_path / "out", layout=name)
    assert file.is_file() and file.parent == tmp_path / "out"
    for options in ({"base": tmp_path / "base"}, {"base": tmp_path / "base", "layout": name}):
        found, report = import_layout(file, output_loading_info=True, **options)
        assert type(found) is CLIPTextModelForRTD and not found.training
        assert same_weights(found, model) and embed(found).equal(embed(model))
        assert str(file) in str(report)
    assert found.config.eos_token_id == model.config.eos_token_id
    # Without a base: by the shapes, and by what the file or the caller says.
    again = import_layout(file, hidden_act="quick_gelu")
    assert same_weights(again, model)
    torch.testing.assert_close(embed(again), embed(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", READABLE)
def test_adapters_are_merged_and_half_precision_stays(name, tmp_path):
    model = lora(text_model())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file = export_layout(model, tmp_path / "out", layout=name)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    found = import_layout(file, hidden_act="quick_gelu")
    assert (embed(found) - embed(text_model())).abs().max() > 0.1
    torch.testing.assert_close(embed(found), embed(model), rtol=0, atol=1e-5)

    half = text_model().to(torch.bfloat16)
    found = import_layout(export_layout(half, tmp_path / "out", layout=name), hidden_act="quick_gelu")
    if name == "rtd":  # the published scripts know float32 only
        assert {value.dtype for value in found.state_dict().values()} == {torch.float32}
        found = found.to(torch.bfloat16)
    assert same_weights(found, half)


@pytest.mark.parametrize("name", ["clip_model", "sentence_transformers"])
def test_the_base_is_taken_at_its_revision(name, world, tmp_path, monkeypatch):
    import transformers

    asked, original = [], transformers.PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls, path, *args, **kwargs):
        asked.append(kwargs.get("revision"))
        return original(cls, path, *args, **kwargs)

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
    export_layout(world[1], tmp_path, layout=name, revision="abc123", **parts_for(LAYOUTS[name], world))
    assert asked and set(asked) == {"abc123"}


@pytest.mark.parametrize("name", READABLE)
def test_an_interrupted_export_leaves_the_old_file(name, tmp_path, monkeypatch):
    model = text_model()
    file = export_layout(model, tmp_path, layout=name)
    old = file.read_bytes()

    def half_of_it(self, tensors, file, config):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(LAYOUTS[name], "save", half_of_it)
    with pytest.raises(KeyboardInterrupt):
        export_layout(model, tmp_path, layout=name)
    assert file.read_bytes() == old
    assert {entry.name for entry in tmp_path.iterdir()} == {file.name, ".rtd_hf.json"}


# ------------------------------------------------------------------------------------- open_clip and OpenAI, an oracle
class Block(nn.Module):
    def __init__(self, width, heads, hidden, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self.activation = activation

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    """CLIP's text tower as the paper's figure 3 multiplies, out of torch's own attention, with open_clip's names."""

    def __init__(self, config):
        super().__init__()
        width, length = config.hidden_size, config.max_position_embeddings
        activation = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}[config.hidden_act]
        blocks = [
            Block(width, config.num_attention_heads, config.intermediate_size, activation)
            for _ in range(config.num_hidden_layers)
        ]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.projection_dim))

    def forward(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.text_projection


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("name", ["open_clip", "open_clip_custom", "openai"])
def test_the_other_softwares_tower_gives_the_same_embeddings(name, activation, tmp_path):
    model = text_model(hidden_act=activation)
    if name == "openai" and activation == "gelu":
        with pytest.raises(ValueError, match="OpenAI's package runs every text tower with `hidden_act` 'quick_gelu'"):
            export_layout(model, tmp_path, layout=name)
        return
    file = export_layout(model, tmp_path, layout=name)
    tensors = torch.load(file, weights_only=True) if file.suffix == ".pt" else load_file(file)
    prefix = "text." if name == "open_clip_custom" else ""
    assert all(key.startswith(prefix) for key in tensors)
    tower = Tower(model.config).eval()
    tower.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items()}, strict=True)
    ids = tiny_tokenizer()(TEXTS, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    ids[ids == tiny_tokenizer().pad_token_id] = tiny_tokenizer().eos_token_id
    with torch.no_grad():
        torch.testing.assert_close(tower(ids), embed(model), rtol=0, atol=1e-5)
    # And from there: a file as the other software writes it, with all that lies in it besides.
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(1.1)
    others = {
        f"{prefix}attn_mask": torch.zeros(77, 77),
        "visual.conv1.weight": torch.ones(2),
        "logit_scale": torch.ones(()),
    }
    state = {**{f"module.{prefix}{key}": value for key, value in tower.state_dict().items()}}
    state |= {f"module.{key}": value for key, value in others.items()}
    torch.save({"epoch": 7, "name": "run", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_7.pt")
    found, report = import_layout(tmp_path / "epoch_7.pt", hidden_act=activation, output_loading_info=True)
    assert {"epoch", "name", "optimizer", *others} == set(report.dropped)
    with torch.no_grad():
        torch.testing.assert_close(embed(found), tower(ids), rtol=0, atol=1e-5)


def whole_state(model, prefix=""):
    """A whole model in open_clip's naming with another text tower."""
    other = LAYOUTS["open_clip_custom" if prefix else "open_clip"]().from_stock(
        {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    )
    return {**other, "visual.proj": torch.randn(4, 4), "logit_scale": torch.tensor(2.5)}


@pytest.mark.parametrize("name", ["open_clip", "open_clip_custom", "openai"])
def test_a_whole_model_gets_the_text_tower_and_keeps_the_rest(name, tmp_path):
    model = text_model()
    whole = whole_state(model, prefix="text." if name == "open_clip_custom" else "")
    whole |= {"input_resolution": torch.tensor(224)} if name == "openai" else {}
    base = tmp_path / "base" / ("clip.pt" if name == "openai" else "open_clip_model.safetensors")
    base.parent.mkdir()
    torch.save(whole, base) if name == "openai" else save_file(whole, base)
    file = export_layout(model, tmp_path / "out", layout=name, base=base)
    tensors = torch.load(file, weights_only=True) if name == "openai" else load_file(file)
    assert tensors.keys() == whole.keys()
    for key in ("visual.proj", "logit_scale", "input_resolution"):
        assert key not in whole or tensors[key].equal(whole[key])
    found, report = import_layout(file, layout=name, hidden_act="quick_gelu", output_loading_info=True)
    assert same_weights(found, model)
    assert {"visual.proj", "logit_scale"} <= set(report.dropped)

    if name == "openai":
        return
    text = {"width": 128, "heads": 2}
    config = base.with_name("open_clip_config.json")
    config.write_text(json.dumps({"model_cfg": {"embed_dim": 24, "quick_gelu": True, "text_cfg": text}}))
    file = export_layout(model, tmp_path / "out", layout=name, base=base.parent)
    assert (file.parent / config.name).read_text() == config.read_text()
    assert import_layout(file).config.hidden_act == "quick_gelu"
    config.write_text(json.dumps({"model_cfg": {"embed_dim": 24, "text_cfg": text}}))
    with pytest.raises(ValueError, match="with `hidden_act` 'gelu', but `model` has 'quick_gelu'"):
        export_layout(model, tmp_path / "out", layout=name, base=base.parent)


def test_a_whole_model_of_another_size_or_naming_is_refused(tmp_path):
    base = tmp_path / "base.safetensors"
    save_file(whole_state(text_model(intermediate_size=32)), base)
    with pytest.raises(ValueError, match=r"another text tower than `model`: 6 tensors differ, such as `\S+c_fc"):
        export_layout(text_model(), tmp_path / "out", layout="open_clip", base=base)
    with pytest.raises(ValueError, match="`base` must be a whole model in this layout, but .* has `ln_final.bias`"):
        export_layout(text_model(), tmp_path / "out", layout="open_clip_custom", base=base)
    (tmp_path / "empty").mkdir()
    for missing, message in ((tmp_path / "empty", "has none of open_clip_model"), (tmp_path / "no", "does not exist")):
        with pytest.raises(FileNotFoundError, match=message):
            export_layout(text_model(), tmp_path / "out", layout="open_clip", base=missing)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (1e300, "`model_cfg` in .*open_clip_config.json` must be an object"),
        (["text_cfg"], "`model_cfg` in .*open_clip_config.json` must be an object"),
        ({"text_cfg": "heads"}, "`model_cfg` in .*open_clip_config.json` must be an object"),
        ({"text_cfg": {}, "quick_gelu": "false"}, "`quick_gelu` in .*open_clip_config.json` must be true or false"),
        ({"text_cfg": {"heads": True}}, "attention heads in .*open_clip_config.json` must be .*, got True"),
        ({"text_cfg": {"heads": 0}}, "attention heads in .*open_clip_config.json` must be .*, got 0"),
    ],
)
def test_a_configuration_of_open_clips_that_is_none_is_named(tmp_path, described, message):
    model = text_model()
    base = tmp_path / "open_clip_model.safetensors"
    save_file(whole_state(model), base)
    base.with_name("open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    with pytest.raises(ValueError, match=message):
        import_layout(base, hidden_act="gelu")
    with pytest.raises(ValueError, match=message):
        export_layout(model, tmp_path / "out", layout="open_clip", base=base)


def test_a_header_with_another_number_of_heads_than_a_number_is_named(tmp_path):
    file = export_layout(text_model(), tmp_path, layout="open_clip")
    save_file(load_file(file), file, metadata={"hidden_act": "gelu", "num_attention_heads": "../.."})
    with pytest.raises(ValueError, match=r"attention heads in .*text_tower.safetensors` must be .*, got '\.\./\.\.'"):
        import_layout(file)


def test_the_file_says_what_the_names_do_not(tmp_path):
    model = text_model(num_attention_heads=4, hidden_act="gelu")
    file = export_layout(model, tmp_path, layout="open_clip")
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "hidden_act": "gelu", "num_attention_heads": "4"}
    with pytest.raises(ValueError, match="`hidden_act` is 'quick_gelu', but .* is of an encoder with 'gelu'"):
        import_layout(file, hidden_act="quick_gelu")
    found = import_layout(file)
    assert found.config.num_attention_heads == 4 and embed(found).equal(embed(model))
    with pytest.raises(
        ValueError, match="`hidden_act` 'quick_gelu' and heads of width 64, but `model` has 'gelu' and 4"
    ):
        export_layout(model, tmp_path, layout="openai")
    with pytest.raises(ValueError, match="`layer_norm_eps` 1e-05 .* but `model` has 0.01"):
        export_layout(text_model(layer_norm_eps=0.01), tmp_path, layout="open_clip")


def test_openais_mixed_precision_is_widened(tmp_path):
    model = text_model()
    file = export_layout(model, tmp_path, layout="openai")
    tensors = torch.load(file, weights_only=True)
    mixed = {key: value.half() if "resblocks" in key else value for key, value in tensors.items()}
    torch.save({**mixed, "input_resolution": torch.tensor(224)}, file)
    found, report = import_layout(file, layout="openai", output_loading_info=True)  # which needs no base
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}
    assert "weights of float16 and float32 became float32" in report.notes
    torch.testing.assert_close(embed(found), embed(model), rtol=0, atol=2e-2)


# -------------------------------------------------------------------------------------------------------- wrong files
class Malice:
    def __reduce__(self):
        return (Path.touch, (Path("malice-was-here"),))


def stock_state(**options):
    return {key: value.clone() for key, value in text_model(**options).state_dict().items()}


WRONG = {
    "adapter": (
        {"base_model.model.text_model.x.lora_A.weight": torch.ones(2)},
        "looks like a LoRA adapter.*load_adap",
    ),
    "projection": ({"layers.0.weight": torch.ones(2)}, "looks like an image-to-word projection.*load_original"),
    "vision": ({"visual.proj": torch.ones(2)}, "looks like a vision tower alone .it has `visual.proj`"),
    "timm": ({"visual.trunk.x": torch.ones(2)}, "looks like open_clip with a vision tower of timm"),
    "bert": (
        {"text.transformer.encoder.layer.0.x": torch.ones(2)},
        "looks like open_clip with a BERT-like text tower",
    ),
    "siglip": ({"text.text_projection.weight": torch.ones(2)}, "looks like open_clip's SigLIP"),
    "other": ({"conv": torch.ones(2)}, "looks like no checkpoint that is known here .it has `conv`"),
    "empty": ({}, "must hold tensors by name, but holds nothing"),
    "numbers": ({"epoch": 3}, "must hold tensors by name, but holds `epoch`"),
    "list": ([torch.ones(2)], "must hold tensors by name, but holds a `list`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_told_what_it_looks_like(case, tmp_path):
    content, message = WRONG[case]
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=f"`{tmp_path / 'file.pt'}` .*{message}"):
        import_layout(tmp_path / "file.pt", hidden_act="gelu")


def test_another_layout_than_the_file_has_is_refused(tmp_path):
    for name, asked in (("open_clip", "rtd"), ("rtd", "open_clip"), ("open_clip_custom", "openai")):
        file = export_layout(text_model(), tmp_path / name, layout=name)
        with pytest.raises(ValueError, match=rf"`layout` is `{asked}`, but `{file}` looks like `{name}` \(it has `"):
            import_layout(file, layout=asked)
    with pytest.raises(ValueError, match="The layout `onnx` is written only. Readable are open_clip, "):
        import_layout(file, layout="onnx")
    with pytest.raises(RegistryError, match="Unknown layout `open-clip`. Did you mean `open_clip`"):
        import_layout(file, layout="open-clip")
    with pytest.raises(RegistryError, match="Unknown layout"):
        export_layout(text_model(), tmp_path / "out", layout="clip")


@pytest.mark.parametrize("kind", ["plain", "torch", "wrapped"])
def test_pickled_code_is_never_run(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.pt"
    if kind == "plain":
        file.write_bytes(pickle.dumps(Malice()))
    else:
        content = {"state_dict": {**stock_state(), "x": Malice()}} if kind == "wrapped" else Malice()
        torch.save(content, file)
    with pytest.raises(ValueError, match="was not opened|Nothing of it was run"):
        import_layout(file, hidden_act="gelu")
    assert not Path("malice-was-here").exists()


def test_what_cannot_be_opened_says_so(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "jit.pt")
    with pytest.raises(ValueError, match="TorchScript archive, such as OpenAI's CLIP itself.*a text encoder: weights"):
        import_layout(tmp_path / "jit.pt")
    (tmp_path / "cut.pt").write_bytes(export_layout(text_model(), tmp_path / "a", layout="rtd").read_bytes()[:9000])
    with pytest.raises(ValueError, match="cut short or damaged"):
        import_layout(tmp_path / "cut.pt")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="is an HTML page"):
        import_layout(tmp_path / "page.pt")
    with pytest.raises(FileNotFoundError, match="`path` .* does not exist"):
        import_layout(tmp_path / "nothing.pt")
    text_model().save_pretrained(tmp_path / "stock")
    with pytest.raises(IsADirectoryError, match="transformers' own layout already: .*AutoTextModelForRTD"):
        import_layout(tmp_path / "stock")
    with pytest.raises(IsADirectoryError, match="Name the file in it"):
        import_layout(tmp_path)


BLOCK = "transformer.resblocks"
CHANGES = {
    "lost": (lambda state: state.pop(f"{BLOCK}.1.ln_1.bias"), r"1 tensors differ.*layer_norm1\.bias` .missing in the"),
    "layers": (lambda state: [state.pop(key) for key in [*state] if f"{BLOCK}.1." in key], "differ.*missing in the"),
    "strange": (lambda state: state.update({f"{BLOCK}.0.ls_1.gamma": torch.ones(2)}), "1 tensors that a CLIP"),
    "strange outside": (lambda state: state.update({"cls_emb": torch.ones(2)}), "1 tensors that a CLIP.*`cls_emb`"),
    "linear projection": (lambda state: state.update({"text_projection": torch.ones(24)}), "not: `text_projection`"),
    "nan": (lambda state: state["ln_final.bias"].fill_(torch.nan), "not finite in 1 of 37 weights, first in"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_damaged_state_dict_is_named(case, tmp_path):
    change, message = CHANGES[case]
    text_model().save_pretrained(tmp_path / "base")
    file = export_layout(text_model(), tmp_path / "out", layout="open_clip")
    state = load_file(file)
    change(state)
    save_file(state, file)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        import_layout(file, base=tmp_path / "base")


def test_without_a_base_a_lost_tensor_is_named_too(tmp_path):
    for lost in ("token_embedding.weight", "text_projection", "transformer.resblocks.0.mlp.c_fc.weight"):
        file = export_layout(text_model(), tmp_path, layout="open_clip")
        save_file({key: value for key, value in load_file(file).items() if key != lost}, file)
        with pytest.raises(ValueError, match=f"`{file}` .*missing|`{file}` lacks"):
            import_layout(file, hidden_act="gelu")


def test_the_configuration_is_never_guessed(tmp_path):
    model = text_model()
    file = export_layout(model, tmp_path / "out", layout="rtd")
    with pytest.raises(ValueError, match="does not say which activation.*`base`.*or `hidden_act`"):
        import_layout(file)
    text_model(intermediate_size=32).save_pretrained(tmp_path / "narrow")
    with pytest.raises(
        ValueError, match=r"does not fit the text encoder of `base` .* 6 tensors differ, such as `\S+fc1"
    ):
        import_layout(file, base=tmp_path / "narrow")
    text_model(hidden_act="gelu").save_pretrained(tmp_path / "gelu")
    named = export_layout(model, tmp_path / "out", layout="open_clip")
    with pytest.raises(ValueError, match="of an encoder with `hidden_act` 'quick_gelu', but `base` .* has 'gelu'"):
        import_layout(named, base=tmp_path / "gelu")
    from backbone_models import tiny_backbone

    tiny_backbone(SiglipTextModelForRTD).save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="`base` must be a CLIP, but .* is of `model_type` 'siglip_text_model'"):
        import_layout(file, base=tmp_path / "siglip")


def test_an_old_rtd_checkpoint_is_read(tmp_path):
    model = text_model()
    state = {**stock_state(), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save({"epoch": 2000, "CLIPTextModelWithProjection": state}, tmp_path / "text_encoder_000002000.pt")
    found, report = import_layout(
        tmp_path / "text_encoder_000002000.pt", hidden_act="quick_gelu", output_loading_info=True
    )
    assert same_weights(found, model)
    assert report.layout == "rtd" and report.dropped == ("epoch", "text_model.embeddings.position_ids")
    torch.save(random_clip().state_dict(), tmp_path / "clip.pt")  # a whole one, bare
    found = import_layout(tmp_path / "clip.pt", hidden_act="quick_gelu")
    assert found.text_projection.weight.equal(random_clip().text_projection.weight)
    written = torch.load(export_layout(model, tmp_path / "out", layout="rtd"), weights_only=True)
    assert written.keys() == {"epoch", "CLIPTextModelWithProjection"}
    CLIPTextModelWithProjection(model.config).load_state_dict(written["CLIPTextModelWithProjection"], strict=True)


# --------------------------------------------------------------------------------------------------- a whole CLIPModel
def test_a_complete_clip_holds_the_text_tower_and_all_else(world, tmp_path):
    base, model = world
    folder = export_layout(model, tmp_path, layout="clip_model", base=base, tokenizer=world_tokenizer())
    whole, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    text = model.state_dict()
    for name, value in whole.state_dict().items():
        assert value.equal(text[name] if name in text else random_clip().state_dict()[name]), name
    processor = CLIPProcessor.from_pretrained(folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8))
    inputs = processor(text=["a red star"], images=[picture], return_tensors="pt")
    with torch.no_grad():
        output = whole.eval()(**inputs)
        expected = model(input_ids=inputs["input_ids"]).text_embeds
        image = random_clip().get_image_features(inputs["pixel_values"]).pooler_output
    assert output.text_embeds.equal(F.normalize(expected, dim=-1))
    torch.testing.assert_close(output.image_embeds, F.normalize(image, dim=-1))
    assert same_weights(CLIPTextModelForRTD.from_pretrained(folder), model)  # hence it is its own import
    for other in (
        text_model(),
        CLIPTextModelForRTD(type(model.config)(**{**model.config.to_dict(), "hidden_act": "gelu"})),
    ):
        with pytest.raises(ValueError, match="`base` .* has another text tower than `model`: they differ in `"):
            export_layout(other.eval(), tmp_path, layout="clip_model", base=base, tokenizer=world_tokenizer())
    model.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="`base` must be a whole CLIP, but .* is of `model_type` 'clip_text_model'"):
        export_layout(model, tmp_path, layout="clip_model", base=tmp_path / "text", tokenizer=world_tokenizer())


CLIP_READER = """
import json, sys
import torch, transformers
from transformers import CLIPModel, CLIPProcessor

folder = sys.argv[1]
model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
inputs = CLIPProcessor.from_pretrained(folder)(text=["a red star"], return_tensors="pt", padding=True)
with torch.no_grad():
    embeds = model.eval().get_text_features(**inputs).tolist()
print(json.dumps({"version": transformers.__version__, "embeds": embeds, "missing": sorted(info["missing_keys"])}))
"""


@pytest.mark.slow
def test_transformers_4_reads_the_complete_clip(old_transformers, world, tmp_path):  # noqa: F811 (the fixture)
    base, model = world
    folder = export_layout(model, tmp_path, layout="clip_model", base=base, tokenizer=world_tokenizer())
    read = json.loads(run_apart(CLIP_READER, folder, path=old_transformers))
    assert read["version"].startswith("4.57") and read["missing"] == []
    ids = world_tokenizer()(["a red star"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=ids).text_embeds
    torch.testing.assert_close(torch.tensor(read["embeds"]), expected, rtol=0, atol=1e-5)


def run_apart(code, *arguments, path):
    """The last line that a program of another environment prints."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


# --------------------------------------------------------------------------------------------------------------- ONNX
@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["eos", "legacy-eos"])
def graph(request, tmp_path_factory):
    import onnxruntime

    model = tiny_text_model(CLIPTextModelForRTD, legacy_eos=request.param)
    file = export_layout(
        model,
        tmp_path_factory.mktemp("onnx"),
        layout="onnx",
        tokenizer=tiny_tokenizer(),
        projection=tiny_projection(),
    )
    return model, file, onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("template", "captions"),
    [
        ("a photo of $ that {caption}", ["is red", "has a big dog and a car on the grass", ""]),
        ("a photo of $ that {caption}", ["is two"]),
        ("$ and $ with $ , {caption}", ["more", "less trees"]),
        ("a photo of $ that {caption}", ["has " + "one more house " * 40]),
    ],
    ids=["several", "one row", "three words", "cut at 77"],
)
def test_the_graph_gives_the_models_queries(graph, template, captions):
    model, _, session = graph
    batch = PromptTokenizer(tiny_tokenizer(), template).compose(captions)
    words = torch.randn(len(captions), template.count("$"), 32)
    with torch.no_grad():
        expected = model(**batch, pseudo_words=words).text_embeds
    inputs = {"input_ids": batch["input_ids"], "pseudo_words": words, "placeholder_mask": batch["placeholder_mask"]}
    (found,) = session.run(["text_embeds"], {name: value.numpy() for name, value in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
    inputs["pseudo_words"] = words.flip(-1)
    (other,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert np.abs(other - found).max() > 1e-2


def test_the_graph_takes_plain_texts_too_and_says_what_goes_in(graph):
    model, file, session = graph
    rows = tiny_tokenizer()(TEXTS, padding=True, return_tensors="np")["input_ids"]
    words, none = np.full((len(TEXTS), 1, 32), 9.0, dtype=np.float32), np.zeros(rows.shape, dtype=bool)
    (found,) = session.run(None, {"input_ids": rows, "pseudo_words": words, "placeholder_mask": none})
    torch.testing.assert_close(torch.from_numpy(found), embed(model), rtol=0, atol=1e-5)
    facts = json.loads((file.parent / "onnx_inputs.json").read_text())
    assert set(facts["inputs"]) == {entry.name for entry in session.get_inputs()}
    assert facts["prompt_template"] == "a photo of $ that {caption}"
    assert (facts["hidden_size"], facts["projection_dim"], facts["max_length"]) == (32, 24, 77)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(file.parent)(TEXTS)["input_ids"] == tiny_tokenizer()(TEXTS)["input_ids"]


@pytest.mark.slow
def test_a_large_graph_keeps_its_weights_beside_it(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr("rtd_hf.layouts.onnx._LARGEST_FILE", 0)
    model = tiny_text_model(CLIPTextModelForRTD)
    file = export_layout(model, tmp_path, layout="onnx")
    small, weights = file.stat().st_size, 4 * model.num_parameters()
    assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) - small > 0.9 * weights
    rows = tiny_tokenizer()(TEXTS, padding=True, return_tensors="np")["input_ids"]
    words, none = np.zeros((len(TEXTS), 1, 32), dtype=np.float32), np.zeros(rows.shape, dtype=bool)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": rows, "pseudo_words": words, "placeholder_mask": none})
    torch.testing.assert_close(torch.from_numpy(found), embed(model), rtol=0, atol=1e-5)


def test_missing_packages_are_named_with_the_line_that_installs_them(world, tmp_path, monkeypatch):
    for name, package in (("onnx", "onnxscript"), ("sentence_transformers", "sentence_transformers")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=rf"The layout `{name}` needs .*Install .*pip install 'rtd_hf\["):
                export_layout(world[1], tmp_path / "out", layout=name, **parts_for(LAYOUTS[name], world))


# ---------------------------------------------------------------------------------------------- sentence-transformers
@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    pictures = [Image.fromarray(rng.integers(0, 255, (50, 60 + i, 3), dtype=np.uint8)) for i in range(3)]
    pictures[0].save(folder / "first.png")
    return pictures, folder / "first.png"


@pytest.fixture(scope="module", params=["lincir", "context_i2w", "fti4cir"])
def published(request, world, tmp_path_factory):
    """A repository for sentence-transformers, and the retriever that it is to equal."""
    base, model = world
    retriever = random_retriever(request.param)
    retriever.text_encoder.load_state_dict(model.state_dict())
    options = {"base": base, "tokenizer": retriever.tokenizer, "projection": retriever.projection}
    folder = tmp_path_factory.mktemp("published") / request.param
    return export_layout(model, folder, layout="sentence_transformers", **options), retriever


def test_encode_gives_the_retrievers_queries_images_and_texts(published, pictures):
    from sentence_transformers import SentenceTransformer

    folder, retriever = published
    (first, second, third), path = pictures
    batch = [
        {"image": first, "text": "is red"},
        "a red star",
        second,
        {"image": str(path), "text": "is blue and has a longer text with many more words than the other"},
        {"image": third},
        {"text": "a blue circle"},
        str(path),
    ]
    queries = retriever.encode_queries(
        retriever.embed_references([first, first]), [batch[0]["text"], batch[3]["text"]]
    )
    texts, images = (
        retriever.encode_texts([batch[1], "a blue circle"]),
        retriever.encode_images([second, third, first]),
    )
    expected = torch.stack([queries[0], texts[0], images[0], queries[1], images[1], texts[1], images[2]])
    models = (
        SentenceTransformer(str(folder), device="cpu", trust_remote_code=True),
        load_sentence_transformer(folder),
    )
    for model in models:
        for size in (1, 3, 32):
            found = model.encode(batch, batch_size=size, convert_to_tensor=True).cpu()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        one = model.encode({"image": first, "text": "is red"})
        assert one.shape == (retriever.text_encoder.projection_dim,)
        torch.testing.assert_close(torch.from_numpy(one), expected[0], rtol=0, atol=1e-5)
        assert model.similarity_fn_name == "cosine"
        assert model.max_seq_length == 77
        assert model[0].get_embedding_dimension() == expected.shape[1]


def test_the_repository_is_still_a_text_encoder_and_saves_as_it_was(published, world, tmp_path):
    folder, _ = published
    stock, info = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and same_weights(stock, world[1])
    load_sentence_transformer(folder).save(str(tmp_path / "again"))
    for file in folder.rglob("*.safetensors"):
        first, second = load_file(file), load_file(tmp_path / "again" / file.relative_to(folder))
        assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)
    assert (folder / "context_encoder").exists() == ("context_i2w" in str(folder))


def test_a_published_repository_needs_three_small_files_only(pictures, tmp_path):
    from sentence_transformers import SentenceTransformer

    from rtd_hf import ImageToWordProjection, load_cir_encoder, write_repository
    from rtd_hf.shapes import ASSETS

    encoder = CLIPTextModelForRTD.from_pretrained(ASSETS / "clip")
    folder = write_repository(
        tmp_path / "published",
        encoder,
        tokenizer=world_tokenizer(),
        image_processor=CLIPTextModelForRTD.load_image_processor(ASSETS / "clip"),
        projection=ImageToWordProjection.from_pretrained(ASSETS / "lincir"),
        metrics={},
        recipe={},
        license="mit",
        base_model="shapes",
    )
    with pytest.raises(FileNotFoundError, match="has no `config.json`"):
        describe_modules(tmp_path)
    assert json.loads((folder / "modules.json").read_text())[0]["path"] == ""
    retriever, image = load_cir_encoder(folder), pictures[0][0]
    query = retriever.encode_queries(retriever.embed_references([image]), ["is red"])
    expected = torch.cat([query, retriever.encode_texts(["a star"]), retriever.encode_images([image])])
    for model in (SentenceTransformer(str(folder), trust_remote_code=True), load_sentence_transformer(folder)):
        found = model.encode([{"image": image, "text": "is red"}, "a star", image], convert_to_tensor=True).cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_their_loader_wants_to_be_told_that_our_class_is_trusted(published):
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(published[0]), device="cpu")


def test_what_is_no_input_is_refused(published, pictures):
    model = load_sentence_transformer(published[0])
    image = pictures[0][0]
    for wrong in ({"role": "user", "content": "x"}, np.zeros(7), {"image": image, "audio": np.zeros(7)}):
        with pytest.raises(ValueError, match="(?i)support|this model encodes a text, an image, or"):
            model.encode(["a text", wrong])
    with pytest.raises(ValueError, match="`prompt` 'query: ' cannot be put before a composed query"):
        model.encode([{"image": image, "text": "is red"}], prompt="query: ")
    prompted, plain = model.encode(["star", image], prompt="a red "), model.encode(["a red star", image])
    assert np.array_equal(prompted, plain)
    with pytest.raises(UnreadableImagesError, match="missing.png"):
        model.encode([{"image": "missing.png", "text": "is red"}])


def test_parts_that_do_not_belong_together_are_refused(world, tmp_path):
    base, model = world
    options = {"layout": "sentence_transformers", "base": base, "tokenizer": world_tokenizer()}
    with pytest.raises(ValueError, match="`projection` makes pseudo-words of width 32, but `model` has token emb"):
        export_layout(model, tmp_path, projection=tiny_projection(), **options)
    other = tiny_text_model(CLIPTextModelForRTD, hidden_size=model.config.hidden_size)
    with pytest.raises(
        ValueError, match="has image embeddings of width 96, but `model` has text embeddings of width 24"
    ):
        export_layout(other, tmp_path, projection=random_projection("lincir"), **options)


# ---------------------------------------------------------------------------------------------------------- the script
def convert(monkeypatch, *arguments):
    examples = Path(__file__).parents[1] / "examples"
    monkeypatch.setattr(sys, "argv", ["convert_encoder.py", *map(str, arguments)])
    monkeypatch.syspath_prepend(str(examples))
    runpy.run_path(str(examples / "convert_encoder.py"), run_name="__main__")


def test_the_script_writes_and_reads(monkeypatch, tmp_path, capsys):
    base, adapted = text_model(), lora(text_model())
    folder = export_text_encoder(base, tmp_path / "base", tokenizer=tiny_tokenizer())
    adapted.save_pretrained(tmp_path / "adapter")
    options = ("--to", "open_clip", "--adapter", tmp_path / "adapter", "--output_dir", tmp_path / "out")
    convert(monkeypatch, "--model", folder, *options)
    assert "37 tensors are equal after reading it again" in capsys.readouterr().out
    file = tmp_path / "out" / "text_tower.safetensors"
    back = tmp_path / "back"
    convert(monkeypatch, "--from", "auto", "--checkpoint", file, "--base", folder, "--output_dir", back)
    assert "37 tensors; embeddings differ by 0 after reloading" in capsys.readouterr().out
    found = CLIPTextModelWithProjection.from_pretrained(back)
    torch.testing.assert_close(embed(found), embed(adapted), rtol=0, atol=1e-5)
    with pytest.raises(SystemExit) as caught:
        convert(monkeypatch, "--from", "rtd", "--checkpoint", file, "--base", folder, "--output_dir", back)
    assert "looks like `open_clip`" in str(caught.value.code) and "Traceback" not in str(caught.value.code)
    with pytest.raises(SystemExit) as caught:
        convert(monkeypatch, "--to", "clip_model", "--model", folder, "--output_dir", tmp_path / "other")
    assert "The layout `clip_model` needs `base`" in str(caught.value.code)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("layout", "more"), [("onnx", []), ("sentence_transformers", ["--base", "shapes"])])
def test_the_script_writes_layouts_that_need_more_packages(monkeypatch, tmp_path, capsys, layout, more):
    out = tmp_path / "out"
    convert(monkeypatch, "--to", layout, "--model", "shapes", "--projection", "shapes", *more, "--output_dir", out)
    assert "written: " in capsys.readouterr().out and any(out.iterdir())


# ------------------------------------------------------------------------------------------------- the real open_clip
@pytest.fixture(scope="session")
def open_clip(request) -> Path:
    """A folder with open_clip, to be put before this environment; made once and kept in pytest's cache."""
    name = f"open_clip-py{sys.version_info.major}{sys.version_info.minor}"
    return installed_beside(request, name, [f"{package}=={version}" for package, version in OPEN_CLIP.items()])


OPEN_CLIP_PROGRAM = """
import json, sys
import torch

# open_clip wants torchvision for its picture transforms alone. Where torch is a build without CUDA, the operators of
# torchvision's wheel cannot be loaded, and it cannot be imported unless they are at least declared.
try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
from safetensors.torch import load_file, save_file

job, name, custom, folder, ids = sys.argv[1], sys.argv[2], sys.argv[3] == "1", sys.argv[4], json.loads(sys.argv[5])
options = {"force_custom_text": True} if custom else {}
torch.manual_seed(0)
if job == "write":
    model = open_clip.create_model(name, pretrained=None, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save_file(model.state_dict(), f"{folder}/open_clip_model.safetensors")
    torch.save({"epoch": 1, "name": name, "state_dict": model.state_dict()}, f"{folder}/epoch_1.pt")
    model_cfg = open_clip.get_model_config(name)
    with open(f"{folder}/open_clip_config.json", "w") as file:
        json.dump({"model_cfg": {**model_cfg, "custom_text": custom}, "preprocess_cfg": {}}, file)
elif job == "tower":
    model = open_clip.create_model(name, pretrained=None, **options).eval()
    report = model.load_state_dict(load_file(f"{folder}/text_tower.safetensors"), strict=False)
    assert not report.unexpected_keys, report.unexpected_keys
    assert not [key for key in report.missing_keys if not key.startswith("visual.")][1:], report.missing_keys
elif job == "file":
    model = open_clip.create_model(name, pretrained=f"{folder}/open_clip_model.safetensors", **options).eval()
elif job == "folder":
    model = open_clip.create_model(f"local-dir:{folder}", **options).eval()
else:
    model = open_clip.load_openai_model(f"{folder}/clip.pt", precision="fp32", device="cpu").eval()
rows = torch.zeros(len(ids), 77, dtype=torch.long)
for row, each in zip(rows, ids):
    row[: len(each)] = torch.tensor(each)
with torch.no_grad():
    print(json.dumps(model.encode_text(rows).tolist()))
"""


@pytest.mark.parametrize(
    ("name", "custom"),
    [
        # Each loads B/32 several times; these two have every option between them.
        pytest.param("ViT-B-32-quickgelu", False, marks=pytest.mark.slow),
        pytest.param("ViT-B-32", True, marks=pytest.mark.slow),
        pytest.param("ViT-B-32-quickgelu", True, marks=pytest.mark.huge),
        pytest.param("ViT-B-32", False, marks=pytest.mark.huge),
    ],
)
def test_open_clip_itself_agrees_both_ways(open_clip, name, custom, tmp_path):
    ids = [[49406, 320, 1125, 539, 320, 1929, 49407], [49406, 320, 49407], [49406, *range(500, 575), 49407]]
    layout = "open_clip_custom" if custom else "open_clip"
    activation = "quick_gelu" if "quickgelu" in name else "gelu"

    def theirs(job, folder):
        arguments = (job, name, int(custom), folder, json.dumps(ids))
        embeds = torch.tensor(json.loads(run_apart(OPEN_CLIP_PROGRAM, *arguments, path=open_clip)))
        return F.normalize(embeds, dim=-1)

    def ours(model):
        with torch.no_grad():
            embeds = torch.cat([model(input_ids=torch.tensor([row])).text_embeds for row in ids])
        return F.normalize(embeds, dim=-1)

    base = tmp_path / "base"
    base.mkdir()
    written = theirs("write", base)
    model, report = import_layout(base / "epoch_1.pt", layout=layout, output_loading_info=True)
    assert model.config.hidden_act == activation and model.config.num_attention_heads == 8
    assert report.layout == layout
    torch.testing.assert_close(ours(model), written, rtol=0, atol=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    expected = ours(model)
    assert (expected - written).abs().max() > 0.01
    export_layout(model, tmp_path / "tower", layout=layout)
    torch.testing.assert_close(theirs("tower", tmp_path / "tower"), expected, rtol=0, atol=1e-5)
    export_layout(model, tmp_path / "whole", layout=layout, base=base)
    job = "folder" if custom else "file"
    torch.testing.assert_close(theirs(job, tmp_path / "whole"), expected, rtol=0, atol=1e-5)
    if activation == "quick_gelu" and not custom:  # its reader of OpenAI's files, which rounds to half precision
        model = model.half().float()
        expected = ours(model)
        export_layout(model, tmp_path / "openai", layout="openai", base=base / "open_clip_model.safetensors")
        torch.testing.assert_close(theirs("openai", tmp_path / "openai"), expected, rtol=0, atol=1e-5)
