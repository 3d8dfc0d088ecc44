"""What is published: every part of it, every class and library that loads it, and the way back into a search."""

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from backbone_models import siglip_tokenizer, tiny_backbone
from processes import installed_beside
from safetensors.torch import load_file
from test_hub import OLD_TRANSFORMERS, old_transformers  # noqa: F401 (a fixture)
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection
from world_models import random_clip, random_projection, save_random_clip, world_tokenizer

from rtd_hf import (
    CIREncoder,
    CLIPTextModelForRTD,
    ComposedImageRetriever,
    ImageToWordProjection,
    RTDTrainingArguments,
    SiglipTextModelForRTD,
    load_cir_encoder,
    write_repository,
)
from rtd_hf.hub import (
    EnergyMeter,
    cached_revision,
    card_of,
    describe_environment,
    fingerprint_triplets,
    peak_memory_gib,
)
from rtd_hf.options import RTDOptions
from rtd_hf.shapes import ASSETS
from rtd_hf.shapes.clip import build_image_processor
from rtd_hf.shapes.pictures import picture
from rtd_hf.shapes.scenes import sample_scene


EXAMPLES = Path(__file__).parents[1] / "examples"
TEXTS = ["a red star", "a photo of $ that is blue", "Two green squares!", ""]
METRICS = {
    "before": {"cirr_recall@1": 20.0, "shapes_recall@10": 30.0},
    "after": {"cirr_recall@1": 24.5, "shapes_recall@10": 60.0},
    "gain": {"cirr_recall@1": {"gain": 4.5, "low": 4.0, "high": 5.0}},
    "run": {"seed": 3, "command": "accelerate launch examples/train_rtd.py"},
    "environment": {"date": "2026-01-02", "processes": 2},
}
RECIPE = {"clip_model": "them/clip", "learning_rate": 1e-5, "benchmarks": ["shapes"], "note": "a: b # c"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_random_clip(tmp_path_factory.mktemp("clip"))


def encoder(clip: Path):
    return CLIPTextModelForRTD.from_pretrained(clip)


def lora(model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def write(folder: Path, model, *, method: str = "lincir", projection=None, metrics=METRICS, **options) -> Path:
    facts = {"license": "mit", "base_model": "them/clip", "recipe": RECIPE, **options}
    parts = {"tokenizer": world_tokenizer(), "image_processor": build_image_processor()}
    projection = projection or random_projection(method)
    return write_repository(folder, model, projection=projection, metrics=metrics, **{**parts, **facts})


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def pictures(number: int) -> list:
    import random

    rng = random.Random(1)
    return [picture(sample_scene(rng, "held_out"), seed) for seed in range(number)]


def embed(model, texts=TEXTS):
    with torch.no_grad():
        return model(**world_tokenizer()(texts, padding=True, return_tensors="pt")).text_embeds


# ----------------------------------------------------------------------------------------------------------- its parts
def test_everything_lies_in_the_folder(clip, tmp_path):
    folder = write(tmp_path / "repository", encoder(clip), dataset_ids={"cirr": "org/cirr"})
    encoder_files = {"config.json", "model.safetensors"}
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    others = {"preprocessor_config.json", "metrics.json", "recipe.yaml", "README.md", ".rtd_hf.json"}
    others |= {"modules.json", "config_sentence_transformers.json", "sentence_rtd_config.json"}
    parts = {"projection/config.json", "projection/model.safetensors", ".eval_results/cirr.yaml"}
    assert files_of(folder) == encoder_files | tokenizer_files | others | parts

    metrics = json.loads((folder / "metrics.json").read_text())
    assert {key: metrics[key] for key in METRICS} == METRICS
    assert metrics["drop_in"] == {"max difference": 0.0, "parameters": encoder(clip).num_parameters()}
    recipe = (folder / "recipe.yaml").read_text()
    assert yaml.safe_load(recipe) == RECIPE
    assert "# " in recipe.splitlines()[0] and "--num_processes 2" in recipe
    assert str(card_of(folder)) == (folder / "README.md").read_text()
    assert "me/published" in str(card_of(folder, model_id="me/published"))


def test_results_of_a_hub_data_set_are_read_back(clip, tmp_path):
    from huggingface_hub import parse_eval_result_entries

    folder = write(tmp_path / "repository", encoder(clip), dataset_ids={"cirr": "org/cirr"})
    (entry,) = parse_eval_result_entries(yaml.safe_load((folder / ".eval_results" / "cirr.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value, entry.date) == ("org/cirr", "recall@1", 24.5, "2026-01-02")
    write(folder, encoder(clip))
    assert not (folder / ".eval_results").exists()


def test_adapter_is_written_with_its_base(clip, tmp_path):
    from peft import PeftModel

    model = lora(encoder(clip))
    folder = write(tmp_path / "repository", model, base_revision="0123abc")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("them/clip", "0123abc")
    assert "the adapter alone lies in `adapter/`" in (folder / "README.md").read_text()
    again = PeftModel.from_pretrained(encoder(clip), folder / "adapter").eval()
    torch.testing.assert_close(embed(again), embed(CLIPTextModelWithProjection.from_pretrained(folder)))
    assert (embed(again) - embed(encoder(clip))).abs().max() > 0.1

    write(folder, encoder(clip))  # now all weights, no adapter
    assert not (folder / "adapter").exists() and "adapter/" not in (folder / "README.md").read_text()


def test_projection_names_the_base_and_no_path(clip, tmp_path):
    projection = random_projection("lincir")
    projection.config.base_model = str(clip)
    folder = write(tmp_path / "repository", encoder(clip), projection=projection, base_revision="0123abc")
    config = json.loads((folder / "projection" / "config.json").read_text())
    assert (config["base_model"], config["base_revision"]) == ("them/clip", "0123abc")
    again = ImageToWordProjection.from_pretrained(folder, subfolder="projection")
    assert all(value.equal(again.state_dict()[key]) for key, value in projection.state_dict().items())
    write(folder, encoder(clip), projection=projection, base_model=None)
    assert json.loads((folder / "projection" / "config.json").read_text())["base_model"] is None
    assert projection.config.base_model == str(clip)  # the caller's own is as it was


def test_revision_is_that_of_the_last_download(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--them--clip"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    assert cached_revision("them/clip", cache_dir=tmp_path) is None  # another revision than `main`
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    assert cached_revision("them/clip", cache_dir=tmp_path) == commit
    assert cached_revision("me/clip", cache_dir=tmp_path) is None
    assert cached_revision(None) is None and cached_revision("shapes") is None


@pytest.mark.parametrize("base", ["/home/me/clip", "./clip", "a/b/c", "~/clip", "", "with space"])
def test_base_that_others_cannot_load_is_refused_first(clip, tmp_path, base):
    with pytest.raises(ValueError, match="`base_model` must be a Hub id"):
        write(tmp_path / "repository", encoder(clip), base_model=base)
    assert not (tmp_path / "repository").exists()


def test_base_that_is_a_folder_here_is_refused(clip, tmp_path, monkeypatch):
    (tmp_path / "them" / "clip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`base_model` must be a Hub id"):
        write(tmp_path / "repository", encoder(clip), base_model="them/clip")


@pytest.mark.parametrize(
    "wrong", [{"license": ""}, {"metrics": {"results": {}}}, {"dataset_ids": {"circo": "org/circo"}}]
)
def test_what_the_card_refuses_is_refused_first(clip, tmp_path, wrong):
    with pytest.raises(ValueError, match="license|unknown parts|circo"):
        write(tmp_path / "repository", encoder(clip), **wrong)
    assert not (tmp_path / "repository").exists()


def test_card_comes_last(clip, tmp_path, monkeypatch):
    folder = write(tmp_path / "repository", encoder(clip))

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageToWordProjection, "save_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        write(folder, encoder(clip))
    assert not (folder / "README.md").exists()


# -------------------------------------------------------------------------------------------------------- who loads it
def test_stock_classes_load_it(clip, tmp_path):
    model = lora(encoder(clip))
    expected = embed(model)
    folder = write(tmp_path / "repository", model)
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    projected = CLIPTextModelWithProjection.from_pretrained(folder)
    bare = CLIPTextModel.from_pretrained(folder)
    whole = CLIPModel(random_clip().config).eval()
    # The published tensors are a part of the whole model's, by their own names.
    missing, unexpected = whole.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert unexpected == [] and all(key.startswith(("vision_model", "visual_", "logit_scale")) for key in missing)
    with torch.no_grad():
        found = {
            "projected": projected(**inputs).text_embeds,
            "bare": projected.text_projection(bare(**inputs).pooler_output),
            "whole": whole.text_projection(whole.text_model(**inputs).pooler_output),
        }
    for name, embeds in found.items():
        torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-5, msg=name)
    image = pictures(1)[0]
    pixels = AutoImageProcessor.from_pretrained(folder)([image], return_tensors="pt")["pixel_values"]
    assert pixels.equal(build_image_processor()([image], return_tensors="pt")["pixel_values"])


def test_slot_of_a_pipeline(clip, tmp_path):
    """Diffusers loads `CLIPTextModel` from a sub-folder, and reads its hidden states."""
    model = encoder(clip)
    folder = write(tmp_path / "repository", model)
    pipeline = tmp_path / "pipeline"
    shutil.copytree(folder, pipeline / "text_encoder")
    inputs = world_tokenizer()(TEXTS, padding="max_length", return_tensors="pt")
    loaded = CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder")
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
        found = loaded(**inputs, output_hidden_states=True)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.hidden_states[-2], expected.hidden_states[-2])  # Stable Diffusion XL reads this one
    tokenizer = AutoTokenizer.from_pretrained(pipeline, subfolder="text_encoder")
    assert tokenizer(TEXTS)["input_ids"] == world_tokenizer()(TEXTS)["input_ids"]


def test_repository_of_a_siglip_encoder(tmp_path):
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipTextModel

    model, tokenizer = tiny_backbone(SiglipTextModelForRTD), siglip_tokenizer(tmp_path / "tokenizer")
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    whole = SiglipModel(SiglipConfig(text_config=model.config.to_dict(), vision_config=vision)).eval()
    whole.save_pretrained(tmp_path / "siglip")
    processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    folder = write(
        tmp_path / "repository",
        model,
        projection=ImageToWordProjection.build("lincir", model.projection_dim, model.config.hidden_size),
        tokenizer=tokenizer,
        image_processor=processor,
        base_model="google/siglip-base-patch16-224",
    )
    rows = torch.tensor(tokenizer(TEXTS, padding="max_length", max_length=64)["input_ids"])
    with torch.no_grad():
        loaded = SiglipTextModel.from_pretrained(folder)(rows).pooler_output
        torch.testing.assert_close(loaded, model(rows).pooler_output, rtol=0, atol=1e-6)
    assert "SiglipTextModel.from_pretrained" in (folder / "README.md").read_text()
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"].startswith("Siglip")

    retriever, images = load_cir_encoder(folder, base_model=tmp_path / "siglip"), pictures(2)
    with torch.no_grad():
        expected = whole.get_image_features(**processor(images, return_tensors="pt")).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(retriever.encode_images(images), expected, rtol=0, atol=1e-5)
    queries = retriever.encode_queries(retriever.embed_references(images), ["is red", "is blue"])
    assert queries.shape == (2, 24) and (queries[0] - queries[1]).abs().max() > 1e-3

    searching = ComposedImageRetriever.from_pretrained(folder, base_model=tmp_path / "siglip")
    searching.index(expected, ids=["first", "second"])  # that its own image tower has made
    found = searching.search(images, ["is red", "is blue"], 2, exclude_reference=False)
    scores = (queries @ expected.T).sort(descending=True)
    torch.testing.assert_close(torch.tensor([[hit.score for hit in hits] for hits in found]), scores.values)
    assert [[hit.id for hit in hits] for hits in found] == [
        [["first", "second"][row] for row in rows] for rows in scores.indices.tolist()
    ]


OLD_READER = """
import json, sys
import torch, transformers
from transformers import AutoImageProcessor, AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

folder, pipeline, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
projected, info = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True)
slot = CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder")
processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
pixels = processor([torch.zeros(3, 50, 60, dtype=torch.uint8).numpy()], return_tensors="pt")["pixel_values"]
with torch.no_grad():
    embeds = {
        "root": projected(**inputs).text_embeds.tolist(),
        "slot": projected.text_projection(slot(**inputs).pooler_output).tolist(),
    }
lost = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
image = {"kind": type(processor).__name__, "mean": pixels.mean().item()}
print(json.dumps({"version": transformers.__version__, "embeds": embeds, "lost": lost, **image}))
"""


@pytest.mark.slow
def test_transformers_4_loads_it(old_transformers, clip, tmp_path):  # noqa: F811 (the fixture)
    model = lora(encoder(clip))
    folder = write(tmp_path / "repository", model)
    shutil.copytree(folder, tmp_path / "pipeline" / "text_encoder")
    environment = {**os.environ, "PYTHONPATH": str(old_transformers)}
    arguments = [str(folder), str(tmp_path / "pipeline"), json.dumps(TEXTS)]
    command = [sys.executable, "-c", OLD_READER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["version"] == OLD_TRANSFORMERS["transformers"] and read["lost"] == []
    for embeds in read["embeds"].values():
        torch.testing.assert_close(torch.tensor(embeds), embed(model), rtol=0, atol=1e-5)
    black = build_image_processor()([torch.zeros(3, 50, 60, dtype=torch.uint8).numpy()], return_tensors="pt")
    assert read["kind"] == "CLIPImageProcessor"
    assert read["mean"] == pytest.approx(black["pixel_values"].mean().item(), abs=1e-5)


DIFFUSERS = ("diffusers==0.42.1", "importlib_metadata==8.7.0", "zipp==3.23.0")
PIPELINE = """
import json, shutil, sys
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer

clip, repository, pipeline, text = sys.argv[1:]
original = CLIPTextModel.from_pretrained(clip)
width = original.config.hidden_size
unet = UNet2DConditionModel(
    sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), norm_num_groups=8, layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=width, attention_head_dim=8,
)
vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4)
StableDiffusionPipeline(
    vae=vae, text_encoder=original, tokenizer=CLIPTokenizer.from_pretrained(clip), unet=unet,
    scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
).save_pretrained(pipeline)
shutil.rmtree(pipeline + "/text_encoder")
shutil.copytree(repository, pipeline + "/text_encoder")
loaded = StableDiffusionPipeline.from_pretrained(pipeline)
given = StableDiffusionPipeline.from_pretrained(pipeline, text_encoder=CLIPTextModel.from_pretrained(repository))
with torch.no_grad():
    states = [pipe.encode_prompt(text, "cpu", 1, False)[0][0] for pipe in (loaded, given)]
    rows = loaded.tokenizer(text, padding="max_length", max_length=loaded.tokenizer.model_max_length)
image = loaded(text, num_inference_steps=1, height=8, width=8, output_type="np").images
print(json.dumps({"ids": rows["input_ids"], "states": [part.tolist() for part in states], "shape": image.shape}))
"""


@pytest.fixture(scope="session")
def diffusers(request) -> Path:
    """A folder with diffusers, to be put before this environment; made once and kept in pytest's cache."""
    return installed_beside(request, DIFFUSERS[0].replace("==", "-"), list(DIFFUSERS))


@pytest.mark.slow
def test_diffusers_takes_it_for_its_text_encoder(diffusers, clip, tmp_path):
    model = encoder(clip)
    with torch.no_grad():
        model.text_model.final_layer_norm.weight.mul_(1.5)  # trained, so to speak
    folder = write(tmp_path / "repository", model)
    arguments = [str(clip), str(folder), str(tmp_path / "pipeline"), "a photo of a red star"]
    environment = {**os.environ, "PYTHONPATH": str(diffusers)}
    command = [sys.executable, "-c", PIPELINE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    with torch.no_grad():
        expected = model(torch.tensor([read["ids"]])).last_hidden_state[0]
    for states in read["states"]:
        torch.testing.assert_close(torch.tensor(states), expected, rtol=0, atol=1e-5)
    assert read["shape"] == [1, 8, 8, 3]


# ----------------------------------------------------------------------------------------------- the way into a search
@pytest.mark.parametrize("method", ["lincir", "context_i2w"])
def test_retriever_of_a_repository_is_that_of_the_run(clip, method, tmp_path):
    model = encoder(clip)
    original = encoder(clip)
    with torch.no_grad():
        model.text_projection.weight.mul_(-1.5)
    projection = random_projection(method)
    folder = write(tmp_path / "repository", model, projection=projection)
    expected = CIREncoder(
        model,
        CLIPTextModelForRTD.load_vision_model(clip),
        projection=projection,
        tokenizer=world_tokenizer(),
        image_processor=build_image_processor(),
        context_encoder=original if projection.needs_context else None,
    )
    found = load_cir_encoder(folder, base_model=clip, batch_size=2)
    images = pictures(3)
    assert found.batch_size == 2
    torch.testing.assert_close(found.encode_images(images), expected.encode_images(images))
    texts = ["is red", "has a star", "is larger"]
    torch.testing.assert_close(
        found.encode_queries(found.embed_references(images), texts),
        expected.encode_queries(expected.embed_references(images), texts),
    )


def test_repository_of_the_offline_world_knows_its_base(tmp_path):
    model = CLIPTextModelForRTD.from_pretrained(ASSETS / "clip")
    projection = ImageToWordProjection.from_pretrained(ASSETS / "lincir")
    folder = write(tmp_path / "repository", model, projection=projection, base_model="shapes",
                   tokenizer=AutoTokenizer.from_pretrained(ASSETS / "clip"))  # fmt: skip
    retriever = load_cir_encoder(folder)
    weights = load_file(ASSETS / "clip" / "model.safetensors")
    assert retriever.vision_model.state_dict()["visual_projection.weight"].equal(weights["visual_projection.weight"])
    assert retriever.encode_images(pictures(2)).shape == (2, model.config.projection_dim)


def test_base_that_nobody_named_is_asked_for(clip, tmp_path):
    folder = write(tmp_path / "repository", encoder(clip), base_model=None)
    with pytest.raises(ValueError, match=r"does not say which model it was trained from.*as `base_model`"):
        load_cir_encoder(folder)
    assert 'base_model="path/to/the/clip/it/started/from"' in (folder / "README.md").read_text()
    with pytest.raises(FileNotFoundError, match="There is no folder `.*nowhere`, and it can be no Hub id"):
        load_cir_encoder(tmp_path / "nowhere", base_model=clip)
    with pytest.raises(
        FileNotFoundError, match=r"is no repository .* no `projection/config\.json`.* make a `CIREncoder`"
    ):
        load_cir_encoder(clip)


def test_code_in_the_card_runs(tmp_path, monkeypatch, capsys):
    from test_model_card import blocks

    model = CLIPTextModelForRTD.from_pretrained(ASSETS / "clip")
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "clip")
    projection = ImageToWordProjection.from_pretrained(ASSETS / "lincir")
    options = {"projection": projection, "tokenizer": tokenizer, "base_model": "shapes"}
    folder = write(tmp_path / "repository", model, **options)
    (tmp_path / "pictures").mkdir()
    images = pictures(7)
    for number, image in enumerate(images):
        image.save(tmp_path / "pictures" / f"{number}.png")
    images[3].convert("RGB").save(tmp_path / "reference.jpg")
    monkeypatch.chdir(tmp_path)

    load, compose = blocks((folder / "README.md").read_text(), "python")
    loaded = {}
    exec(load, loaded)
    inputs = loaded["tokenizer"](TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded["text_encoder"].eval()(**inputs).text_embeds, model(**inputs).text_embeds)
    capsys.readouterr()
    found = {}
    exec(compose, found)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    encoder = load_cir_encoder(folder)
    query = encoder.encode_queries(encoder.embed_references(["reference.jpg"]), ["is red instead of blue"])
    order = (query @ encoder.encode_images(images).T)[0].argsort(descending=True)[:5].tolist()
    assert [Path(line.split()[1]).stem for line in lines] == [str(place) for place in order]
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)


# --------------------------------------------------------------------------------------------------- the circumstances
def test_fingerprint_is_of_the_texts_in_their_order(monkeypatch):
    from datasets import Dataset

    names = ("reference_caption", "conditioning_caption", "target_caption")
    rows = [dict(zip(names, (f"réf {n}", f"cond {n}", f"tgt {n}"), strict=True)) for n in range(7)]
    text = "".join(f"{row[name]}\x1f" for row in rows for name in names)
    expected = {"rows": 7, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    dataset = Dataset.from_list(rows)
    assert fingerprint_triplets(dataset) == expected
    monkeypatch.setattr("rtd_hf.hub.circumstances._ROWS_AT_ONCE", 2)
    assert fingerprint_triplets(dataset) == expected
    renamed = dataset.rename_columns(
        dict(zip(names, ("original_prompt", "edit_prompt", "edited_prompt"), strict=True))
    )
    assert fingerprint_triplets(renamed) == expected
    more = dataset.add_column("score", list(range(7)))
    assert fingerprint_triplets(more) == expected
    assert fingerprint_triplets(dataset.select([1, 0, 2, 3, 4, 5, 6]))["sha256"] != expected["sha256"]
    assert fingerprint_triplets(dataset.select(range(6)))["sha256"] != expected["sha256"]


def test_environment_names_versions_and_no_one():
    import getpass
    import platform
    import socket

    import transformers

    found = describe_environment(processes=3)
    assert found["processes"] == 3 and found["threads"] == torch.get_num_threads()
    assert found["versions"]["transformers"] == transformers.__version__
    assert found["python"] == platform.python_version() and found["gpus"] == []
    told = json.dumps(found)
    assert socket.gethostname() not in told and f'"{getpass.getuser()}"' not in told
    assert 0.05 < peak_memory_gib() < 1000


class TestEnergy:
    def package(self, powercap: Path, name: str, label: str, microjoules: int, most: int = 10_000_000) -> Path:
        zone = powercap / name
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{label}\n")
        (zone / "energy_uj").write_text(f"{microjoules}\n")
        (zone / "max_energy_range_uj").write_text(f"{most}\n")
        return zone / "energy_uj"

    def test_packages_are_added_up_each_once(self, tmp_path):
        first = self.package(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
        second = self.package(tmp_path, "intel-rapl:1", "package-1", 9_000_000)
        part = self.package(tmp_path, "intel-rapl:0:0", "core", 500_000)
        self.package(tmp_path, "intel-rapl:2", "psys", 100)
        with EnergyMeter(gpus=False, powercap=tmp_path) as meter:
            first.write_text("4000000")
            part.write_text("3000000")
            meter.update()
            second.write_text("2000000")  # overflown at 10 J
        assert meter.joules == pytest.approx(3 + 3)
        assert meter.watt_hours == pytest.approx(6 / 3600)
        assert meter.scope == "2 CPU packages (RAPL)"

    def test_machine_without_counters_is_not_measured(self, tmp_path):
        with EnergyMeter(gpus=False, powercap=tmp_path / "none") as meter:
            pass
        assert meter.watt_hours is None and meter.scope == ""

    def test_counters_that_only_root_may_read_are_not_measured(self, tmp_path, monkeypatch):
        file = self.package(tmp_path, "intel-rapl:0", "package-0", 1)
        read = Path.read_text

        def refuse(path, *args, **kwargs):
            if path == file:
                raise PermissionError(13, "Permission denied")
            return read(path, *args, **kwargs)

        monkeypatch.setattr(Path, "read_text", refuse)
        assert EnergyMeter(gpus=False, powercap=tmp_path).watt_hours is None

    def test_gpus_by_their_own_counters(self, tmp_path, monkeypatch):
        millijoules = {"GPU-a": 5000, "GPU-b": 100}
        nvml = types.ModuleType("pynvml")
        nvml.NVMLError = type("NVMLError", (Exception,), {})
        nvml.nvmlInit = lambda: None
        nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
        nvml.nvmlDeviceGetTotalEnergyConsumption = lambda board: millijoules[board]
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        boards = [types.SimpleNamespace(uuid="a"), types.SimpleNamespace(uuid="b")]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", boards.__getitem__)
        with EnergyMeter(powercap=tmp_path) as meter:
            millijoules |= {"GPU-a": 7000, "GPU-b": 400}
        assert meter.joules == pytest.approx(2.3) and meter.scope == "2 GPUs (NVML)"


# ---------------------------------------------------------------------------------------------------------- the recipe
@pytest.fixture
def script(monkeypatch) -> dict:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / "train_rtd.py"), run_name="not main")


def parsed(script: dict, *arguments: str):
    kinds = (script["ScriptArguments"], script["ModelArguments"], RTDTrainingArguments)
    return script["parse"](kinds, arguments, default_recipe=EXAMPLES / "recipes" / "shapes.yaml", description="")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--use_peft --lora_r 4 --lora_dropout 0.1 --preservation shapes,num_images=20 shapes,seed=3 --seed 7",
        "--config lincir_siglip2_base.yaml --license mit --benchmarks shapes --benchmark_datasets shapes=org/name",
        "--lr_scheduler_type polynomial --lr_scheduler_kwargs {\"power\":2.0} --anchored false --packing false",
        "--gradient_accumulation_steps 2 --use_cpu true --bf16 true --optim adafactor --weight_decay 0 --seed 1",
    ],
    ids=["defaults", "adapters", "another recipe", "nested", "arguments of HF"],
)  # fmt: skip
def test_recipe_is_understood_as_the_run_was(script, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES / "recipes")
    first = parsed(script, *arguments.split(), "--output_dir", "outputs/run")
    names = script["given_names"]([*arguments.split(), "--output_dir=x"], default_recipe=script["SHAPES"])
    recipe = script["resolved_recipe"](first, given=names, always=(RTDOptions,))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    second = parsed(script, "--config", str(tmp_path / "recipe.yaml"))
    hidden = {"config", "logging_dir", "run_name"}
    for before, after in zip(first, second, strict=True):
        names = [item.name for item in fields(before) if item.init and item.name not in hidden]
        assert len(names) > 3
        for name in names:
            assert getattr(after, name, None) == getattr(before, name, None), name
    left_out = {"mini_batch_size", "max_length", "hub_license", "stop_when"}  # none given
    assert {item.name for item in fields(RTDOptions)} <= {*recipe, *left_out}
    assert "config" not in recipe


def test_recipe_pushes_nothing_and_names_no_machine(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "triplets.jsonl").touch()
    values = script["ScriptArguments"](
        clip_model="/models/clip",
        triplets=str(tmp_path / "data" / "triplets.jsonl"),
        preservation=[f"coco={tmp_path}/captions.json,images=/big/val2017,num_images=10"],
    )
    args = RTDTrainingArguments(
        output_dir=str(tmp_path / "outputs" / "run"), hub_token="hf_secret", hub_model_id="me/it", report_to="none"
    )
    given = {"hub_token", "hub_model_id", "report_to"}
    recipe = script["resolved_recipe"]((values, args), given=given, always=(RTDOptions,))
    assert recipe["clip_model"] == "clip" and recipe["triplets"] == "data/triplets.jsonl"
    assert recipe["preservation"] == ["coco=captions.json,images=val2017,num_images=10"]
    assert recipe["output_dir"] == "outputs/run"
    told = yaml.safe_dump(recipe)
    assert "hf_secret" not in told and "me/it" not in told and str(tmp_path) not in told and "/models" not in told


def test_recipe_of_a_run_repeats_it(tmp_path, monkeypatch):
    from test_examples import run

    from rtd_hf import BENCHMARKS

    load = BENCHMARKS["shapes_many"]
    monkeypatch.setitem(BENCHMARKS, "shapes_many", lambda root=None, **options: load(num_queries=12))
    short = "--max_steps 3 --num_triplets 300 --warmup_steps 1 --per_device_train_batch_size 16 --disable_tqdm true"
    given = "--benchmarks shapes_many --preservation shapes,num_images=12 --use_peft --seed 5"
    given += " --eval_strategy no --eval_on_start false"
    run("train_rtd.py", *f"{short} {given} --output_dir {tmp_path / 'first'}".split(), monkeypatch=monkeypatch)
    again = ["--config", str(tmp_path / "first" / "recipe.yaml"), "--output_dir", str(tmp_path / "second")]
    run("train_rtd.py", *again, monkeypatch=monkeypatch)
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")) for name in ("first", "second")
    )
    for part in ("before", "after", "gain", "baselines", "preservation", "data", "protocols"):
        assert first[part] == second[part] and first[part], part
    assert first["data"]["rows"] == 300 and len(first["data"]["sha256"]) == 64
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        weights = [load_file(tmp_path / folder / name) for folder in ("first", "second")]
        assert all(value.equal(weights[1][key]) for key, value in weights[0].items())
    kept = first["preservation"]
    for key, change in kept["change"].items():
        assert change["gain"] == pytest.approx(kept["after"][key] - kept["before"][key], abs=1e-4)
    recipes = [yaml.safe_load((tmp_path / name / "recipe.yaml").read_text()) for name in ("first", "second")]
    assert [recipe.pop("output_dir") for recipe in recipes] == ["first", "second"] and recipes[0] == recipes[1]
    assert str(tmp_path) not in (tmp_path / "first" / "recipe.yaml").read_text()
    assert str(tmp_path) not in first["run"]["command"]
    retriever = load_cir_encoder(tmp_path / "first")  # the offline world's pictures come with the package
    assert retriever.encode_images(pictures(2)).shape[0] == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--base_model /models/clip", "`base_model` must be a Hub id"),
        (
            "--benchmark_datasets cirr=org/cirr",
            "`--benchmark_datasets` must be as `cirr=org/name`, of benchmarks that",
        ),
        ("--benchmark_datasets shapes_many", "wrong: shapes_many"),
        ("--preservation cocoa", "`--preservation` must be `shapes"),
    ],
)
def test_what_cannot_be_published_is_said_before_the_training(given, message, tmp_path, monkeypatch):
    from test_examples import failure

    options = ["--output_dir", str(tmp_path / "out")]
    assert message in failure(*given.split(), *options, monkeypatch=monkeypatch)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_recipe_leaves_the_processes_as_they_are(script, tmp_path, monkeypatch):
    """A second `TrainingArguments` would reset accelerate's state: each process would take itself for the only one."""
    from accelerate import PartialState

    args = RTDTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 4)
    assert args.world_size == 4
    script["resolved_recipe"]((args,), given=set(), always=(RTDOptions,))
    assert args.world_size == 4
