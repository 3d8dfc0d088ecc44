"""Every objective against its formula written out plainly, and what objectives are made of."""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from backbone_models import gemma_tokenizer, siglip_tokenizer, tiny_backbone
from objective_models import PHRASES, ROWS, SCALE, SIZES, frozen_clip, objective_for, projection_for, rows_for
from PIL import Image
from transformers import CLIPTextModelWithProjection

from rtd_hf.models import Siglip2TextModelForRTD, SiglipTextModelForRTD
from rtd_hf.objectives import (
    OBJECTIVES,
    EncodedRows,
    FrozenCLIP,
    FrozenTexts,
    InversionOptions,
    PhraseBank,
    generate_phrases,
    local_generator,
    nearest_concepts,
    read_logit_scale,
    textual_inversion,
)
from rtd_hf.objectives import inversion as inversion_module
from rtd_hf.objectives.base import open_row_image, random_crop
from rtd_hf.projections import PROJECTIONS, ImageToWordProjection
from rtd_hf.prompts import PromptTokenizer
from rtd_hf.shapes.pairs import ScenePairs
from rtd_hf.tagging import mask_keywords, mask_object, split_subject


@pytest.fixture
def clip() -> FrozenCLIP:
    return frozen_clip()


class Oracle:
    """The frozen towers, one text and one picture at a time, with nothing of ours but the tokenizer."""

    def __init__(self, clip: FrozenCLIP):
        self.tokenizer, self.vision, self.processor = clip.tokenizer, clip.vision_model, clip.image_processor
        self.encoder = CLIPTextModelWithProjection(copy.deepcopy(clip.text_encoder.config)).eval()
        self.encoder.load_state_dict(clip.text_encoder.state_dict())

    def text(self, text: str, words=(), token: int | None = None) -> torch.Tensor:
        """The embedding of a text whose k-th `$` holds the k-th word, or the embedding of another token."""
        ids = torch.tensor(self.tokenizer(text.lower())["input_ids"])
        places = (ids == 259).nonzero().flatten()
        if token is not None:
            ids[places] = token
        table = self.encoder.text_model.embeddings.token_embedding

        def replace(module, args, output):
            return torch.stack(
                [
                    words[places.tolist().index(p)] if len(words) and p in places else row
                    for p, row in enumerate(output[0])
                ]
            )[None]

        handle = table.register_forward_hook(replace)
        try:
            return self.encoder(ids[None]).text_embeds[0]
        finally:
            handle.remove()

    def image(self, picture) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = self.processor([Image.fromarray(picture)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = self.vision(pixels)
        return output.image_embeds[0], output.last_hidden_state[0]


def unit(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([row / row.norm() for row in rows])


def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return 1 - (first @ second) / (first.norm() * second.norm())


def symmetric_info_nce(texts, images, scale: float) -> torch.Tensor:
    logits = scale * unit(texts) @ unit(images).T
    rows = sum(torch.logsumexp(logits[i], 0) - logits[i, i] for i in range(len(logits)))
    columns = sum(torch.logsumexp(logits[:, i], 0) - logits[i, i] for i in range(len(logits)))
    return (rows + columns) / (2 * len(logits))


def nt_xent(first, second, temperature: float) -> torch.Tensor:
    z = torch.cat([unit(first), unit(second)])
    number, total = len(first), 0.0
    for k in range(2 * number):
        partner = (k + number) % (2 * number)
        others = torch.stack([z[k] @ z[other] / temperature for other in range(2 * number) if other != k])
        total = total - (z[k] @ z[partner] / temperature - torch.logsumexp(others, 0))
    return total / (2 * number)


def plain_lincir(oracle, projection, rows) -> torch.Tensor:
    captions = [row["caption"] for row in rows]
    targets = [oracle.text(caption) for caption in captions]
    draw = torch.Generator().manual_seed(7)
    noise = torch.randn(ROWS, 96, generator=draw) * torch.rand(ROWS, 1, generator=draw)
    squares = []
    for row, masked in enumerate(mask_keywords(captions)):
        word = projection((targets[row] + noise[row])[None])[0, 0]
        squares.append((oracle.text(masked, [word] * masked.split().count("$")) - targets[row]) ** 2)
    return torch.stack(squares).mean()


def plain_pic2word(oracle, projection, rows) -> torch.Tensor:
    images = [oracle.image(row["image"])[0] for row in rows]
    texts = [oracle.text("a photo of $", projection(image[None])[0]) for image in images]
    return symmetric_info_nce(texts, images, SCALE)


def plain_context_i2w(oracle, projection, rows) -> torch.Tensor:
    images, texts = [], []
    for row, masked in zip(rows, mask_object([row["caption"] for row in rows]), strict=True):
        image, patches = oracle.image(row["image"])
        context = oracle.text(masked, token=projection.config.context_placeholder_id)
        word = projection(image[None], patch_embeds=patches[None], context_embeds=context[None])[0]
        images.append(image)
        texts.append(oracle.text("a photo of $", word))
    return symmetric_info_nce(texts, images, SCALE)


def plain_searle(oracle, projection, rows) -> torch.Tensor:
    bank, words, regulariser = PhraseBank(PHRASES), [], 0.0
    for row in rows:
        words.append(projection(oracle.image(row["image"])[0][None])[0, 0])
        rng = random.Random(f"phrase {row['key']}")
        phrase, masked = bank.draw(int(rng.choice(row["concepts"])), rng)
        regulariser = regulariser + distance(oracle.text(masked, [words[-1]]), oracle.text(phrase)) / ROWS
    return nt_xent([row["inversion"] for row in rows], words, 0.25) + 0.75 * regulariser


def plain_fti4cir(oracle, projection, rows) -> torch.Tensor:
    images, both, captions, products = [], [], 0.0, []
    for row, (subject, attribute) in zip(rows, split_subject([row["caption"] for row in rows]), strict=True):
        image, patches = oracle.image(row["image"])
        words, features = projection(image[None], patch_embeds=patches[None], return_features=True)
        number = int(projection.count_words(words)[0]) - 1
        one, many = words[0, :1], words[0, 1 : 1 + number]
        gaps = " ".join("$" * number)
        rest = f" with {attribute}" if attribute else ""
        real = oracle.text(f"a photo of {subject}{rest}")
        images.append(image)
        both.append(oracle.text(f"a photo of $ with {gaps}", torch.cat([one, many])))
        captions = captions + distance(both[-1], real) / ROWS
        captions = captions + distance(oracle.text(f"a photo of ${rest}", one), real) / ROWS
        captions = captions + distance(oracle.text(f"a photo of {subject} with {gaps}", many), real) / ROWS
        rows_of_features = unit(list(features[0]))
        products.append((rows_of_features @ rows_of_features.T - torch.eye(4)) ** 2)
    return nt_xent(images, both, 0.2) + torch.stack(products).mean() + 1.4 * captions


PLAIN = {
    "lincir": plain_lincir,
    "pic2word": plain_pic2word,
    "searle": plain_searle,
    "context_i2w": plain_context_i2w,
    "fti4cir": plain_fti4cir,
}


def loss_of(objective, projection, rows) -> torch.Tensor:
    return objective.loss(projection, objective.collate(rows), torch.Generator().manual_seed(7))[0]


def test_every_projection_has_an_objective_and_every_objective_an_oracle():
    assert set(OBJECTIVES) == set(PROJECTIONS) == set(PLAIN)


@pytest.mark.parametrize("name", OBJECTIVES)
class TestLoss:
    @pytest.mark.parametrize("packing", [True, False])
    def test_is_the_formula(self, name, packing, clip):
        projection = projection_for(name)
        objective = objective_for(name, clip, projection, packing=packing)
        expected = PLAIN[name](Oracle(clip), projection, rows_for(name))
        found = loss_of(objective, projection, rows_for(name))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)

    def test_gradients_are_those_of_the_formula_and_reach_the_projection_alone(self, name, clip):
        projection = projection_for(name)
        objective = objective_for(name, clip, projection)
        PLAIN[name](Oracle(clip), projection, rows_for(name)).backward()
        expected = {key: weight.grad.clone() for key, weight in projection.named_parameters()}
        projection.zero_grad()
        loss_of(objective, projection, rows_for(name)).backward()
        for key, weight in projection.named_parameters():
            assert weight.grad.abs().max() > 0, key
            torch.testing.assert_close(weight.grad, expected[key], rtol=1e-3, atol=2e-5 * expected[key].abs().max())
        for tower in (clip.text_encoder, clip.vision_model):
            assert all(weight.grad is None and not weight.requires_grad for weight in tower.parameters())

    def test_features_computed_ahead_change_nothing(self, name, clip):
        if not OBJECTIVES[name].needs_images:
            pytest.skip("looks at no pictures")
        projection = projection_for(name)
        objective = objective_for(name, clip, projection)
        rows = rows_for(name)
        encoded = EncodedRows(rows, objective, batch_size=2)
        assert encoded.image_embeds.shape == (ROWS, 96)
        kept = [{**row, **encoded[index]} for index, row in enumerate(rows)]
        assert "pixel_values" not in objective.collate(kept)
        torch.testing.assert_close(loss_of(objective, projection, kept), loss_of(objective, projection, rows))

    def test_a_projection_of_another_clip_is_refused(self, name, clip):
        projection = ImageToWordProjection.build(name, 64, 64, **SIZES.get(name, {}))
        with pytest.raises(ValueError, match="maps 64 to 64 dimensions, but the CLIP has a joint space of 96"):
            objective_for(name, clip, projection)


def test_noise_is_new_for_each_row_and_follows_the_generator(clip):
    projection = projection_for("lincir")
    objective = objective_for("lincir", clip, projection)
    noise = objective._noise_like(torch.zeros(300, 20_000), torch.Generator().manual_seed(0))
    # A Gaussian times one U(0, 1) a row: the rows' deviations are uniform.
    deviations = noise.std(dim=1)
    assert deviations.mean() == pytest.approx(0.5, abs=0.05) and deviations.std() == pytest.approx(12**-0.5, abs=0.03)
    assert deviations.min() < 0.03 and 0.97 < deviations.max() < 1.02
    again = objective._noise_like(torch.zeros(300, 20_000), torch.Generator().manual_seed(0))
    assert again.equal(noise)


def test_a_missing_logit_scale_is_explained(clip):
    bare = FrozenCLIP(clip.text_encoder, clip.tokenizer, clip.vision_model, clip.image_processor)
    config = projection_for("pic2word").config
    with pytest.raises(ValueError, match="no `logit_scale`"):
        OBJECTIVES["pic2word"](bare, config)
    options = OBJECTIVES["pic2word"].options_class(logit_scale=50.0)
    assert OBJECTIVES["pic2word"](bare, config, options).logit_scale == 50
    with pytest.raises(ValueError, match="must be positive"):
        OBJECTIVES["pic2word"](clip, config, OBJECTIVES["pic2word"].options_class(logit_scale=0))


def test_an_option_out_of_range_is_named():
    with pytest.raises(ValueError, match="`noise_scale` must be a number of at least 0, but is -1"):
        OBJECTIVES["lincir"].options_class(noise_scale=-1.0)
    with pytest.raises(ValueError, match="`inversion_steps` must be at least 1"):
        OBJECTIVES["searle"].options_class(inversion_steps=0)
    with pytest.raises(ValueError, match="`inversion_ema` must be at least 0 and below 1, but is 1.0"):
        InversionOptions(inversion_ema=1.0)


def test_a_context_token_outside_the_vocabulary_is_refused(clip):
    projection = ImageToWordProjection.build("context_i2w", 96, vision_hidden_size=128)
    with pytest.raises(ValueError, match="`context_placeholder_id` 49405 is no token"):
        OBJECTIVES["context_i2w"](clip, projection.config)


class TestTexts:
    def test_words_may_be_shared_numbered_and_cut_off(self, clip):
        words = torch.randn(3, 2, 96, generator=torch.Generator().manual_seed(0))
        oracle = Oracle(clip)
        lines = ["a photo of $ with $", "$ on a $", "large $ " + "very " * 100 + "$"]
        for packing in (True, False):
            texts = FrozenTexts(clip, packing=packing)
            embeds = texts.encode(texts.lay_out(lines, [5, 0, 1, 1, 2, 4], num_words=6), words)
            flat = words.flatten(0, 1)
            for row, chosen in enumerate([(5, 0), (1, 1)]):
                expected = oracle.text(lines[row], flat[list(chosen)])
                torch.testing.assert_close(embeds[row], expected, rtol=1e-5, atol=1e-5)
            assert torch.isfinite(embeds[2]).all()

    def test_plain_texts(self, clip):
        for packing in (True, False):
            texts = FrozenTexts(clip, packing=packing)
            found = texts.encode_plain(texts.lay_out_plain(["a red $ star", "blue"], placeholder_id=300))
            expected = torch.stack([Oracle(clip).text("a red $ star", token=300), Oracle(clip).text("blue")])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert not found.requires_grad


class TestLogitScale:
    @pytest.mark.parametrize("shards", [False, True])
    def test_it_is_read_from_the_checkpoint(self, tmp_path, shards):
        from world_models import random_clip

        model = copy.deepcopy(random_clip())
        torch.nn.init.constant_(model.logit_scale, math.log(37.0))
        model.save_pretrained(tmp_path, **({"max_shard_size": "1MB"} if shards else {}))
        assert (tmp_path / "model.safetensors.index.json").is_file() == shards
        assert read_logit_scale(str(tmp_path)) == pytest.approx(37.0, rel=1e-6)

    def test_old_files_and_text_encoders(self, tmp_path, clip):
        torch.save({"logit_scale": torch.tensor(2.0)}, tmp_path / "pytorch_model.bin")
        assert read_logit_scale(str(tmp_path)) == pytest.approx(math.exp(2.0), rel=1e-6)
        clip.text_encoder.save_pretrained(tmp_path / "text")
        assert read_logit_scale(str(tmp_path / "text")) is None

    def test_a_clip_loads_whole(self):
        from rtd_hf.shapes import ASSETS

        clip = FrozenCLIP.from_pretrained(str(ASSETS / "clip"))
        assert clip.logit_scale == pytest.approx(21.8006, rel=1e-4)
        assert not clip.text_encoder.training and not any(p.requires_grad for p in clip.vision_model.parameters())


class TestInversion:
    def test_steps_are_those_of_adamw_with_a_moving_average(self, clip):
        """Two images, two steps, one template and one phrase, everything written out."""
        torch.manual_seed(0)
        images, oracle = torch.randn(2, 96), Oracle(clip)
        bank, concepts = (
            PhraseBank({"green heart": ["a photo of a green heart"]}),
            torch.zeros(2, 1, dtype=torch.int64),
        )
        options = InversionOptions(inversion_steps=2)
        found = textual_inversion(
            images, FrozenTexts(clip), options, bank=bank, concepts=concepts, templates=("a photo of $",), seed=4
        )
        for row in range(2):
            start = np.random.default_rng(random.Random(f"inversion 4 {row}").getrandbits(63)).normal(0, 0.02, 96)
            word = torch.tensor(start, dtype=torch.float32)
            average, first, second = word.clone(), torch.zeros(96), torch.zeros(96)
            for step in (1, 2):
                word.requires_grad_()
                picture = distance(oracle.text("a photo of $", [word]), images[row])
                phrase = distance(oracle.text("a photo of a $", [word]), oracle.text("a photo of a green heart"))
                ((picture + 0.5 * phrase) / 1.5).backward()
                grad, word = word.grad, word.detach()
                first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
                word = word * (1 - 2e-2 * 0.01)
                word -= 2e-2 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                average = 0.99 * average + 0.01 * word
            torch.testing.assert_close(found[row], average, rtol=1e-4, atol=1e-6)

    def test_it_lowers_its_loss_whatever_the_batches(self):
        """With the shipped CLIP and its pictures, because a random one has nothing to find."""
        from rtd_hf.shapes import ASSETS

        world = FrozenCLIP.from_pretrained(str(ASSETS / "clip"))
        pictures = [{"image": ScenePairs(5)[index]["image"]} for index in range(5)]
        objective = objective_for("searle", world, projection_for("searle"))
        images, _ = world.encode_image(objective.image_batch(pictures)["pixel_values"])
        texts, bank = objective.texts, PhraseBank(PHRASES)
        concepts = nearest_concepts(images, bank.concepts, texts, 2)
        options = InversionOptions(inversion_steps=40, inversion_learning_rate=0.1, inversion_ema=0.8)
        together, apart = (
            textual_inversion(images, texts, options, bank=bank, concepts=concepts, batch_size=size) for size in (5, 2)
        )
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-3)
        job = inversion_module._Inversion(texts, options, None, ("a photo of $",), 0)
        draws = [random.Random(row) for row in range(5)]
        with torch.no_grad():
            before = job.losses(torch.randn(5, 96) * 0.02, images, draws, None)
            after = job.losses(together, images, draws, None)
        assert (after < 0.7 * before).all()

    def test_words_that_are_there_are_not_computed_again(self, clip, tmp_path, monkeypatch):
        torch.manual_seed(0)
        images, texts = torch.randn(5, 96), FrozenTexts(clip)
        options = InversionOptions(inversion_steps=3)
        calls, run = [], inversion_module._Inversion.run

        def counted(self, image_embeds, rows, concepts):
            calls.append(rows)
            return run(self, image_embeds, rows, concepts)

        monkeypatch.setattr(inversion_module._Inversion, "run", counted)
        invert = lambda **more: textual_inversion(images, texts, options, folder=tmp_path, batch_size=2, **more)  # noqa: E731
        first = invert()
        assert calls == [[0, 1], [2, 3], [4]]
        (lost,) = tmp_path.glob("*/000000002-2.safetensors")
        lost.unlink()  # what an interrupted run leaves behind
        assert invert().equal(first)
        assert calls[3:] == [[2, 3]]
        assert not invert(seed=1).equal(first)  # what else decides the words has its own files
        assert len(calls) == 7 and not list(tmp_path.glob("*/*partial*"))

    def test_phrases_and_concepts_belong_together(self, clip):
        with pytest.raises(ValueError, match="`bank` and `concepts` belong together"):
            textual_inversion(torch.randn(2, 96), FrozenTexts(clip), bank=PhraseBank(PHRASES))


class TestPhrases:
    def test_the_concept_is_masked_as_a_whole_word(self):
        bank = PhraseBank({"Star": ["a starry sky with a STAR, and another star"]})
        assert bank.concepts == ("star",)
        assert bank.draw(0, random.Random(0)) == (
            "a starry sky with a star, and another star",
            "a starry sky with a $ , and another star",
        )

    @pytest.mark.parametrize(
        ("phrases", "message"),
        [
            ({}, "holds no concept"),
            ({"star": []}, "must hold a list of phrases"),
            ({"star": "a star"}, "must hold a list of phrases"),
            ({"star": ["a starry sky"]}, "'a starry sky' does not hold 'star'"),
        ],
    )
    def test_phrases_that_do_not_name_their_concept_are_refused(self, phrases, message):
        with pytest.raises(ValueError, match=message):
            PhraseBank(phrases)

    def test_files(self, tmp_path):
        (tmp_path / "phrases.json").write_text(json.dumps(PHRASES))
        assert PhraseBank.from_file(tmp_path / "phrases.json").concepts == tuple(PHRASES)
        with pytest.raises(FileNotFoundError, match="none.json does not exist"):
            PhraseBank.from_file(tmp_path / "none.json")
        (tmp_path / "list.json").write_text('["a star"]')
        with pytest.raises(ValueError, match="but is a list"):
            PhraseBank.from_file(tmp_path / "list.json")
        (tmp_path / "cut.json").write_text('{"star": [')
        with pytest.raises(ValueError, match="not valid JSON"):
            PhraseBank.from_file(tmp_path / "cut.json")

    def test_nearest_concepts_are_the_most_similar(self, clip):
        oracle, texts = Oracle(clip), FrozenTexts(clip)
        names = list(PHRASES)
        images = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
        similarities = unit(list(images)) @ unit([oracle.text(f"a photo of {name}") for name in names]).T
        found = nearest_concepts(images, names, texts, 2)
        assert found.tolist() == similarities.argsort(dim=1, descending=True)[:, :2].tolist()
        assert nearest_concepts(images, names, texts, 150).shape == (4, 3)

    def test_an_interrupted_writer_goes_on(self, tmp_path):
        asked = []

        def write(prompt, number):
            asked.append(prompt)
            if len(asked) == 2:
                raise KeyboardInterrupt
            return [f"{prompt} is number {index}" if index else "shines" for index in range(number)]

        path = tmp_path / "phrases.json"
        generate_phrases(["red star"], write, 2, path)
        with pytest.raises(KeyboardInterrupt):
            generate_phrases(["red star", "ring"], write, 2, path)
        bank = generate_phrases(["red star", "ring"], write, 2, path)
        assert asked == ["a photo of red star that", "a photo of ring that", "a photo of ring that"]
        assert bank.rows[1][0] == ("a photo of ring that shines", "a photo of $ that shines")

    def test_a_local_model_writes_phrases(self, tmp_path, clip):
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        size = len(clip.tokenizer)
        config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=size - 1)
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
        clip.tokenizer.save_pretrained(tmp_path)
        write = local_generator(str(tmp_path), seed=3)
        state = torch.random.get_rng_state()
        lines = write("a photo of ring that", 3)
        assert torch.random.get_rng_state().equal(state)
        assert len(set(lines)) == 3 and all(line.startswith("a photo of ring that ") for line in lines)
        assert write("a photo of ring that", 3) == lines


