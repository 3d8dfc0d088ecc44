"""Plain retrieval before and after a training, against sorting; and the encoders between two."""

import gzip
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_text_model
from PIL import Image
from world_models import random_retriever

from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.preservation import (
    CaptionedImages,
    PreservationEvaluator,
    interpolate_encoders,
    load_coco_captions,
    load_shapes_captions,
)


# ---------------------------------------------------------------------------------------------------- plain retrieval


def uneven() -> CaptionedImages:
    """Pictures of the world with one, two or three captions each."""
    data = load_shapes_captions(num_images=30)
    captions = tuple((texts[0], "a red star", "a blue square above a star")[: 1 + i % 3] for i, (texts, *_) in
                     enumerate(zip(data.captions, strict=True)))  # fmt: skip
    captions = tuple(tuple(f"{text} {i}" for text in texts) for i, texts in enumerate(captions))
    return CaptionedImages("toy", data.images, captions, data.load_image)


def recalls_by_sorting(images: np.ndarray, texts: np.ndarray, captions) -> dict[str, float]:
    """Shares of hits in percent, one query after the other."""
    owner = [i for i, own in enumerate(captions) for _ in own]
    found: dict[str, list[bool]] = {}
    for row, image in enumerate(owner):
        order = sorted(range(len(images)), key=lambda i: -float(images[i] @ texts[row]))
        for k in (1, 5, 10):
            found.setdefault(f"toy_text_to_image_recall@{k}", []).append(image in order[:k])
    for image in range(len(images)):
        order = sorted(range(len(texts)), key=lambda row: -float(images[image] @ texts[row]))
        for k in (1, 5, 10):
            found.setdefault(f"toy_image_to_text_recall@{k}", []).append(any(owner[r] == image for r in order[:k]))
    return {name: 100 * float(np.mean(hits)) for name, hits in found.items()}


def test_figures_are_those_of_sorting():
    data, retriever = uneven(), random_retriever()
    evaluator = PreservationEvaluator(data, retriever)
    images = F.normalize(retriever.embed_images([data.load_image(i) for i in data.images]), dim=-1).double().numpy()
    texts = retriever.encode_texts([text for own in data.captions for text in own]).double().numpy()
    expected = recalls_by_sorting(images, texts, data.captions)
    assert evaluator() == pytest.approx(expected, abs=1e-3)
    assert len({*expected.values()}) > 3 and any(0 < value < 100 for value in expected.values())
    result = evaluator.evaluate()
    assert all(
        len(values) == 30 for values in result.per_query.values()
    )  # one a picture, so that intervals are theirs
    assert result.protocol == {"num_images": 30, "num_captions": 60, "ties": "pessimistic"}


def test_another_encoder_can_be_scored_and_compared():
    evaluator = PreservationEvaluator(load_shapes_captions(num_images=40), random_retriever())
    other = random_retriever().text_encoder
    with torch.no_grad():
        other.text_projection.weight.neg_()
    before, after = evaluator.evaluate(), evaluator.evaluate(other)
    assert before.metrics != after.metrics == evaluator(other)
    gain = after.gain_over(before)["shapes_captions_text_to_image_recall@10"]
    assert gain["low"] <= gain["gain"] <= gain["high"]


def test_a_collapsed_encoder_scores_like_chance():
    retriever = random_retriever()
    with torch.no_grad():
        retriever.text_encoder.text_projection.weight.zero_()
    found = PreservationEvaluator(load_shapes_captions(num_images=40), retriever)()
    assert set(found.values()) == {0.0}  # every tie counts against the target


def test_the_small_clip_knows_its_world():
    from rtd_hf.shapes import ASSETS

    retriever = random_retriever()
    stock = {name: type(getattr(retriever, name)) for name in ("text_encoder", "vision_model")}
    for name, kind in stock.items():
        setattr(retriever, name, kind.from_pretrained(ASSETS / "clip").eval())
    from transformers import AutoTokenizer

    fitted = random_retriever()
    fitted.text_encoder, fitted.vision_model = retriever.text_encoder, retriever.vision_model
    fitted.tokenizer = AutoTokenizer.from_pretrained(ASSETS / "clip")
    found = PreservationEvaluator(load_shapes_captions(num_images=100), fitted)()
    assert min(found.values()) > 80


def test_the_world_has_no_scene_twice_and_other_seeds_are_others():
    first, again, other = (load_shapes_captions(num_images=50, seed=seed) for seed in (0, 0, 1))
    assert first.captions == again.captions != other.captions
    assert np.array_equal(first.load_image("00007"), again.load_image("00007"))


