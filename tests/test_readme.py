"""The three things a user wants, as the README says: use an encoder, train one, publish it. Its own code is run."""

import random
import re
import shlex
from pathlib import Path

import pytest
from test_examples import run, write_triplets
from transformers import AutoTokenizer
from world_models import random_projection, save_random_clip

from rtd_hf import CLIPTextModelForRTD, ImageToWordProjection, load_cir_encoder, write_repository
from rtd_hf.shapes import ASSETS
from rtd_hf.shapes.clip import build_image_processor
from rtd_hf.shapes.pictures import picture
from rtd_hf.shapes.scenes import sample_scene


ROOT = Path(__file__).parents[1]


def example(name: str, language: str) -> str:
    """The block of code behind `<!-- name-example -->`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"^<!-- {name}-example -->\n```{language}\n(.*?)\n```$", readme, flags=re.M | re.S)
    assert len(found) == 1, f"README.md must hold one `<!-- {name}-example -->` with a block of {language}"
    return found[0]


def arguments(name: str, script: str, replaced: dict[str, str]) -> list[str]:
    """The arguments of a script's command line in the README, with what stands there for the user's own replaced."""
    words = shlex.split(example(name, "shell").replace("\\\n", " "))
    place = words.index(f"examples/{script}")
    missing = set(replaced) - set(words)
    assert not missing, f"the README's command no longer says {missing}"
    return [replaced.get(word, word) for word in words[place + 1 :]]


def test_use_a_published_encoder(tmp_path, monkeypatch, capsys):
    folder = write_repository(
        tmp_path / "repository",
        CLIPTextModelForRTD.from_pretrained(ASSETS / "clip"),
        tokenizer=AutoTokenizer.from_pretrained(ASSETS / "clip"),
        image_processor=build_image_processor(),
        projection=ImageToWordProjection.from_pretrained(ASSETS / "lincir"),
        metrics={},
        recipe={},
        license="mit",
        base_model="shapes",
    )
    rng = random.Random(0)
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        picture(sample_scene(rng, "held_out"), number).save(tmp_path / "pictures" / f"{number:02d}.png")
    picture(sample_scene(rng, "held_out"), 12).convert("RGB").save(tmp_path / "reference.jpg")
    code = example("use", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert '"org/rtd-lincir-l14"' in code
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code.replace('"org/rtd-lincir-l14"', repr(str(folder))), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]

    encoder = load_cir_encoder(folder)
    names = sorted(Path("pictures").iterdir())
    query = encoder.encode_queries(encoder.embed_references(["reference.jpg"]), ["is red instead of blue"])
    scores = (query @ encoder.encode_images(names).T)[0].tolist()
    best = sorted(range(12), key=lambda place: -scores[place])[:5]
    assert printed == [[f"{scores[place]:.3f}", names[place].name] for place in best]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What the README's training command writes, with a small CLIP in place of the one it names, and two steps."""
    tmp_path = tmp_path_factory.mktemp("readme")
    clip = save_random_clip(tmp_path / "clip")
    random_projection("lincir").save_pretrained(tmp_path / "projection")
    triplets = write_triplets(tmp_path / "triplets.jsonl")
    replaced = {"path/to/projection": str(tmp_path / "projection"), "triplets.jsonl": str(triplets)}
    given = arguments("train", "train_rtd.py", replaced)
    smaller = f"--clip_model {clip} --max_steps 2 --per_device_train_batch_size 16 --disable_tqdm true"
    smaller += f" --base_model openai/clip-vit-large-patch14 --output_dir {tmp_path / 'outputs' / 'rtd_lincir_l14'}"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(ROOT)
        run("train_rtd.py", *given, *smaller.split(), monkeypatch=monkeypatch)
    return tmp_path / "outputs" / "rtd_lincir_l14"


def test_train_your_own(trained):
    recipe = (trained / "recipe.yaml").read_text(encoding="utf-8")
    assert "clip_model: openai/clip-vit-large-patch14" in recipe and "triplets: triplets.jsonl" in recipe
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-nc-4.0" in card and "base_model: openai/clip-vit-large-patch14" in card
    assert (trained / "model.safetensors").is_file() and (trained / "projection" / "model.safetensors").is_file()
    assert (
        load_cir_encoder(trained, base_model=trained.parents[1] / "clip").projection.config.projection_type == "lincir"
    )


def test_publish_it(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parents[1])
    given = arguments("publish", "push_to_hub.py", {})
    assert given[-1] == "--dry_run" and "outputs/rtd_lincir_l14" in given
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    run("push_to_hub.py", *given, monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    for name in ("model.safetensors", "projection/model.safetensors", "metrics.json", "recipe.yaml", "README.md"):
        assert name in shown
    assert 'CLIPTextModelWithProjection.from_pretrained("you/rtd-lincir-l14")' in shown
    assert 'ComposedImageRetriever.from_pretrained("you/rtd-lincir-l14")' in shown
    assert str(trained.parents[1]) not in shown.split("# rtd-lincir-l14")[1]
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
