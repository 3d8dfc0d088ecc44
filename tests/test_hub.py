import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbone_models import siglip_tokenizer, tiny_backbone
from helpers import tiny_text_model, tiny_tokenizer
from processes import installed_beside
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
)

from rtd_hf import (
    CLIPTextModelForRTD,
    SiglipTextModelForRTD,
    check_safetensors,
    export_text_encoder,
    prepare_output_dir,
    verify_drop_in,
)
from rtd_hf.hub import OWNER_FILE, PROBE_TEXTS


OLD_TRANSFORMERS = {"transformers": "4.57.3", "huggingface_hub": "0.36.0", "tokenizers": "0.22.2"}
TEXTS = ["a photo of a dog", "a photo of $ that is red", "Green, on the left!", "zebra 42", ""]


def embed(model, tokenizer, texts=TEXTS):
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).text_embeds


def lora(model, **options):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)  # PEFT starts with zeros: adapters that do nothing
    return model.eval()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(params=[False, True], ids=["eos", "legacy-eos"])
def model(request):
    return tiny_text_model(CLIPTextModelForRTD, legacy_eos=request.param)


# -------------------------------------------------------------------------------------------------- the output folder
def test_new_folder_is_made_with_its_parents_and_taken_again(tmp_path):
    folder = prepare_output_dir(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b" and folder.is_dir()
    (folder / "metrics.json").write_text("{}")
    assert prepare_output_dir(str(folder)) == folder
    assert (folder / "metrics.json").read_text() == "{}"


def test_empty_folder_is_taken(tmp_path):
    assert prepare_output_dir(tmp_path) == tmp_path


def test_folder_of_somebody_else_is_refused_and_unchanged(tmp_path, tokenizer):
    (tmp_path / "config.json").write_text("mine")
    (tmp_path / "notes").mkdir()
    for refused in (
        lambda: prepare_output_dir(tmp_path),
        lambda: export_text_encoder(tiny_text_model(CLIPTextModelForRTD), tmp_path, tokenizer=tokenizer),
    ):
        with pytest.raises(FileExistsError, match=rf"`{tmp_path}` holds 2 entries .* `config.json`, `notes`\..* new"):
            refused()
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "notes"]
        assert (tmp_path / "config.json").read_text() == "mine"


def test_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=rf"`{folder}` cannot be made.*Choose another"):
            prepare_output_dir(folder)
    assert (tmp_path / "file").read_text() == "x"


def refuse(error):
    def raise_it(*args, **kwargs):
        raise error

    return raise_it


@pytest.mark.parametrize("number", ["EACCES", "EPERM", "EROFS"])
@pytest.mark.parametrize("method", ["mkdir", "write_text"])
def test_unwritable_place_is_refused(tmp_path, monkeypatch, number, method):
    import errno

    # Root may write anywhere, so the refusal of the system is played.
    monkeypatch.setattr(Path, method, refuse(OSError(getattr(errno, number), "no")))
    with pytest.raises(PermissionError, match=rf"`{tmp_path}` cannot be written \(no\).*write access.*another"):
        prepare_output_dir(tmp_path)