class TestPictures:
    def test_every_form_of_a_picture_is_opened(self, tmp_path):
        array = ScenePairs(1)[0]["picture"]
        path = tmp_path / "one.png"
        Image.fromarray(array).save(path)
        stored = {"bytes": path.read_bytes(), "path": "one.png"}
        for image in (array, Image.fromarray(array), str(path), stored, {"bytes": None, "path": str(path)}):
            assert np.array_equal(np.asarray(open_row_image({"image": image})), array)

    def test_a_broken_picture_is_named(self, tmp_path, clip):
        objective = objective_for("pic2word", clip, projection_for("pic2word"))
        path = tmp_path / "broken.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n cut off")
        with pytest.raises(OSError, match=r"broken\.png"):
            objective.collate([{"image": str(path)}])
        stored = {"bytes": path.read_bytes(), "path": None}
        with pytest.raises(OSError, match="row 17"):
            objective.collate([{"image": stored, "name": "without a name in row 17"}])
        with pytest.raises(FileNotFoundError, match=r"gone\.png"):
            objective.collate([{"image": str(tmp_path / "gone.png")}])

    def test_padding_of_long_pictures_is_followed(self, clip):
        long = np.zeros((48, 120, 3), dtype=np.uint8)
        long[:, 60:] = 255
        objective = objective_for("searle", clip, projection_for("searle"))
        pixels = objective.image_batch([{"image": long}])["pixel_values"]
        expected = clip.image_processor(
            [Image.fromarray(np.pad(long, ((24, 24), (0, 0), (0, 0))))], return_tensors="pt"
        )
        assert pixels.equal(expected["pixel_values"])
        plain = objective_for("pic2word", clip, projection_for("pic2word")).image_batch([{"image": long}])
        assert not plain["pixel_values"].equal(pixels)

    def test_crops_keep_their_share_and_form(self):
        image = Image.fromarray(np.indices((90, 120)).sum(0).astype(np.uint8))
        boxes = []
        original = Image.Image.resize

        def watched(self, size, resample, box):
            boxes.append(box)
            return original(self, size, resample, box=box)

        image.resize = watched.__get__(image)
        for seed in range(200):
            assert random_crop(image, 0.5, (32, 16), random.Random(seed)).size == (32, 16)
        sides = [(right - left, bottom - top) for left, top, right, bottom in boxes]
        areas = [across * down / (90 * 120) for across, down in sides]
        ratios = [across / down for across, down in sides]
        assert 0.49 < min(areas) < 0.55 and 0.9 < max(areas) <= 1
        assert 0.73 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.36
        assert all(left >= 0 and top >= 0 and right <= 120 and bottom <= 90 for left, top, right, bottom in boxes)

    def test_crops_and_features_computed_ahead_exclude_each_other(self, clip):
        projection = projection_for("pic2word")
        objective = OBJECTIVES["pic2word"](clip, projection.config)  # crops 0.9, as published
        with pytest.raises(ValueError, match="`crop_scale` 0.9 crops every picture anew"):
            EncodedRows(rows_for("pic2word"), objective)
        rows = rows_for("pic2word")
        first = objective.collate(rows)["pixel_values"]
        assert objective.collate(rows)["pixel_values"].equal(first)
        other = [{**row, "key": "another epoch"} for row in rows]
        assert not objective.collate(other)["pixel_values"].equal(first)


