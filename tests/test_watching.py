"""What a training watches: where a gradient broke, and how far held-out captions have drifted; against formulas."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny_trainer, tiny_triplets
from PIL import Image
from world_models import random_retriever

from rtd_hf.alignment import CaptionDrift, ImageAlignment, captioned_rows
from rtd_hf.preservation import CaptionedImages, PreservationEvaluator, load_shapes_captions
from rtd_hf.trainer import RTDTrainer
from rtd_hf.training_rows import load_rows


# ----------------------------------------------------------------------------------------------------------- gradients
def trainer_of(monkeypatch, folder, *, poison=None, break_weight=None, **options):
    """A training whose third step is poisoned: the gradient of some queries, or of one weight behind the backward."""
    encode, step = RTDTrainer.encode_queries, RTDTrainer.training_step

    def encode_queries(self, model, inputs, words):
        queries = encode(self, model, inputs, words)
        if self.state.global_step == 2 and poison and model.training:
            factor = torch.ones(len(queries), 1)
            factor[list(poison)] = float("inf")
            queries.register_hook(lambda gradient: gradient * factor)
        return queries

    def training_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 2 and break_weight:
            dict(self.model.named_parameters())[break_weight].grad[1, 2] = float("inf")
        return loss

    monkeypatch.setattr(RTDTrainer, "encode_queries", encode_queries)
    monkeypatch.setattr(RTDTrainer, "training_step", training_step)
    trainer = tiny_trainer(folder, max_steps=5, eval_rows=4, save_strategy="no", **options)
    trainer.train_dataset = Dataset.from_list(
        [{**row, "conditioning_caption": f"is {number}"} for number, row in enumerate(tiny_triplets(24))]
    )
    return trainer


def batches_of(trainer, number):
    """The conditioning texts of the batches that a training sees, in order."""
    seen, collate = [], trainer.data_collator

    def collated(rows):
        seen.append([row["conditioning_caption"] for row in rows])
        return collate(rows)

    trainer.data_collator = collated
    return seen


@pytest.mark.parametrize(
    "options",
    [{}, {"packing": False}, {"mini_batch_size": 3}, {"max_grad_norm": 0.0}],
    ids=["packed", "padded", "mini-batches", "not-clipped"],
)
def test_a_broken_gradient_names_its_process_step_rows_and_texts(monkeypatch, tmp_path, options):
    trainer = trainer_of(monkeypatch, tmp_path, poison=(1, 3, 6), **options)
    seen = batches_of(trainer, 3)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "norm is nan after 2 steps" in message or "norm is inf after 2 steps" in message
    assert "On process 0 the loss's gradient is not finite at the queries of rows 1, 3, 6." in message
    # Rows 4 to 7 are the bare prompts of triplets 0 to 3.
    for row in (1, 3, 2):
        assert f"{row}: " in message and prompt_of(trainer, seen[2][row]) in message
    assert prompt_of(trainer, seen[2][0]) not in message
    assert "`learning_rate`" in message


def prompt_of(trainer, conditioning):
    tokens = trainer.processing_class(f"a photo of $ that {conditioning}")["input_ids"]
    return trainer.processing_class.decode(tokens, skip_special_tokens=True).strip()


def test_micro_batches_of_a_step_are_told_apart(monkeypatch, tmp_path):
    trainer = trainer_of(monkeypatch, tmp_path, poison=(2,), gradient_accumulation_steps=2)
    with pytest.raises(FloatingPointError, match="rows 2 of micro-batch 0 and rows 2 of micro-batch 1"):
        trainer.train()


def test_a_gradient_that_breaks_within_the_encoder_names_the_weights(monkeypatch, tmp_path):
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    trainer = trainer_of(monkeypatch, tmp_path, break_weight=name)
    expected = {}
    original = trainer._get_grad_norm

    def noted(model, **kwargs):
        expected["largest"] = trainer._query_gradients[-1]
        return original(model, **kwargs)

    trainer._get_grad_norm = noted
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    largest = expected["largest"]
    row = int(largest.argmax())
    message = str(caught.value)
    assert f"finite at every query (largest {largest.max().item():.3g}, at row {row}), and stops being so" in message
    assert f"1 of 37 weights have such a gradient, nearest to the output `{name}`" in message


def test_what_is_kept_of_gradients_is_the_true_one(tmp_path):
    """The largest part of the loss's gradient at each query, by hand; and only of the step that is on."""
    trainer = tiny_trainer(tmp_path, max_steps=3, eval_rows=4, save_strategy="no", noise_type="none")
    batch = trainer.data_collator(tiny_triplets(4))
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    (gradient,) = torch.autograd.grad(loss, outputs["queries"], retain_graph=True)
    loss.backward()
    assert torch.equal(trainer._query_gradients[-1], gradient.abs().amax(1)) and gradient.abs().max() > 1e-3
    trainer.train()
    assert len(trainer._micro_batches) == len(trainer._query_gradients) == 1