def test_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=rf"`{tmp_path}` cannot be written"):
        prepare_output_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_called_a_permission(tmp_path, monkeypatch):
    import errno

    monkeypatch.setattr(Path, "write_text", refuse(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        prepare_output_dir(tmp_path)


# ------------------------------------------------------------------------------------------------------------- export
def test_export_is_the_stock_layout(model, tokenizer, tmp_path):
    folder = export_text_encoder(model, tmp_path / "out", tokenizer=tokenizer)

    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["CLIPTextModelWithProjection"]
    assert config["eos_token_id"] == model.config.eos_token_id
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert set(file.keys()) == set(model.state_dict())
    assert {key.split(".")[0] for key in model.state_dict()} == {"text_model", "text_projection"}
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    assert {entry.name for entry in folder.iterdir()} == {*names, OWNER_FILE}


def test_every_stock_class_gives_the_same_embeddings(model, tokenizer, tmp_path):
    expected = embed(model, tokenizer)
    folder = export_text_encoder(model, tmp_path, tokenizer=tokenizer)
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")

    projected, info = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    bare, info = CLIPTextModel.from_pretrained(folder, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"text_projection.weight"} and not info["missing_keys"]
    whole = full_clip(folder)
    with torch.no_grad():
        assert torch.equal(projected(**inputs).text_embeds, expected)
        assert torch.equal(projected.text_projection(bare(**inputs).pooler_output), expected)
        assert torch.equal(whole.get_text_features(**inputs).pooler_output, expected)


def full_clip(folder) -> CLIPModel:
    """A whole CLIP that takes the exported tensors strictly."""
    text = CLIPTextModelWithProjection.from_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    options = {"text_config": text.config.to_dict(), "vision_config": vision.to_dict()}
    whole = CLIPModel(CLIPConfig(**options, projection_dim=text.config.projection_dim)).eval()
    weights = load_file(Path(folder) / "model.safetensors")
    own = whole.state_dict()
    assert weights.keys() == {key for key in own if key.startswith(("text_model.", "text_projection."))}
    whole.load_state_dict({**own, **weights}, strict=True)
    return whole


def test_stock_model_is_taken_as_it_is(tokenizer, tmp_path):
    model = tiny_text_model()
    export_text_encoder(model, tmp_path, tokenizer=tokenizer)
    assert torch.equal(
        embed(CLIPTextModelWithProjection.from_pretrained(tmp_path), tokenizer), embed(model, tokenizer)
    )


def test_half_precision_stays(tokenizer, tmp_path):
    model = tiny_text_model(CLIPTextModelForRTD).to(torch.bfloat16)
    export_text_encoder(model, tmp_path, tokenizer=tokenizer)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert verify_drop_in(tmp_path, model, tokenizer=tokenizer).max_difference == 0


@pytest.mark.parametrize("model_class", [CLIPTextModelForRTD, CLIPTextModelWithProjection])
def test_adapters_are_merged_on_a_copy_and_written_beside(model_class, tokenizer, tmp_path):
    from peft import PeftModel

    base = embed(tiny_text_model(), tokenizer)
    source = tiny_text_model(model_class)
    source.config._name_or_path = source.name_or_path = str(tmp_path)  # the base was loaded from a local folder
    model = lora(source)
    adapted = embed(model, tokenizer)
    assert (adapted - base).abs().max() > 0.1
    before = {key: value.clone() for key, value in model.state_dict().items()}

    folder = export_text_encoder(model, tmp_path / "out", tokenizer=tokenizer)
    assert verify_drop_in(folder, model, tokenizer=tokenizer).max_difference < 1e-5
    torch.testing.assert_close(
        embed(CLIPTextModelWithProjection.from_pretrained(folder), tokenizer), adapted, rtol=0, atol=1e-5
    )
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    adapter = folder / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    again = PeftModel.from_pretrained(tiny_text_model(), adapter).eval()
    assert torch.equal(embed(again, tokenizer), adapted)

    export_text_encoder(model, folder, tokenizer=tokenizer, base_model="somebody/clip")
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/clip"
    export_text_encoder(tiny_text_model(), folder, tokenizer=tokenizer)
    assert not adapter.exists()  # those weights had none


def test_exporting_twice_replaces_our_files_and_leaves_the_rest(model, tokenizer, tmp_path):
    folder = prepare_output_dir(tmp_path)
    (folder / "metrics.json").write_text("{}")
    abandoned = folder / ".partial-killed"
    abandoned.mkdir()
    export_text_encoder(model, folder, tokenizer=tokenizer)
    with torch.no_grad():
        model.text_projection.weight.mul_(2)
    export_text_encoder(model, folder, tokenizer=tokenizer)
    assert verify_drop_in(folder, model, tokenizer=tokenizer).max_difference == 0
    assert (folder / "metrics.json").read_text() == "{}"
    assert not abandoned.exists()


def test_interrupted_export_leaves_the_old_files(model, tokenizer, tmp_path, monkeypatch):
    export_text_encoder(model, tmp_path, tokenizer=tokenizer)
    old = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    broken = copy.deepcopy(tokenizer)
    monkeypatch.setattr(type(broken), "save_pretrained", refuse(KeyboardInterrupt()))
    with torch.no_grad():
        model.text_projection.weight.mul_(2)
    with pytest.raises(KeyboardInterrupt):
        export_text_encoder(model, tmp_path, tokenizer=broken)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == old


def test_what_is_no_text_encoder_with_projection_is_refused(tmp_path):
    model = CLIPTextModel(tiny_text_model().config)
    parallel = torch.nn.DataParallel(tiny_text_model())
    for wrong, name in ((model, "CLIPTextModel"), (parallel, "DataParallel"), (lora(model), "CLIPTextModel")):
        with pytest.raises(TypeError, match=f"`CLIPTextModelWithProjection|is a `{name}`.*unwrap_model"):
            export_text_encoder(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    with torch.no_grad():
        model.text_projection.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite in 1 of \d+ tensors, first in\s+`text_projection.weight`"):
        export_text_encoder(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------------- proof
@pytest.fixture
def exported(tokenizer, tmp_path):
    model = tiny_text_model(CLIPTextModelForRTD)
    return export_text_encoder(model, tmp_path / "out", tokenizer=tokenizer), model


def rewrite(folder, change, metadata=None):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors), file, metadata={"format": "pt"} if metadata is None else metadata)


def test_proof_of_a_good_folder(tokenizer, tmp_path):
    model = tiny_text_model(CLIPTextModelForRTD, attention_dropout=0.5).train()
    folder = export_text_encoder(model, tmp_path, tokenizer=tokenizer)
    model.text_model.encoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    report = verify_drop_in(folder, model, tokenizer=tokenizer)
    assert report.max_difference == 0
    assert report.num_tensors == len(model.state_dict())
    assert report.num_parameters == model.num_parameters()
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2


def test_other_weights_are_noticed(exported, tokenizer):
    folder, model = exported
    with torch.no_grad():
        model.text_projection.weight.add_(0.01)
    difference = (
        (embed(model, tokenizer, list(PROBE_TEXTS)) - embed(tiny_text_model(), tokenizer, list(PROBE_TEXTS)))
        .abs()
        .max()
    )
    with pytest.raises(ValueError, match=re.escape(f"largest difference {difference:.3g}, accepted 1e-05")):
        verify_drop_in(folder, model, tokenizer=tokenizer)
    assert verify_drop_in(folder, model, tokenizer=tokenizer, tolerance=10.0).max_difference == difference


def test_nan_is_no_agreement(exported, tokenizer):
    folder, model = exported
    with torch.no_grad():
        model.text_projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="largest difference nan"):
        verify_drop_in(folder, model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {key: value for key, value in tensors.items() if "fc1" not in key}, r"missing_keys.*fc1"),
        (lambda tensors: {**tensors, "text_model.extra": torch.zeros(1)}, r"unexpected_keys.*text_model\.extra"),
        (
            lambda tensors: {key.removeprefix("text_model."): value for key, value in tensors.items()},
            r"36 of 37 keys .* do not start with `text_model\.`",
        ),
    ],
    ids=["missing", "unexpected", "flat"],
)
def test_wrong_keys_are_noticed(exported, tokenizer, change, message):
    folder, model = exported
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        verify_drop_in(folder, model, tokenizer=tokenizer)