@pytest.mark.parametrize("backbone", [SiglipTextModelForRTD, Siglip2TextModelForRTD])
@pytest.mark.parametrize("name", ["lincir", "pic2word"])
def test_towers_of_other_families_serve_too(name, backbone, tmp_path):
    """SigLIP is not causal and reads its padding; SigLIP 2's processor returns more than pixels."""
    encoder = tiny_backbone(backbone)
    tokenizer = siglip_tokenizer(tmp_path) if backbone is SiglipTextModelForRTD else gemma_tokenizer()
    pictures = torch.randn(ROWS, 24)
    clip = FrozenCLIP(encoder, tokenizer, torch.nn.Linear(1, 1), None, SCALE)
    projection = ImageToWordProjection.build(name, 24, 32, dropout=0.0)
    objective = objective_for(name, clip, projection)
    rows = [{**row, "image_embeds": picture} for row, picture in zip(rows_for(name), pictures, strict=True)]
    found = loss_of(objective, projection, rows)
    prompts = PromptTokenizer(tokenizer, **encoder.prompt_options())

    def text(line: str, word=None) -> torch.Tensor:
        batch = prompts.mark([line])
        mask = batch.pop("placeholder_mask")
        if word is not None:
            batch |= {"placeholder_mask": mask, "pseudo_words": word.expand(int(mask.sum()), -1)}
        return encoder(**batch).text_embeds[0]

    captions = [row["caption"] for row in rows]
    if name == "pic2word":
        texts = [text("a photo of $", projection(picture[None])[0]) for picture in pictures]
        expected = symmetric_info_nce(texts, list(pictures), SCALE)
    else:
        targets = torch.stack([text(caption) for caption in captions])
        draw = torch.Generator().manual_seed(7)
        noise = torch.randn(ROWS, 24, generator=draw) * torch.rand(ROWS, 1, generator=draw)
        words = projection(targets + noise)
        embeds = [text(line, word) for line, word in zip(mask_keywords(captions), words, strict=True)]
        expected = ((torch.stack(embeds) - targets) ** 2).mean()
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