# ----------------------------------------------------------------------------------------------------------- alignment
def moved(retriever, amount=0.3):
    """Another encoder, as after a training."""
    encoder = random_retriever().text_encoder
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        weight = encoder.text_projection.weight
        weight.add_(amount * weight.std() * torch.randn(weight.shape, generator=generator))
    return encoder


def uneven() -> CaptionedImages:
    """Pictures of the world with one, two or three captions each."""
    data = load_shapes_captions(num_images=24)
    texts = ("a red star", "a blue square above a star")
    captions = tuple(
        tuple(f"{text} {row}" for text in (own[0], *texts)[: 1 + row % 3]) for row, own in enumerate(data.captions)
    )
    return CaptionedImages("toy", data.images, captions, data.load_image)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows * rows).sum(1, keepdims=True))


def by_hand(retriever, data, frozen, trained) -> dict[str, float]:
    """All metrics in numpy, one caption after the other."""
    images = unit(retriever.embed_images([data.load_image(one) for one in data.images]).double().numpy())
    texts = [text for own in data.captions for text in own]
    owner = [row for row, own in enumerate(data.captions) for _ in own]
    was = unit(retriever.encode_texts(texts, text_encoder=frozen).double().numpy())
    now = unit(retriever.encode_texts(texts, text_encoder=trained).double().numpy())
    beside = np.mean([now[row] @ images[image] for row, image in enumerate(owner)])
    before = np.mean([was[row] @ images[image] for row, image in enumerate(owner)])
    found = {
        "toy_image_alignment": beside,
        "toy_image_alignment_change": beside - before,
        "toy_caption_similarity": np.mean([now[row] @ was[row] for row in range(len(texts))]),
    }
    for k in (1, 5, 10):
        hits = [image in np.argsort(-(images @ now[row]))[:k] for row, image in enumerate(owner)]
        found[f"toy_text_to_image_recall@{k}"] = 100 * np.mean(hits)
    return found


def test_alignment_is_the_formula():
    data, retriever = uneven(), random_retriever()
    watched = ImageAlignment(data, retriever)
    frozen, trained = random_retriever().text_encoder, moved(retriever)
    expected = by_hand(retriever, data, frozen, trained)
    assert watched(trained) == pytest.approx(expected, abs=1e-6)
    assert abs(expected["toy_image_alignment_change"]) > 1e-3 and expected["toy_caption_similarity"] < 0.99
    start = by_hand(retriever, data, frozen, frozen)
    assert watched.frozen_metrics == watched(frozen) == pytest.approx(start, abs=1e-6)
    assert start["toy_image_alignment_change"] == 0 and start["toy_caption_similarity"] == pytest.approx(1)
    recalls = {key: value for key, value in watched(trained).items() if "recall" in key}
    same = PreservationEvaluator(data, retriever)(trained)  # every caption counts the same there too
    assert recalls == pytest.approx({key: same[key] for key in recalls}, abs=1e-4)


def test_the_retrievers_own_encoder_may_be_the_one_that_is_trained():
    data, retriever = uneven(), random_retriever()
    watched = ImageAlignment(data, retriever)
    retriever.text_encoder.load_state_dict(moved(retriever).state_dict())  # trained in place
    expected = by_hand(random_retriever(), data, random_retriever().text_encoder, moved(retriever))
    assert watched() == watched(retriever.text_encoder) == pytest.approx(expected, abs=1e-6)
    other = ImageAlignment(data, retriever, frozen=random_retriever().text_encoder)
    assert other() == pytest.approx(expected, abs=1e-6)


def test_pictures_are_read_once():
    data, opened = uneven(), []
    counted = CaptionedImages(
        "toy", data.images, data.captions, lambda one: opened.append(one) or data.load_image(one)
    )
    retriever = random_retriever()
    watched = ImageAlignment(counted, retriever)
    for _ in range(3):
        watched(moved(retriever))
    assert sorted(opened) == sorted(data.images)