def test_missing_metadata_is_noticed(exported, tokenizer):
    folder, model = exported
    rewrite(folder, lambda tensors: tensors, metadata={"made": "elsewhere"})
    with pytest.raises(ValueError, match="must say `format: pt`"):
        verify_drop_in(folder, model, tokenizer=tokenizer)


def test_other_tokenizer_is_noticed(exported, tokenizer):
    from helpers import build_tokenizer

    folder, model = exported
    build_tokenizer([]).save_pretrained(folder)
    with pytest.raises(ValueError, match="The tokenizer in .* turns 'a photo of a cat' into"):
        verify_drop_in(folder, model, tokenizer=tokenizer)


def test_damaged_files_are_named(exported, tokenizer):
    folder, model = exported
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-10], whole[:20], b"", b"\xff" * 100):
        file.write_bytes(damaged)
        for read in (lambda: check_safetensors(folder), lambda: verify_drop_in(folder, model, tokenizer=tokenizer)):
            with pytest.raises(ValueError, match=rf"`{file}` \({len(damaged):,} bytes\) is cut off or damaged.*again"):
                read()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"No safetensors file at `{folder}`.*Expected"):
        check_safetensors(folder)
    with pytest.raises(FileNotFoundError, match="No safetensors file"):
        check_safetensors(file)


def test_header_of_a_file_or_a_folder(exported):
    folder, model = exported
    assert check_safetensors(folder) == check_safetensors(folder / "model.safetensors")
    names, metadata = check_safetensors(folder)
    assert set(names) == set(model.state_dict()) and metadata == {"format": "pt"}


