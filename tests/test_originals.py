"""The authors' checkpoints: every published layout gives the published function, everything else a clear refusal."""

import io
import pathlib
import pickle
import pickletools
import re
import runpy
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from rtd_hf.projections import PROJECTIONS, ImageToWordProjection
from rtd_hf.projections import original_files as files
from rtd_hf.projections.originals import load_original
from rtd_hf.registry import RegistryError


ROOT = Path(__file__).parents[1]
B32, L14 = "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14"


def only_with(name):
    return pytest.mark.skipif(name not in PROJECTIONS, reason=f"the projection `{name}` is not registered")


# ------------------------------------------------------------------------------- checkpoints with the published shapes
def mlp(width, prefix=""):
    shapes = {"layers.0": (4 * width, width), "layers.3": (4 * width, 4 * width), "layers.6": (width, 4 * width)}
    return random_linears(shapes, prefix)


def random_linears(shapes, prefix=""):
    state = OrderedDict()
    for name, shape in shapes.items():
        state[f"{prefix}{name}.weight"] = torch.randn(shape) * shape[1] ** -0.5
        state[f"{prefix}{name}.bias"] = torch.randn(shape[0])
    return state


def im2text(width, prefix=""):
    return random_linears({"layers.0.0": (512, width), "layers.1.0": (512, 512), "fc_out": (width, 512)}, prefix)


def apply(state, name, inputs):
    return inputs @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def doubled(state):
    """In double precision, so that two ways to compute the same thing differ by far less than 1e-6."""
    return {key: value.double() for key, value in state.items()}


def gelu(inputs):
    return inputs * 0.5 * (1 + torch.erf(inputs / 2**0.5))


def mlp_forward(state, inputs):
    hidden = gelu(apply(state, "layers.0", inputs))
    return apply(state, "layers.6", gelu(apply(state, "layers.3", hidden)))


def im2text_forward(state, inputs):
    hidden = torch.relu(apply(state, "layers.0.0", inputs))
    return apply(state, "fc_out", torch.relu(apply(state, "layers.1.0", hidden)))


def context_state(width=768, vision=1024):
    state = OrderedDict(local_gate=torch.tensor([0.7]))
    for name in ("proj", "proj_local"):
        state[name] = torch.randn(vision, width) * vision**-0.5
    state["to_c.weight"] = torch.randn(vision, width) * width**-0.5
    state["W_R.weight_g"], state["W_R.weight_v"] = torch.rand(vision, 1) + 0.5, torch.randn(vision, vision)
    norms = ["ln_post", "ln_post_local", "VT_Extractor.norm"]
    state["VT_Extractor.latents"] = torch.randn(4, vision)
    for i in range(6):
        layer = f"VT_Extractor.layers.{i}"
        norms += [f"{layer}.0.norm_media", f"{layer}.0.norm_latents", f"{layer}.1.0"]
        shapes = {"0.to_q": (512, vision), "0.to_kv": (1024, vision), "0.to_out": (vision, 512)}
        shapes |= {"1.1": (4 * vision, vision), "1.3": (vision, 4 * vision)}
        for name, shape in shapes.items():
            state[f"{layer}.{name}.weight"] = torch.randn(shape) * shape[1] ** -0.5
    for name in norms:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(vision) + 0.5, torch.randn(vision) * 0.1
    local = im2text(width)
    state |= {key.replace("layers", "layers_local").replace("fc_out", "fc_out_local"): local[key] for key in local}
    return state | im2text(width)