def test_the_trainer_watches_what_is_kept(tmp_path):
    from datasets import Dataset

    from rtd_hf import RTDTrainer, RTDTrainingArguments

    retriever = random_retriever()
    evaluator = PreservationEvaluator(load_shapes_captions(num_images=12), retriever)
    trained = random_retriever().text_encoder
    rows = [
        {
            "reference_caption": f"a red star {i}",
            "conditioning_caption": "is blue",
            "target_caption": f"a blue star {i}",
        }
        for i in range(8)
    ]
    arguments = RTDTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        save_strategy="no", disable_tqdm=True, report_to="none",
    )  # fmt: skip
    trainer = RTDTrainer(
        trained,
        arguments,
        projection=retriever.projection,
        processing_class=retriever.tokenizer,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        evaluators=[evaluator],
    )
    trainer.train()
    found = trainer.evaluate()
    expected = evaluator(trainer.model)
    assert {name: found[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert evaluator() != expected  # the retriever's own encoder is another one


# ----------------------------------------------------------------------------------------------------- COCO's captions


def write_coco(folder, number=6, **changes):
    (folder / "val2017").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(number):
        pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val2017" / f"{i:012d}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(number)],
        "annotations": [
            {"image_id": i, "caption": f" a picture\nof number {i}  form {form} "}
            for form in range(2)
            for i in range(number)
        ],
        **changes,
    }
    path = folder / "captions.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_captions(tmp_path):
    path = write_coco(tmp_path)
    data = load_coco_captions(path, tmp_path / "val2017")
    assert data.images == ("0", "1", "2", "3", "4", "5")
    assert data.captions[3] == ("a picture of number 3 form 0", "a picture of number 3 form 1")
    packed = tmp_path / "captions.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    some = load_coco_captions(packed, tmp_path / "val2017", num_images=4, name="mine")
    assert some.images == data.images[:4] and some.protocol["complete"] is False and some.name == "mine"
    found = PreservationEvaluator(data, random_retriever(), features=tmp_path / "kept")()
    assert set(found) == {f"coco_captions_{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}  # fmt: skip  # noqa: E501
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_coco_captions_that_are_not_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match="`annotations` must be a file and `images` a folder"):
        load_coco_captions(tmp_path / "none.json", tmp_path)
    path = write_coco(tmp_path / "one")
    for name in ("000000000002.jpg", "000000000004.jpg"):
        (tmp_path / "one" / "val2017" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 6 pictures .*first 000000000002.jpg, 000000000004.jpg"):
        load_coco_captions(path, tmp_path / "one" / "val2017")
    bare = write_coco(tmp_path / "two", annotations=[{"image_id": 0, "caption": "a"}, {"image_id": 1, "caption": " "}])
    with pytest.raises(ValueError, match=r"5 of 6 pictures .* no caption, or a blank one \(first 1, 2"):
        load_coco_captions(bare, tmp_path / "two" / "val2017")
    foreign = write_coco(tmp_path / "three", annotations=[{"image_id": 99, "caption": "a"}])
    with pytest.raises(ValueError, match="damaged or no file of COCO captions .*99"):
        load_coco_captions(foreign, tmp_path / "three" / "val2017")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="damaged or no file of COCO captions"):
        load_coco_captions(tmp_path / "cut.json", tmp_path / "one" / "val2017")


def test_unreadable_pictures_are_left_out_knowingly(tmp_path):
    path = write_coco(tmp_path)
    (tmp_path / "val2017" / "000000000003.jpg").write_bytes(b"no picture")
    data = load_coco_captions(path, tmp_path / "val2017")
    with pytest.raises(OSError, match="1 of 6 pictures cannot be read"):
        PreservationEvaluator(data, random_retriever())()
    result = PreservationEvaluator(data, random_retriever(), strict=False).evaluate()
    assert result.num_queries == 5 and result.protocol["left_out"] == {"images": 1}
    assert result.protocol["num_captions"] == 10


def test_wrong_data_and_options():
    with pytest.raises(ValueError, match=r"no id twice, got 2 \(1 different\) and 2"):
        CaptionedImages("toy", ("a", "a"), (("x",), ("y",)), str)
    with pytest.raises(ValueError, match="`ties` must be one of"):
        PreservationEvaluator(load_shapes_captions(num_images=2), random_retriever(), ties="random")


# ------------------------------------------------------------------------------------------------------------- WiSE-FT


def two_encoders():
    frozen, trained = tiny_text_model(CLIPTextModelForRTD), tiny_text_model(CLIPTextModelForRTD)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return frozen, trained


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_every_weight_lies_between(alpha):
    frozen, trained = two_encoders()
    before = {name: weight.clone() for name, weight in frozen.state_dict().items()}
    between = interpolate_encoders(frozen, trained, alpha)
    assert isinstance(between, CLIPTextModelForRTD) and not between.training
    for name, weight in between.state_dict().items():
        expected = (1 - alpha) * before[name].double() + alpha * trained.state_dict()[name].double()
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-6)
        if alpha in (0, 1):
            assert weight.equal((before if alpha == 0 else trained.state_dict())[name])
    assert all(weight.equal(before[name]) for name, weight in frozen.state_dict().items())


def test_adapters_are_merged_on_a_copy():
    from peft import LoraConfig, get_peft_model

    frozen = tiny_text_model(CLIPTextModelForRTD)
    config = LoraConfig(r=2, target_modules=list(frozen.lora_target_modules))
    adapted = get_peft_model(tiny_text_model(CLIPTextModelForRTD), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    names = set(adapted.state_dict())
    whole, half = (interpolate_encoders(frozen, adapted, alpha) for alpha in (1, 0.5))
    assert set(adapted.state_dict()) == names
    ids = torch.tensor(
        [[len(frozen.get_input_embeddings().weight) - 2, 5, len(frozen.get_input_embeddings().weight) - 1]]
    )
    with torch.no_grad():
        expected = adapted(input_ids=ids).text_embeds
    torch.testing.assert_close(whole(input_ids=ids).text_embeds, expected, rtol=1e-4, atol=1e-4)
    moved = [name for name, weight in half.state_dict().items() if not weight.equal(frozen.state_dict()[name])]
    assert moved and all("weight" in name for name in moved)


def test_encoders_that_do_not_fit():
    frozen, trained = two_encoders()
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`alpha` must lie between 0 and 1"):
            interpolate_encoders(frozen, trained, alpha)
    with pytest.raises(ValueError, match="must have the same weights, but differ in .*text_projection|such as"):
        interpolate_encoders(frozen, tiny_text_model(CLIPTextModelForRTD, projection_dim=16), 0.5)