# ----------------------------------------------------------------------------------------------- transformers 4.57
READER = """
import json, sys
import torch, transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

folder, clip_folder, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(texts, padding=True, return_tensors="pt")
projected, projected_info = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True)
bare, bare_info = CLIPTextModel.from_pretrained(folder, output_loading_info=True)
whole, whole_info = CLIPModel.from_pretrained(clip_folder, output_loading_info=True)
swapped = CLIPModel(whole.config).eval()
swapped.load_state_dict({**swapped.state_dict(), **load_file(folder + "/model.safetensors")}, strict=True)
with torch.no_grad():
    embeds = {
        "CLIPTextModelWithProjection": projected(**inputs).text_embeds,
        "CLIPTextModel": projected.text_projection(bare(**inputs).pooler_output),
        "CLIPModel": whole.get_text_features(**inputs),
        "CLIPModel with the tensors swapped in": swapped.get_text_features(**inputs),
    }
print(json.dumps({
    "version": transformers.__version__,
    "ids": tokenizer(texts)["input_ids"],
    "slow_ids": CLIPTokenizer.from_pretrained(folder)(texts)["input_ids"],
    "embeds": {name: value.tolist() for name, value in embeds.items()},
    "missing": [sorted(info["missing_keys"]) for info in (projected_info, bare_info, whole_info)],
    "unexpected": [sorted(info["unexpected_keys"]) for info in (projected_info, bare_info, whole_info)],
}))
"""


@pytest.fixture(scope="session")
def old_transformers(request) -> Path:
    """A folder with transformers 4.57, to be put before this environment; made once and kept in pytest's cache."""
    name = "-".join(
        ["transformers", *OLD_TRANSFORMERS.values(), f"py{sys.version_info.major}{sys.version_info.minor}"]
    )
    return installed_beside(request, name, [f"{package}=={version}" for package, version in OLD_TRANSFORMERS.items()])


@pytest.mark.slow
def test_transformers_4_reads_the_folder(old_transformers, model, tokenizer, tmp_path):
    expected = embed(model, tokenizer)
    folder = export_text_encoder(model, tmp_path / "text_encoder", tokenizer=tokenizer)
    clip_folder = tmp_path / "clip"
    full_clip(folder).save_pretrained(clip_folder)

    environment = {**os.environ, "PYTHONPATH": str(old_transformers)}
    arguments = [str(folder), str(clip_folder), json.dumps(TEXTS)]
    done = subprocess.run(
        [sys.executable, "-c", READER, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read["version"] == OLD_TRANSFORMERS["transformers"]
    assert read["ids"] == tokenizer(TEXTS)["input_ids"]
    assert read["slow_ids"] == tokenizer(TEXTS)["input_ids"]
    assert read["missing"] == [[], [], []]
    assert read["unexpected"] == [[], ["text_projection.weight"], []]
    for embeds in read["embeds"].values():
        torch.testing.assert_close(torch.tensor(embeds), expected, rtol=0, atol=1e-6)
    assert len(read["embeds"]) == 4


SIGLIP_READER = """
import json, sys
import torch, transformers
from transformers import SiglipTextModel, SiglipTokenizer

folder, texts = sys.argv[1], json.loads(sys.argv[2])
model, info = SiglipTextModel.from_pretrained(folder, output_loading_info=True)
rows = SiglipTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=64)["input_ids"]
with torch.no_grad():
    embeds = model.eval()(torch.tensor(rows)).pooler_output.tolist()
lost = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
print(json.dumps({"version": transformers.__version__, "rows": rows, "embeds": embeds, "lost": lost}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stock", [False, True], ids=["trained", "stock"])
def test_transformers_4_reads_a_siglip_folder(old_transformers, stock, tmp_path):
    model, tokenizer = tiny_backbone(SiglipTextModelForRTD), siglip_tokenizer(tmp_path / "tokenizer")
    model = model.to_stock() if stock else model
    folder = export_text_encoder(model, tmp_path / "text_encoder", tokenizer=tokenizer)
    environment = {**os.environ, "PYTHONPATH": str(old_transformers)}
    done = subprocess.run(
        [sys.executable, "-c", SIGLIP_READER, str(folder), json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["version"] == OLD_TRANSFORMERS["transformers"] and read["lost"] == []
    rows = tokenizer(TEXTS, padding="max_length", max_length=64)["input_ids"]
    assert read["rows"] == rows
    with torch.no_grad():
        expected = model(torch.tensor(rows)).pooler_output
    torch.testing.assert_close(torch.tensor(read["embeds"]), expected, rtol=0, atol=1e-5)
