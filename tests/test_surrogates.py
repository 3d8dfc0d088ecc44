"""What stands for a projection of vision tokens in training on texts."""

import pytest
import torch
from world_models import random_clip, random_projection, random_retriever

from rtd_hf import FrozenCLIP, ImageToWordProjection, teach_surrogate
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.projections.surrogate import WordSurrogate
from rtd_hf.shapes.pairs import ScenePairs


D = 24


@pytest.fixture
def clip():
    retriever = random_retriever()
    return FrozenCLIP(retriever.text_encoder, retriever.tokenizer, retriever.vision_model, retriever.image_processor)


@pytest.mark.parametrize("takes_context", [False, True])
def test_a_surrogate_learns_what_can_be_learnt(takes_context):
    torch.manual_seed(0)
    embeds, contexts = torch.randn(600, D), torch.randn(600, D)
    targets = embeds @ torch.randn(D, 7) + (contexts @ torch.randn(D, 7) if takes_context else 0)
    surrogate = WordSurrogate(D, 64, 7, takes_context=takes_context)
    losses = []
    given = contexts if takes_context else None
    explained = surrogate.fit(embeds, targets, given, steps=400, on_step=lambda step, loss: losses.append(loss))
    assert explained > 0.9 and losses[-1] < 0.1 * losses[0] and len(losses) == 400
    # What it explains is measured on rows it was not shown: of noise nothing.
    assert WordSurrogate(D, 64, 7).fit(embeds, torch.randn(600, 7), steps=400) < 0.05


def test_the_same_seed_gives_the_same_surrogate():
    torch.manual_seed(0)
    embeds, targets = torch.randn(60, D), torch.randn(60, 5)
    fits = []
    for seed in (0, 0, 1):
        torch.manual_seed(3)
        surrogate = WordSurrogate(D, 16, 5)
        surrogate.fit(embeds, targets, steps=5, seed=seed)
        fits.append(surrogate(embeds))
    assert torch.equal(fits[0], fits[1]) and not torch.equal(fits[0], fits[2])


def test_bounded_ones_stay_between_0_and_1():
    outputs = WordSurrogate(D, 16, 5, bounded=True)(100 * torch.randn(9, D))
    assert 0 <= outputs.min() < 0.1 < 0.9 < outputs.max() <= 1


@pytest.mark.parametrize("rows", [(60, 59), (19, 19)])
def test_rows_that_do_not_match_or_are_too_few(rows):
    with pytest.raises(ValueError, match=r"at least 20 pictures, but have \["):
        WordSurrogate(D, 16, 5).fit(torch.randn(rows[0], D), torch.randn(rows[1], 5))
    with pytest.raises(ValueError, match="`context_embeds`"):
        WordSurrogate(D, 16, 5, takes_context=True).fit(torch.randn(60, D), torch.randn(60, 5))


@pytest.mark.parametrize("method", ["context_i2w", "fti4cir"])
def test_a_projection_with_a_surrogate_is_saved_and_makes_words_of_texts(method, clip, tmp_path):
    projection = random_projection(method)
    words = {name: weight.clone() for name, weight in projection.state_dict().items()}
    contexts = ["is red", "has two stars"] if method == "context_i2w" else None
    explained = teach_surrogate(projection, clip, ScenePairs(64), contexts=contexts, steps=20)
    assert explained < 1 and projection.text_training == "surrogate"
    for name, weight in words.items():  # the projection itself did not move
        assert torch.equal(projection.state_dict()[name], weight), name

    projection.save_pretrained(tmp_path)
    loaded = ImageToWordProjection.from_pretrained(tmp_path)
    assert loaded.text_training == "surrogate" and loaded.text_words == projection.text_words
    embeds = torch.randn(3, random_clip().config.projection_dim)
    with torch.no_grad():
        made = loaded.project_text(embeds, embeds.flip(0))
        torch.testing.assert_close(made, projection.project_text(embeds, embeds.flip(0)), rtol=0, atol=0)
    assert made.shape[:2] == (3, loaded.text_words) and loaded.text_template.count("$") == loaded.text_words


def test_the_words_of_fti4cir_are_made_of_the_features_as_those_of_images(clip):
    """A surrogate that says an image's own features gives its very words."""
    projection = random_projection("fti4cir")
    teach_surrogate(projection, clip, ScenePairs(40), steps=1)
    pixels = clip.image_processor([ScenePairs(40)[i]["picture"] for i in range(40)], return_tensors="pt")
    embeds, patches = clip.encode_image(pixels["pixel_values"])
    with torch.no_grad():
        words = projection(embeds, patches)
        counts = projection.count_words(words)
        features = projection.surrogate_targets(embeds, patches)
        same = projection.words_of_surrogate(features, embeds)
    number = projection.text_words
    assert number == 1 + int((counts - 1).median()) and same.shape[1] == number
    rows = (counts == number).nonzero().squeeze(1)
    assert len(rows) > 3 and len(counts.unique()) > 1
    torch.testing.assert_close(same[rows], words[rows][:, :number], rtol=1e-5, atol=1e-5)


def test_the_words_of_context_i2w_are_taught_with_their_contexts(clip):
    projection, seen = random_projection("context_i2w"), []
    targets = projection.surrogate_targets

    def watched(image_embeds, patch_embeds, context_embeds):
        seen.append(context_embeds)
        return targets(image_embeds, patch_embeds, context_embeds)

    projection.surrogate_targets = watched
    teach_surrogate(projection, clip, ScenePairs(30), contexts=["is red"], contexts_per_picture=3, steps=1)
    ids = clip.tokenizer("a photo of $ , is red", return_tensors="pt")["input_ids"]
    ids[ids == clip.tokenizer.convert_tokens_to_ids("$</w>")] = projection.config.context_placeholder_id
    model = CLIPTextModelForRTD(random_clip().config.text_config)
    model.load_state_dict(clip.text_encoder.state_dict())
    with torch.no_grad():
        expected = model.eval()(ids).text_embeds.expand(30, -1)
    assert len(seen) == 3
    for context in seen:
        torch.testing.assert_close(context, expected, rtol=1e-4, atol=1e-5)


def test_what_needs_no_surrogate_or_has_no_contexts(clip):
    with pytest.raises(ValueError, match="`lincir` projection needs no surrogate"):
        random_projection("lincir").fit_surrogate(torch.randn(30, 96), torch.randn(30, 96))
    pictures = [{"image": ScenePairs(30)[i]["picture"]} for i in range(30)]
    with pytest.raises(ValueError, match="`contexts`, or rows with captions"):
        teach_surrogate(random_projection("context_i2w"), clip, pictures, steps=1)