def norm(state, name, inputs):
    return F.layer_norm(inputs, inputs.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def context_forward(state, context, patches):
    direction = state["W_R.weight_v"]
    weight = state["W_R.weight_g"] * direction / direction.square().sum(1, keepdim=True).sqrt()
    tokens = (patches @ weight.T) * (context @ state["to_c.weight"].T)[:, None]
    media, latents = tokens[:, 1:], state["VT_Extractor.latents"].expand(len(tokens), -1, -1)

    def heads(states):
        return states.reshape(len(states), -1, 8, 64).transpose(1, 2)

    for i in range(6):
        layer = f"VT_Extractor.layers.{i}"
        inner = norm(state, f"{layer}.0.norm_latents", latents)
        both = torch.cat([norm(state, f"{layer}.0.norm_media", media), inner], 1) @ state[f"{layer}.0.to_kv.weight"].T
        query = heads(inner @ state[f"{layer}.0.to_q.weight"].T) * 64**-0.5
        attention = (query @ heads(both[..., :512]).transpose(-1, -2)).softmax(-1) @ heads(both[..., 512:])
        attention = attention.transpose(1, 2).reshape(len(tokens), 4, 512)
        latents = latents + attention @ state[f"{layer}.0.to_out.weight"].T
        hidden = gelu(norm(state, f"{layer}.1.0", latents) @ state[f"{layer}.1.1.weight"].T)
        latents = latents + hidden @ state[f"{layer}.1.3.weight"].T
    local = norm(state, "ln_post_local", norm(state, "VT_Extractor.norm", latents).mean(1)) @ state["proj_local"]
    renamed = {key.replace("_local", ""): value for key, value in state.items() if "_local" in key}
    whole = norm(state, "ln_post", tokens[:, 0]) @ state["proj"]
    return im2text_forward(state, whole) + torch.tanh(state["local_gate"]) * im2text_forward(renamed, local)


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


# ------------------------------------------------------------------------------------------- every published layout
MLP_LAYOUTS = {
    "bare": (lambda state: state, "lincir"),
    "Phi": (lambda state: {"Phi": state}, "searle"),
    "Phi, epoch": (lambda state: {"epoch": 7, "Phi": state}, "searle"),
    "resumable": (
        lambda state: {
            "Phi": state,
            "epoch": 3,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
            "scaler": {"scale": 65536.0},
            "training_path": pathlib.PurePosixPath("models/run"),
        },
        "searle",
    ),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("layout", MLP_LAYOUTS)
@pytest.mark.parametrize("width", [512, 768])
def test_searle_and_lincir(layout, width, prefix, tmp_path):
    wrap, default = MLP_LAYOUTS[layout]
    state = mlp(width)
    path = save(wrap(OrderedDict((prefix + key, value) for key, value in state.items())), tmp_path / "phi.pt")
    embeds = torch.randn(5, width)
    for wanted in (None, "searle", "lincir"):
        projection, report = load_original(
            path, base_model=B32 if width == 512 else L14, projection_type=wanted, output_loading_info=True
        )
        assert type(projection) is PROJECTIONS[wanted or default] and not projection.training
        assert max_difference(projection, state) == 0
        words = projection.double()(embeds.double())[:, 0]
        torch.testing.assert_close(words, mlp_forward(doubled(state), embeds.double()), rtol=0, atol=1e-6)
        assert (report.input_dim, report.hidden_dim, report.output_dim) == (width, 4 * width, width)
        assert ("same keys" in " ".join(report.notes)) == (wanted is None)
        assert report.backbone == ("ViT-L/14" if width == 768 else "ViT-B/32 or ViT-B/16")
        assert "CC BY-NC 4.0" in str(report) and set(report.dropped) == set(wrap(state)) - {"Phi"} - set(state)
    assert projection.config.base_model == (B32 if width == 512 else L14)
    assert projection.config.image_preprocess == "clip" and projection.config.dropout == 0.5


def max_difference(projection, state):
    own = projection.state_dict()
    assert own.keys() == state.keys()
    assert all(tensor.dtype == torch.float32 for tensor in own.values())
    return max((own[key] - state[key]).abs().max().item() for key in state)


@pytest.mark.parametrize(("name", "kind"), [("lincir_large.pt", "lincir"), ("SEARLE_ViT-L14.pt", "searle")])
def test_the_published_file_names_decide_between_the_twins(name, kind, tmp_path, caplog):
    for content in (mlp(16), {"epoch": 1, "Phi": mlp(16)}):
        projection, report = load_original(save(content, tmp_path / name), output_loading_info=True)
        assert projection.config.projection_type == kind
        assert f"taken for `{kind}`, by its file name. Give `projection_type`" in report.notes[0]
    assert len([record for record in caplog.records if "taken for" in record.message]) == 2


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("width", [512, 768])
def test_pic2word(width, prefix, tmp_path):
    state = im2text(width)
    content = {
        "epoch": 30,
        "name": "pic2word",
        "state_dict": {"module.visual.proj": torch.zeros(1024, 768)},
        "state_dict_img2text": OrderedDict((prefix + key, value) for key, value in state.items()),
        "optimizer": {"state": {}, "param_groups": []},
    }
    embeds = torch.randn(5, width)
    projection, report = load_original(save(content, tmp_path / "pic2word.pt"), output_loading_info=True)
    assert projection.config.projection_type == "pic2word"
    assert max_difference(projection, state) == 0
    words = projection.double()(embeds.double())[:, 0]
    torch.testing.assert_close(words, im2text_forward(doubled(state), embeds.double()), rtol=0, atol=1e-6)
    assert report.dropped == ("epoch", "name", "state_dict", "optimizer")


@only_with("context_i2w")
def test_context_i2w(tmp_path):
    state = context_state()
    content = {"epoch": 1, "state_dict_img2text": {f"module.{key}": value for key, value in state.items()}}
    projection, report = load_original(
        save(content, tmp_path / "context.pt"), base_model=L14, output_loading_info=True
    )
    assert projection.config.projection_type == "context_i2w"
    assert "the weight normalisation of `W_R.weight` is folded" in report.notes
    context, patches = torch.randn(3, 768).double(), torch.randn(3, 9, 1024).double()
    with torch.no_grad():
        words = projection.double()(torch.randn(3, 768), patches, context)[:, 0]
    expected = context_forward(doubled(state), context, patches)
    assert expected.abs().max() > 0.1
    # The folded weight is rounded to float32.
    torch.testing.assert_close(words, expected, rtol=0, atol=1e-6)


# FTI4CIR's whole module: classes of the published names, which exist only while the file is written.
class Named(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def fti_module(width=768, vision=1024, num_templates=24, **attributes):
    def phi():
        layers = [nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.5), nn.Linear(4 * width, 4 * width), nn.GELU()]
        return kinds["Phi"](layers=nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(4 * width, width)))

    def layer():
        attention = kinds["MultiHeadAttention"](
            to_queries=nn.Linear(vision, vision, bias=False),
            to_keys_values=nn.Linear(vision, 2 * vision, bias=False),
            project=nn.Linear(vision, vision),
        )
        network = kinds["MlpTransformer"](
            fc1=nn.Linear(vision, 2 * vision), fc2=nn.Linear(2 * vision, vision), act=F.relu
        )
        norms = {"norm1": nn.LayerNorm(vision), "norm2": nn.LayerNorm(vision)}
        return kinds["TransformerLayer"](**norms, attn=attention, mlp=network)

    kinds = {}
    modules = {"i2t_model": ("IMG2TEXT", "Phi")}
    modules["MHTransformer"] = ("Transformer", "TransformerLayer", "MultiHeadAttention", "MlpTransformer")
    for module, names in modules.items():
        sys.modules[module] = types.ModuleType(module)
        for name in names:
            kinds[name] = type(name, (Named,), {"__module__": module})
            setattr(sys.modules[module], name, kinds[name])
    attributes = {
        "num_k": num_templates,
        "topk": 12,
        "epsilon": 0.05,
        "hy_regLoss": 1.0,
        "temperature": 0.2,
    } | attributes
    return kinds["IMG2TEXT"](
        templates=nn.Parameter(torch.randn(1, num_templates, vision)),
        phi_s=phi(),
        phi_a=phi(),
        local_atte_fc=nn.Sequential(nn.Linear(vision, width), nn.Sigmoid()),
        transformer=kinds["Transformer"](layers=nn.ModuleList(layer() for _ in range(3))),
        criterion_target=torch.zeros(3),
        **attributes,
    )


@pytest.fixture
def fti():
    yield fti_module
    for name in ("i2t_model", "MHTransformer"):
        sys.modules.pop(name, None)


def fti_forward(state, embeds, patches, topk=12, epsilon=0.05):
    """The list of each image's pseudo-words."""
    width = patches.shape[-1]
    states = torch.cat([state["templates"].expand(len(patches), -1, -1), patches], 1)
    for i in range(3):
        layer = f"transformer.layers.{i}"
        inner = norm(state, f"{layer}.norm1", states)
        both = inner @ state[f"{layer}.attn.to_keys_values.weight"].T
        query = inner @ state[f"{layer}.attn.to_queries.weight"].T * width**-0.5
        attention = (query @ both[..., :width].transpose(-1, -2)).softmax(-1) @ both[..., width:]
        states = states + apply(state, f"{layer}.attn.project", attention)
        hidden = torch.relu(apply(state, f"{layer}.mlp.fc1", norm(state, f"{layer}.norm2", states)))
        states = states + apply(state, f"{layer}.mlp.fc2", hidden)
    local = torch.sigmoid(apply(state, "local_atte_fc.0", states[:, : state["templates"].shape[1]]))
    subject = {key.removeprefix("phi_s."): value for key, value in state.items() if key.startswith("phi_s.")}
    attribute = {key.removeprefix("phi_a."): value for key, value in state.items() if key.startswith("phi_a.")}
    rows = []
    for row, v in zip(local, embeds, strict=True):
        share = (row @ v).softmax(0)
        count = min(max(int((share > epsilon).sum()), 1), topk)
        chosen = share.topk(topk).indices[:count].sort().values
        selected = row[chosen] / row[chosen].norm(dim=-1, keepdim=True)
        rows.append(torch.cat([mlp_forward(subject, v[None]), mlp_forward(attribute, selected)]))
    return rows


@only_with("fti4cir")
@pytest.mark.parametrize(
    "sizes",
    [{}, {"width": 512, "vision": 768}, {"width": 32, "vision": 48, "num_templates": 8, "topk": 5, "epsilon": 0.2}],
)
def test_fti4cir(sizes, tmp_path, fti):
    module = fti(**sizes)
    path = save(module, tmp_path / "FTI4CIR_model.pth")
    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert len(state) == 51
    del sys.modules["i2t_model"], sys.modules["MHTransformer"]
    projection, report = load_original(path, output_loading_info=True)
    assert projection.config.projection_type == "fti4cir" and report.layout == "a pickled module"
    assert report.dropped == ("attribute hy_regLoss", "attribute temperature")
    assert max_difference(projection, state) == 0
    embeds = torch.randn(4, sizes.get("width", 768)).double() * 0.2
    patches = torch.randn(4, 6, sizes.get("vision", 1024)).double()
    with torch.no_grad():
        words = projection.double()(embeds, patches)
    numbers = sizes.get("topk", 12), sizes.get("epsilon", 0.05)
    assert words.shape[1] == 1 + numbers[0]
    for found, expected in zip(words, fti_forward(doubled(state), embeds, patches, *numbers), strict=True):
        torch.testing.assert_close(found[: len(expected)], expected, rtol=0, atol=1e-6)
        assert not found[len(expected) :].any()


@only_with("fti4cir")
def test_fti4cir_as_safetensors_has_the_publications_numbers(tmp_path, fti):
    state = fti(width=32, vision=48).state_dict()
    save_file(state, tmp_path / "fti.safetensors")
    projection, report = load_original(tmp_path / "fti.safetensors", output_loading_info=True)
    assert "does not say topk and epsilon" in report.notes[0]
    assert (projection.config.num_pseudo_words, projection.config.attribute_threshold) == (13, 0.05)


def test_types_that_are_not_there_get_the_registrys_error(tmp_path, monkeypatch):
    monkeypatch.delitem(PROJECTIONS, "context_i2w", raising=False)
    content = {"state_dict_img2text": {"VT_Extractor.latents": torch.zeros(4, 8)}}
    with pytest.raises(RegistryError, match="Unknown projection `context_i2w`"):
        load_original(save(content, tmp_path / "context.pt"))
    with pytest.raises(RegistryError, match="Unknown projection `linsir`. Did you mean `lincir`"):
        load_original(tmp_path / "absent", projection_type="linsir")


def test_safetensors_and_the_old_torch_format(tmp_path):
    state = mlp(16)
    save_file(state, tmp_path / "phi.safetensors")
    save({"Phi": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pt")
    for name, kind in (("phi.safetensors", "lincir"), ("old.pt", "searle")):
        projection = load_original(tmp_path / name)
        assert projection.config.projection_type == kind and max_difference(projection, state) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_with_a_note(dtype, tmp_path):
    state = {key: value.to(dtype) for key, value in mlp(16).items()}
    projection, report = load_original(save(state, tmp_path / "phi.pt"), output_loading_info=True)
    assert max_difference(projection, {key: value.float() for key, value in state.items()}) == 0
    assert f"weights of {str(dtype)[6:]} became float32" in report.notes


def test_the_weights_do_not_hang_on_the_file_and_no_random_number_is_drawn(tmp_path):
    path = save(mlp(16), tmp_path / "phi.pt")
    before = torch.get_rng_state()
    projection = load_original(path, dropout=0.25, prompt_template="$ but {caption}")
    assert torch.equal(before, torch.get_rng_state())
    expected = {key: value.clone() for key, value in projection.state_dict().items()}
    path.write_bytes(b"\x00" * path.stat().st_size)
    assert max_difference(projection, expected) == 0
    assert (projection.config.dropout, projection.config.prompt_template) == (0.25, "$ but {caption}")


# ----------------------------------------------------------------------------------------------------- where it lies
@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("some/repo:lincir.pt", ("some/repo", "lincir.pt", None)),
        ("some/repo@v1:sub/lincir.pt", ("some/repo", "sub/lincir.pt", "v1")),
        ("hf://some/repo/sub/lincir.pt", ("some/repo", "sub/lincir.pt", None)),
        ("hf://some/repo@v1/lincir.pt", ("some/repo", "lincir.pt", "v1")),
    ],
)
def test_a_hub_file_is_downloaded(name, called, tmp_path, monkeypatch):
    path = save(mlp(16), tmp_path / "lincir.pt")
    calls = []

    def download(repo, file, *, revision=None):
        calls.append((repo, file, revision))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_original(name).config.projection_type == "lincir"
    assert calls == [called]


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` `.*absent.pt` does not exist.*`repo_id:filename`"):
        load_original(tmp_path / "absent.pt")
    for name in ("navervision/zeroshot-cir-models:lincir_large.pt", "hf://some/repo/phi.pt"):
        with pytest.raises(OSError, match="could not be downloaded .*Without a connection"):
            load_original(name)
    with pytest.raises(IsADirectoryError, match="is a folder. Name the file in it"):
        load_original(tmp_path)
    ImageToWordProjection.build("lincir", 16).save_pretrained(tmp_path)
    with pytest.raises(IsADirectoryError, match="already converted: load it with .*from_pretrained"):
        load_original(tmp_path)


# ----------------------------------------------------------------------------------------------- what is no checkpoint
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. Download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 56\n", "git-lfs pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "is an HTML page.*virus-scan"),
        (b"\n  <html>", "is an HTML page"),
        (b'{"error": "Not found"}', "is JSON text"),
        (b"\x1f\x8b\x08\x00abc", "is a packed archive. Unpack it"),
        (b"phi.pt".ljust(257, b"\0") + b"ustar\x0000", "is a tar archive"),
        (b"\0" * 100_000, "holds zeros only"),
        (b"GIF89a", "begins with b'GIF89a', as no checkpoint does"),
        (pickle.dumps({"layers.0.weight": 1}), "is a plain pickle.*it was not opened"),
        (b"PK\x03\x04", "is cut short or damaged"),
    ],
)
def test_a_file_that_is_no_checkpoint_says_what_it_looks_like(content, message, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_original(path)
    assert str(path) in str(error.value) and f"({len(content):,} bytes)" in str(error.value)


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["new", "old", "safetensors"])
def test_a_half_downloaded_file_is_named(kind, keep, tmp_path):
    path = tmp_path / "phi.pt"
    if kind == "safetensors":
        save_file(mlp(16), path)
    else:
        save(mlp(16), path, _use_new_zipfile_serialization=kind == "new")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="cut short or damaged .*download it again") as error:
        load_original(path)
    assert str(path) in str(error.value)


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("phrases.txt", "a dog")
    with pytest.raises(ValueError, match="zip archive of 1 file.*phrases.txt.*Unpack it"):
        load_original(tmp_path / "texts.zip")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "ViT-L-14.pt")
    with pytest.raises(ValueError, match="TorchScript archive, such as OpenAI's CLIP"):
        load_original(tmp_path / "ViT-L-14.pt")
    save(mlp(16), tmp_path / "phi.pt")
    with zipfile.ZipFile(tmp_path / "phi.pt") as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its entries are compressed"):
        load_original(tmp_path / "bomb.pt")


CLIP = {"module.visual.proj": torch.zeros(4, 4), "module.token_embedding.weight": torch.zeros(4, 4)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "state_dict": CLIP}, "holds a whole CLIP .*and no projection"),
        (CLIP, "holds a whole CLIP"),
        ({"vision_model.embeddings.position_ids": torch.arange(3), "logit_scale": torch.ones(())}, "a whole CLIP"),
        ({"epoch": 1, "CLIPTextModelWithProjection": {"text_model.x": torch.ones(1)}}, "holds an RTD text encoder"),
        ({"text_model.final_layer_norm.weight": torch.ones(4)}, "holds a text encoder"),
        ({"epoch": 1, "state_dict": {"head.weight": torch.ones(1)}}, "no projection under `Phi`.*`head.weight`"),
        ({"weights": torch.ones(1)}, "the keys of no known projection; they begin with `weights`"),
        ({"epoch": 3, "model": mlp(16)}, "`epoch` .* is a `int`, but must be a tensor"),
        ({"Phi": torch.ones(1)}, "`Phi` .* is a `Tensor`, but must be a state dict"),
        ({}, "holds an empty dictionary"),
        ({3: torch.ones(1)}, "keys are not names"),
        (torch.ones(3), "holds a `Tensor`"),
        ([1, 2], "holds a `list`"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_original(save(content, tmp_path / "other.pt"))


# ------------------------------------------------------------------------------------------------- the weights' checks
def changed(**changes):
    state = mlp(16)
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value(state.get(key)) if callable(value) else value
    return state


def poke(value):
    def change(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(layers__3__bias=None), "lacks 1 weight.*`layers.3.bias`"),
        (changed(layers__0__weight=None), "lacks 1 weight.*`layers.0.weight`"),
        (changed(layers__9__bias=torch.ones(3)), "1 weight.*`lincir` projection does not have: `layers.9.bias`"),
        (changed(layers__0__weight=torch.ones(64)), r"has shape \(64,\), from which `input_dim` cannot be read"),
        (changed(layers__3__weight=torch.ones(64, 63)), r"`layers.3.weight`.*\(64, 63\), but \(64, 64\) fits"),
        (changed(layers__3__weight=torch.ones(2048, 2048)), "Such widths are those of ViT-B/32 or ViT-B/16"),
        (changed(layers__6__bias=torch.ones(768)), r"\(768,\), but \(16,\) .*Such widths are those of ViT-L/14"),
        (changed(layers__6__bias=poke(float("nan"))), "`layers.6.bias`.*not finite"),
        (changed(layers__0__weight=poke(float("-inf"))), "`layers.0.weight`.*not finite"),
        (
            changed(layers__0__bias=torch.ones(64, dtype=torch.int64)),
            "`layers.0.bias`.*must be a dense tensor of floats",
        ),
        (changed(layers__3__weight=torch.eye(64).to_sparse()), "must be a dense|would import"),
        (changed(layers__0__bias=torch.ones(64, device="meta")), "must be a dense|would import"),
        (changed(layers__3__weight=torch.ones(1).expand(2**20, 2**20)), "claims shape .*more than the file holds"),
    ],
)
def test_wrong_weights_are_refused_by_name(state, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        load_original(save(state, tmp_path / "phi.pt"))
    assert "phi.pt" in str(error.value)


@only_with("context_i2w")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("W_R.weight_v", None, "lacks 1 weight.*`W_R.weight`"),
        ("W_R.weight_g", None, "lacks 1 weight.*`W_R.weight`"),
        ("W_R.weight_g", torch.ones(48), r"must have shapes \(rows, 1\)"),
        ("W_R.weight_v", torch.full((48, 48), torch.nan), "`W_R.weight_v`.*not finite"),
        ("W_R.weight_v", torch.zeros(48, 48), "`W_R.weight`.*not finite"),
    ],
)
def test_half_a_weight_normalisation(key, value, message, tmp_path):
    state = context_state(32, 48)
    if value is None:
        del state[key]
    else:
        state[key] = value
    with pytest.raises(ValueError, match=message):
        load_original(save({"state_dict_img2text": state}, tmp_path / "context.pt"))


def test_arguments_that_contradict_the_file(tmp_path):
    phi, pic2word = save(mlp(512), tmp_path / "phi.pt"), save(im2text(512), tmp_path / "pic2word.pt")
    with pytest.raises(ValueError, match="`base_model` is `openai/clip-vit-large.*512 wide instead of 768.*ViT-B/32"):
        load_original(phi, base_model=L14, projection_type="lincir")
    with pytest.raises(ValueError, match="`projection_type` is `lincir`, but .* has the keys of `pic2word`"):
        load_original(pic2word, projection_type="lincir")
    with pytest.raises(ValueError, match="`projection_type` is `pic2word`, but .* keys of SEARLE and LinCIR"):
        load_original(phi, projection_type="pic2word")
    with pytest.raises(ValueError, match=r"`hidden_dim` is read from the checkpoint \(2048\)"):
        load_original(phi, hidden_dim=8)
    unknown, report = load_original(pic2word, base_model="my/clip", output_loading_info=True)
    assert unknown.config.base_model == "my/clip"
    assert report.notes == ("the widths of `my/clip` are not known here and were not checked",)


def test_a_type_without_published_files_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(PROJECTIONS, "mine", object)
    with pytest.raises(ValueError, match="`mine` has no published checkpoints"):
        load_original(tmp_path, projection_type="mine")


# ----------------------------------------------------------------------------------------------------- malicious files
class Reduced:
    """Pickled as a call of `function`, with the further items that `__reduce__` may give."""

    def __init__(self, function, *arguments, rest=()):
        self.call = (function, arguments, *rest)

    def __reduce__(self):
        return self.call


def raw_torch_file(path, code):
    """A file of `torch.save` whose pickle is `code`."""
    save({"x": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents:
            archive.writestr(name, code if name.endswith("data.pkl") else content)
    return path


def global_(name):
    module, _, kind = name.rpartition(".")
    return f"c{module}\n{kind}\n".encode()


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A file that every payload would make."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "trapped"
    assert not (tmp_path / "trapped").exists()
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix != ".pt"] == []


def payloads(mark):
    import builtins
    import functools
    import importlib
    import os
    import shutil
    import subprocess as processes

    python = f"open({str(mark)!r}, 'w').close()"
    command = f"touch {mark}"
    inner = io.BytesIO()
    torch.save(Reduced(os.system, command), inner)
    return {
        "os.system": Reduced(os.system, command),
        "os.popen": Reduced(os.popen, command),
        "subprocess": Reduced(processes.check_call, ["touch", str(mark)]),
        "eval": Reduced(builtins.eval, python),
        "exec": Reduced(builtins.exec, python),
        "open": Reduced(builtins.open, str(mark), "w"),
        "getattr": Reduced(getattr, Reduced(importlib.import_module, "os"), "system"),
        "map": Reduced(list, Reduced(map, os.system, [command])),
        "torch.load": Reduced(torch.load, io.BytesIO(inner.getvalue()), None, None),
        "pickle.loads": Reduced(pickle.loads, pickle.dumps(Reduced(os.system, command))),
        "partial": Reduced(functools.partial, os.system, command),
        "runpy": Reduced(runpy._run_code, python, {}),
        "copy": Reduced(shutil.copyfile, __file__, str(mark)),
        "numpy": Reduced(__import__("numpy").load, str(mark)),
        "jit": Reduced(torch.jit.load, str(mark)),
        "hub": Reduced(torch.hub.load, "a/b", "c"),
        "storage": Reduced(torch.storage._load_from_bytes, inner.getvalue()),
        "setstate": Reduced(OrderedDict, rest=({"a": Reduced(os.system, command)},)),
        "items": Reduced(OrderedDict, rest=(None, None, iter([("a", Reduced(os.system, command))]))),
        "setter": Reduced(OrderedDict, rest=({"a": 1}, None, None, os.system)),
    }


@pytest.mark.parametrize("place", ["whole", "Phi", "beside", "weight"])
@pytest.mark.parametrize("name", payloads("x"))
def test_no_payload_runs(name, place, trap, tmp_path):
    for new in (True, False):
        payload = payloads(trap)[name]
        content = {
            "whole": payload,
            "Phi": {"Phi": payload},
            "beside": {"Phi": mlp(16), "epoch": payload},
            "weight": {**mlp(16), "layers.3.bias": payload},
        }[place]
        path = tmp_path / "phi.pt"
        try:
            save(content, path, _use_new_zipfile_serialization=new)
        except (TypeError, pickle.PicklingError):  # a `__setstate__` of six items needs a later protocol
            save(content, path, _use_new_zipfile_serialization=new, pickle_protocol=4)
        with pytest.raises(ValueError, match="would import .*Nothing of it was run"):
            load_original(path)


@pytest.mark.parametrize("name", payloads("x"))
def test_no_payload_runs_where_every_name_is_taken_for_harmless(name, trap, tmp_path, monkeypatch):
    """The interpreter behind the list of names is a second wall: what it does not know is inert."""
    monkeypatch.setattr(files, "_INERT", re.compile(".*"))
    path = save({"Phi": mlp(16), "epoch": payloads(trap)[name]}, tmp_path / "phi.pt")
    try:
        projection = load_original(path)
    except ValueError as error:
        assert "phi.pt" in str(error)
    else:
        assert projection.config.projection_type == "searle"


def test_the_payloads_do_run_where_nothing_stops_them(tmp_path):
    """Or the test above proves nothing."""
    path, mark = tmp_path / "phi.pt", tmp_path / "mark"
    ran = set()
    for name in ("os.system", "subprocess", "eval", "exec", "open", "pickle.loads", "setstate", "copy"):
        save(payloads(mark)[name], path)
        torch.load(path, weights_only=False)
        ran |= {name} if mark.exists() else set()
        mark.unlink(missing_ok=True)
    assert len(ran) == 8


MODULE = b"\x80\x02" + global_("i2t_model.IMG2TEXT")
RAW = {
    "build on a stub class": MODULE + b"}" + text("__setstate__") + global_("os.system") + b"sb.",
    "build on an allowed class": b"\x80\x02" + global_("collections.OrderedDict") + b"}" + text("x") + b"K\x01sb.",
    "build on a stub class without payload": MODULE + b"}" + text("dump_patches") + b"\x88sb.",
    "build on a function": b"\x80\x02" + global_("torch._utils._rebuild_tensor_v2") + b"}" + text("x") + b"K\x01sb.",
    "slots of a storage class": b"\x80\x02" + global_("torch.FloatStorage") + b"N}" + text("dtype") + b"K\x01s\x86b.",
    "item of a stub class": MODULE + b"K\x01K\x02s.",
    "stack global": b"\x80\x04" + b"\x8c\x02os" + b"\x8c\x06system" + b"\x93.",
    "inst": b"\x80\x02(" + text("touch trapped") + b"ios\nsystem\n.",
    "extension": b"\x80\x02\x82\x01.",
    "two stubs called": b"\x80\x02" + global_("torch.nn.modules.linear.Linear") + global_("i2t_model.Phi") + b"\x85R.",
    "a module of itself": MODULE + b")\x81q\x00}" + text("_modules") + b"}" + text("a") + b"h\x00ssb.",
    "an empty module": MODULE + b")\x81.",
    "a module whose state is a text": MODULE + b")\x81" + text("state") + b"b.",
    "a module whose names are numbers": MODULE + b")\x81}" + text("_parameters") + b"}K\x01K\x02ssb.",
    "nothing": b"\x80\x02.",
    "no end": b"\x80\x02}",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a text that is longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "no text": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "a weight of another file": b"\x80\x02" + text("storage") + b"Q.",
    "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a deep key": b"\x80\x02}" + b")" + b"\x85" * 50_000 + b"K\x01s.",
    "a deep key within bounds": b"\x80\x02}" + b")" + b"\x85" * 19_000 + b"K\x01s.",
    "huge": b"\x80\x02" + b"]0" * (files._MAX_OPERATIONS // 2 + 10) + b"].",
}


@pytest.mark.parametrize("name", RAW)
def test_pickles_written_by_hand_end_in_a_clear_error(name, trap, tmp_path):
    path = raw_torch_file(tmp_path / "phi.pt", RAW[name])
    before = dict(vars(torch.FloatStorage))
    with pytest.raises(ValueError, match="phi.pt|no module") as error:
        load_original(path)
    assert len(str(error.value)) < 600
    assert not hasattr(files.InertObject, "dump_patches") and vars(torch.FloatStorage) == before
    assert not hasattr(torch._utils._rebuild_tensor_v2, "x")


def test_too_large_and_too_deep_is_seen_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("opened"))
    for name in ("huge", "a deep key"):
        with pytest.raises(ValueError, match="too large or too deep"):
            load_original(raw_torch_file(tmp_path / "phi.pt", RAW[name]))


def test_a_length_that_no_memory_holds_is_no_crash(tmp_path, monkeypatch):
    def out_of_memory(stream):
        raise MemoryError

    monkeypatch.setattr(files.pickletools, "genops", out_of_memory)
    with pytest.raises(ValueError, match="phi.pt` is too large or too deep"):
        load_original(raw_torch_file(tmp_path / "phi.pt", RAW["huge"]))


def test_a_stub_keeps_what_it_is_given_and_does_nothing(tmp_path, trap):
    """State named like a method stays data, and a call of a stub returns an inert object."""
    code = MODULE + b")\x81}" + text("__setstate__") + global_("torch.nn.functional.relu") + text("touch") + b"\x85R"
    before = set(torch.serialization.get_safe_globals())
    found = files.read_checkpoint(raw_torch_file(tmp_path / "phi.pt", code + b"sb."))
    assert isinstance(found, files.InertObject) and list(found.state) == ["__setstate__"]
    assert isinstance(found.state["__setstate__"], files.InertObject) and found.state["__setstate__"].state == {}
    assert set(torch.serialization.get_safe_globals()) == before


def test_modules_that_multiply_are_stopped(tmp_path):
    """Thirty modules, each holding the one before twice: a billion in all."""
    code = b"\x80\x02"
    child = b"N"
    for i in range(30):
        two = b"}" + text("a") + child + b"s" + text("b") + (child if i == 0 else b"h" + bytes([i - 1])) + b"s"
        fields = (
            b"}" + text("_modules") + two + b"s" + b"".join(text(f"_{g}") + b"}s" for g in ("parameters", "buffers"))
        )
        child = global_("i2t_model.Phi") + b")\x81q" + bytes([i]) + fields + b"b"
    pickletools.dis(code + child + b".", io.StringIO())
    with pytest.raises(ValueError, match="is no module"):
        load_original(raw_torch_file(tmp_path / "phi.pt", code + child + b"."))


def test_the_old_format_of_a_whole_module_is_refused(tmp_path, fti):
    path = save(fti(32, 48), tmp_path / "fti.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="whole module in torch's format from before version 1.6.*state_dict"):
        load_original(path)


@pytest.mark.parametrize(
    ("attribute", "value"), [("topk", "12"), ("topk", True), ("topk", 0), ("num_k", 23), ("epsilon", float("nan"))]
)
def test_numbers_of_the_module_that_cannot_be(attribute, value, tmp_path, fti):
    path = save(fti(32, 48, **{attribute: value}), tmp_path / "fti.pt")
    if "fti4cir" not in PROJECTIONS:
        pytest.skip("the projection `fti4cir` is not registered")
    with pytest.raises(ValueError, match=f"`{attribute}` of the module"):
        load_original(path)


# --------------------------------------------------------------------------------------------------------- the example
@pytest.fixture
def example(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_projection.py", *map(str, arguments)])
        monkeypatch.syspath_prepend(str(ROOT / "examples"))
        runpy.run_path(str(ROOT / "examples" / "convert_projection.py"), run_name="__main__")

    return run


def test_the_example_converts_and_proves_it(example, tmp_path, capsys):
    state = mlp(64)
    path = save({"Phi": state}, tmp_path / "phi.pt")
    for _ in range(2):  # into the same folder: just works
        example("--checkpoint", path, "--output_dir", tmp_path / "out", "--base_model", "my/clip")
    printed = capsys.readouterr().out
    assert "taken for `searle`" in printed and "6 tensors and the pseudo-words" in printed
    assert "CC BY-NC 4.0" in printed
    reloaded = ImageToWordProjection.from_pretrained(tmp_path / "out")
    assert reloaded.config.base_model == "my/clip" and max_difference(reloaded, state) == 0
    assert reloaded.config.license.startswith("CC BY-NC 4.0")  # for whoever publishes what is trained with it


def test_the_example_notices_a_folder_with_other_weights(example, tmp_path, monkeypatch):
    path = save({"Phi": mlp(64)}, tmp_path / "phi.pt")
    other = ImageToWordProjection.build("searle", 64)
    monkeypatch.setattr(ImageToWordProjection, "from_pretrained", lambda folder: other)
    with pytest.raises(SystemExit, match="does not give back what was converted"):
        example("--checkpoint", path, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize("layout", ["lincir", "searle", "pic2word"])
def test_the_example_has_a_demo_of_each_layout(layout, example, tmp_path, capsys):
    example("--demo", layout, "--output_dir", tmp_path)
    assert f"projection: {layout}, 512" in capsys.readouterr().out
    assert ImageToWordProjection.from_pretrained(tmp_path).config.base_model == B32


def test_the_example_fails_in_one_line(example, tmp_path):
    (tmp_path / "page.pt").write_text("<html>")
    with pytest.raises(SystemExit, match="is an HTML page"):
        example("--checkpoint", tmp_path / "page.pt", "--output_dir", tmp_path / "out")


def test_the_examples_help_imports_nothing_heavy():
    code = (
        "import runpy, sys\nsys.path.insert(0, 'examples')\nsys.argv = ['x', '--help']\n"
        "try: runpy.run_path('examples/convert_projection.py', run_name='__main__')\n"
        "except SystemExit as end: print('torch' in sys.modules, 'transformers' in sys.modules, end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False False 0" and "--demo" in done.stdout