def test_a_picture_that_cannot_be_read_is_refused_or_left_out(caplog):
    from rtd_hf import UnreadableImagesError

    data = uneven()

    def load(one):
        if one == data.images[5]:
            raise OSError("it is damaged")
        return data.load_image(one)

    broken = CaptionedImages("toy", data.images, data.captions, load)
    with pytest.raises(UnreadableImagesError, match=data.images[5]):
        ImageAlignment(broken, random_retriever())
    watched = ImageAlignment(broken, random_retriever(), strict=False)
    rest = data.without_images({data.images[5]: ""})
    assert watched() == ImageAlignment(rest, random_retriever())()
    assert "1 of 24 pictures of `toy`" in caplog.text


def test_without_pictures_the_captions_are_compared_with_themselves():
    data, retriever = uneven(), random_retriever()
    captions = [caption for own in data.captions for caption in own]
    watched = CaptionDrift(captions, retriever, name="mine")
    expected = by_hand(retriever, data, random_retriever().text_encoder, moved(retriever))
    assert watched(moved(retriever)) == {
        "mine_caption_similarity": pytest.approx(expected["toy_caption_similarity"], abs=1e-6)
    }
    assert watched() == {"mine_caption_similarity": pytest.approx(1, abs=1e-6)}
    for wrong, told in (([], "got 0"), (["a star", " "], r"first is number 1")):
        with pytest.raises(ValueError, match=told):
            CaptionDrift(wrong, retriever)


def test_any_pictures_with_captions_are_taken(tmp_path):
    world = load_shapes_captions(num_images=6)
    lines = []
    for row, (image_id, captions) in enumerate(zip(world.images, world.captions, strict=True)):
        image = world.load_image(image_id)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(tmp_path / f"{row}.png")
        lines.append(json.dumps({"file_name": f"{row}.png", "caption": captions[0]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    rows = load_rows(str(tmp_path / "metadata.jsonl"), images=True, captions=True)
    data = captioned_rows(rows, name="shapes_captions")
    assert data.captions == world.captions
    found, expected = (ImageAlignment(one, random_retriever())(moved(None)) for one in (data, world))
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(captioned_rows(rows, num_images=4).images) == 4


def test_rows_with_several_captions_or_none():
    image = np.zeros((8, 8, 3), np.uint8)
    data = captioned_rows([{"image": image, "caption": ["a star", "stars"]}, {"image": image, "caption": "a moon"}])
    assert (
        data.captions == (("a star", "stars"), ("a moon",)) and np.asarray(data.load_image(data.images[0])).ndim == 3
    )
    with pytest.raises(ValueError, match="1 of 2 pictures of `held_out` have no caption"):
        captioned_rows([{"image": image, "caption": "a star"}, {"image": image, "caption": None}])


def test_the_trainer_logs_the_drift_and_stops_by_it(tmp_path):
    from rtd_hf import RTDTrainingArguments

    retriever = random_retriever()
    rows = [
        {"reference_caption": f"a red star {i}", "conditioning_caption": "is blue", "target_caption": f"a star {i}"}
        for i in range(8)
    ]
    arguments = RTDTrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        save_strategy="no", disable_tqdm=True, report_to="none", eval_strategy="steps", eval_steps=1, logging_steps=1,
        stop_when=["eval_shapes_captions_caption_similarity<0.999"],
    )  # fmt: skip
    trainer = RTDTrainer(
        retriever.text_encoder,
        arguments,
        projection=retriever.projection,
        processing_class=retriever.tokenizer,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        evaluators=[ImageAlignment(load_shapes_captions(num_images=12), retriever)],
    )
    trainer.train()
    evaluated = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert trainer.stopped["step"] == len(evaluated) < 6
    last = evaluated[-1]["eval_shapes_captions_caption_similarity"]
    assert last == trainer.stopped["value"] < 0.999


# ---------------------------------------------------------------------------------------------------- the command line
def test_command_line_forms(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import sys

    from utils.specs import alignment_of

    captions = tmp_path / "captions.txt"
    captions.write_text("a star\na moon\na blue star\n")
    try:
        retriever = random_retriever()
        world = alignment_of("shapes,num_images=9", retriever)
        assert len(world.data.images) == 9 and world.data.protocol["seed"] == 1
        texts = alignment_of(f"captions={captions},num_captions=2", retriever)
        assert texts.captions == ["a star", "a moon"] and set(texts()) == {"held_out_caption_similarity"}
        wrong = "shape shapes,images=3 shapes,num_images=many coco=x.json captions= captions=a,num_images=3 rows=x,n=2"
        for text in wrong.split():
            with pytest.raises(ValueError, match="`--watch_alignment` must be"):
                alignment_of(text, retriever)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "utils"]:
            sys.modules.pop(name)
