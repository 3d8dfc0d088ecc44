import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_text_model
from safetensors.torch import load_file
from torch import nn

from rtd_hf.projections import (
    PROJECTIONS,
    ImageToWordProjection,
    LinCIRProjection,
    Pic2WordProjection,
    ProjectionConfig,
    SEARLEProjection,
)
from rtd_hf.registry import RegistryError
from rtd_hf.texts import check_template


D, H, W = 24, 32, 40
EVERY_PROJECTION = pytest.mark.parametrize("name", list(PROJECTIONS))


def linear(module, inputs):
    return inputs @ module.weight.T + module.bias


def build(name, *widths, **options):
    """As `ImageToWordProjection.build`; what reads patches is also told their width, which does not follow from D."""
    if PROJECTIONS[name].needs_patches:
        options["vision_hidden_size"] = W
    return ImageToWordProjection.build(name, *widths, **options)


def words_of(projection, embeds):
    """Of a text's embeddings; where texts cannot stand for images, of images with these embeddings and contexts."""
    if not projection.needs_patches:
        return projection.project_text(embeds)
    patches = torch.randn(embeds.shape[0], 7, W, generator=torch.Generator().manual_seed(0))
    return projection(embeds, patches, embeds)


def sizes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# The contract of every projection


@EVERY_PROJECTION
def test_image_and_text_embeddings_become_pseudo_words(name):
    projection = build(name, D, H)
    assert isinstance(projection, PROJECTIONS[name]) and not projection.training
    embeds = torch.randn(5, D)
    patches, context = torch.randn(5, 7, W), torch.randn(5, D)
    with torch.no_grad():
        words = projection(embeds, patch_embeds=patches, context_embeds=context)
    most = projection.config.num_pseudo_words
    assert words.shape == (5, most, H)
    for way in projection.text_trainings:
        if way == "surrogate":
            images = torch.randn(20, D), torch.randn(20, 7, W), torch.randn(20, D)
            targets = projection.surrogate_targets(*images).detach()
            contexts = images[2] if projection.needs_context else None
            projection.fit_surrogate(images[0], targets, contexts, steps=1)
        projection.config.text_training = way
        if way == "literal":
            assert projection.text_words == 0
            with pytest.raises(ValueError, match=f"`{name}` projection makes no words of texts"):
                projection.project_text(embeds)
        else:
            assert projection.project_text(embeds, context).shape == (5, projection.text_words, H)
            assert check_template(projection.text_template).count("$") == projection.text_words
    # Unused places are zero, and the template for the words there are has as many placeholders.
    for number, row in zip(projection.count_words(words).tolist(), words, strict=True):
        assert row[:number].any(dim=-1).all() and not row[number:].any()
        assert check_template(projection.template_for(number)).count("$") == number
    assert words.dtype == torch.float32
    # Row by row, and dependent on the input.
    with torch.no_grad():
        alone = projection(embeds[2:3], patch_embeds=patches[2:3], context_embeds=context[2:3])
    torch.testing.assert_close(alone, words[2:3], rtol=0, atol=1e-6)
    assert (words[0] - words[1]).abs().max() > 1e-3


@EVERY_PROJECTION
def test_the_configuration_states_the_facts_of_the_projection(name):
    config = build(name, D, H, base_model="openai/clip-vit-large-patch14").config
    assert (config.projection_type, config.input_dim, config.output_dim) == (name, D, H)
    assert config.base_model == "openai/clip-vit-large-patch14"
    assert config.image_preprocess in ("clip", "targetpad")
    assert check_template(config.prompt_template) == config.prompt_template
    for template in config.benchmark_templates.values():
        assert check_template(template) == template
    assert config.caption_order in ("both", "last_first")
    assert build(name, D).config.output_dim == D


@EVERY_PROJECTION
def test_a_saved_projection_comes_back_as_its_class_with_its_weights(name, tmp_path):
    projection = build(name, D, H, dropout=0.25)
    projection.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == projection.state_dict().keys()
    embeds = torch.randn(5, D)
    for loader in (ImageToWordProjection, PROJECTIONS[name]):
        loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is PROJECTIONS[name] and not loaded.training
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert torch.equal(words_of(loaded, embeds), words_of(projection, embeds))
        assert loaded.config.to_diff_dict().items() >= {"dropout": 0.25, "projection_type": name}.items()
    half = ImageToWordProjection.from_pretrained(str(tmp_path), dtype=torch.float16, dropout=0.75)
    assert half.dtype == torch.float16 and half.config.dropout == 0.75


@EVERY_PROJECTION
def test_another_width_is_refused_with_both_widths(name):
    projection = build(name, D, H, base_model="some/clip")
    with pytest.raises(ValueError, match=f"are 25 wide, .*`{name}` projection takes `input_dim` {D}.*some/clip"):
        words_of(projection, torch.randn(3, D + 1))
    with pytest.raises(ValueError, match=r"shape \(batch, 24\), but have \(24,\)"):
        words_of(projection, torch.randn(D))


@EVERY_PROJECTION
def test_dropout_acts_in_training_only_and_gradients_flow(name):
    projection = build(name, D, H, dropout=0.5)
    for parameter, tensor in projection.named_parameters():
        if parameter.endswith("gate"):  # shut at first, so that what lies behind it has no gradient yet
            tensor.data.fill_(0.5)
    embeds = torch.randn(4, D, requires_grad=True)
    assert torch.equal(words_of(projection, embeds), words_of(projection, embeds))
    projection.train()
    assert not torch.equal(words_of(projection, embeds), words_of(projection, embeds))
    words_of(projection, embeds).square().sum().backward()
    assert embeds.grad.abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in projection.parameters())


@EVERY_PROJECTION
def test_its_words_fit_the_text_encoder_it_is_built_for(name):
    config = tiny_text_model().config
    projection = build(name, config.projection_dim, config.hidden_size)
    assert words_of(projection, torch.randn(2, config.projection_dim)).shape[-1] == config.hidden_size


def test_a_half_precision_projection_takes_full_precision_embeddings():
    projection = ImageToWordProjection.build("lincir", D, H).half()
    assert projection(torch.randn(2, D)).dtype == torch.float16


# The published architectures


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [
        ("searle", 512, 6_296_064),
        ("searle", 768, 14_162_688),
        ("lincir", 768, 14_162_688),
        ("pic2word", 768, 1_050_368),
    ],
)
def test_the_published_numbers_of_parameters(name, width, parameters):
    with torch.device("meta"):
        projection = ImageToWordProjection.build(name, width)
    assert projection.num_parameters() == parameters


@pytest.mark.parametrize("projection_class", [SEARLEProjection, LinCIRProjection])
def test_searle_and_lincir_have_the_published_keys_and_formula(projection_class):
    projection = ImageToWordProjection.build(projection_class.projection_type, D, H)
    assert sizes(projection) == {
        "layers.0.weight": (4 * D, D),
        "layers.0.bias": (4 * D,),
        "layers.3.weight": (4 * D, 4 * D),
        "layers.3.bias": (4 * D,),
        "layers.6.weight": (H, 4 * D),
        "layers.6.bias": (H,),
    }
    embeds = torch.randn(5, D)
    gelu = lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))  # noqa: E731
    hidden = gelu(linear(projection.layers[3], gelu(linear(projection.layers[0], embeds))))
    torch.testing.assert_close(projection(embeds)[:, 0], linear(projection.layers[6], hidden), rtol=0, atol=1e-6)
    assert [type(layer) for layer in projection.layers[:3]] == [nn.Linear, nn.GELU, nn.Dropout]
    assert [layer.p for layer in projection.layers if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_pic2word_has_the_published_keys_and_formula():
    projection = ImageToWordProjection.build("pic2word", D, H)
    assert sizes(projection) == {
        "layers.0.0.weight": (512, D),
        "layers.0.0.bias": (512,),
        "layers.1.0.weight": (512, 512),
        "layers.1.0.bias": (512,),
        "fc_out.weight": (H, 512),
        "fc_out.bias": (H,),
    }
    embeds = torch.randn(5, D)
    hidden = F.relu(linear(projection.layers[1][0], F.relu(linear(projection.layers[0][0], embeds))))
    torch.testing.assert_close(projection(embeds)[:, 0], linear(projection.fc_out, hidden), rtol=0, atol=1e-6)
    for block in projection.layers:
        assert [type(layer) for layer in block] == [nn.Linear, nn.Dropout, nn.ReLU]
        assert block[1].p == 0.1


def as_a_cached_repository(cache, repo, files):
    """Lays files out as the Hub's cache holds a downloaded repository; offline, it is all that there is of the Hub."""
    folder, commit = cache / f"models--{repo.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(files, folder / "snapshots" / commit)


def test_a_folder_a_hub_id_or_a_subfolder_of_either(tmp_path):
    saved = ImageToWordProjection.build("lincir", D, H)
    saved.save_pretrained(tmp_path / "files" / "projection")
    saved.save_pretrained(tmp_path / "alone")
    cache = tmp_path / "cache"
    as_a_cached_repository(cache, "org/rtd-lincir-l14", tmp_path / "files")
    as_a_cached_repository(cache, "org/lincir-l14", tmp_path / "alone")
    options = {"cache_dir": str(cache), "local_files_only": True}
    loaded = [
        ImageToWordProjection.from_pretrained(tmp_path / "files", subfolder="projection"),
        ImageToWordProjection.from_pretrained("org/rtd-lincir-l14", subfolder="projection", **options),
        ImageToWordProjection.from_pretrained("org/lincir-l14", **options),
    ]
    for projection in loaded:
        assert type(projection) is LinCIRProjection
        for name, weight in saved.state_dict().items():
            assert torch.equal(projection.state_dict()[name], weight), name
    with pytest.raises(OSError, match="no `config.json` in `.*files/nothing-here`"):
        ImageToWordProjection.from_pretrained(tmp_path / "files", subfolder="nothing-here")


def test_one_template_for_everything():
    pic2word, fti4cir = build("pic2word", D, H), build("fti4cir", D, H)
    for projection in (pic2word, fti4cir):
        projection.use_template("a photo of $ that  {caption}")
    assert {pic2word.template_for(1, name) for name in ("", "coco", "circo")} == {"a photo of $ that {caption}"}
    assert fti4cir.template_for(3) == "a photo of $ with $ $ that {caption}"
    assert fti4cir.template_for(1) == "a photo of $ that {caption}"
    for template in ("a photo that {caption}", "a photo of $ and $ that {caption}"):
        for projection in (pic2word, fti4cir):
            with pytest.raises(ValueError, match="`template`"):
                projection.use_template(template)


def test_the_publications_prompts_and_preprocessing():
    facts = {name: (entry.prompt_template, entry.image_preprocess) for name, entry in PROJECTIONS.items()}
    assert facts["searle"] == ("a photo of $ that {caption}", "targetpad")
    assert facts["lincir"] == ("a photo of $ that {caption}", "clip")
    assert facts["pic2word"] == ("a photo of $ , {caption}", "clip")


def test_random_weights_are_drawn_as_pytorch_draws_them():
    layer = ImageToWordProjection.build("lincir", 64).layers[3]
    bound = 256**-0.5
    for tensor in (layer.weight, layer.bias):
        assert 0.9 * bound < tensor.abs().max() <= bound
    assert abs(layer.weight.std() - bound / 3**0.5) < 0.02 * bound


# A projection that reads patches is one class


@pytest.fixture
def mean_of_patches():
    @PROJECTIONS.register("mean-of-patches")
    class MeanOfPatches(ImageToWordProjection):
        projection_type = "mean-of-patches"
        num_pseudo_words = 2
        needs_patches = True

        def __init__(self, config):
            super().__init__(config)
            self.output = nn.Linear(config.input_dim, 2 * config.output_dim)
            self.post_init()

        def project(self, image_embeds, patch_embeds, context_embeds):
            return self.output(patch_embeds.mean(dim=1))

        def project_text(self, text_embeds):
            return self(text_embeds, patch_embeds=text_embeds.unsqueeze(1))

    yield MeanOfPatches
    del PROJECTIONS["mean-of-patches"]


def test_a_projection_of_patches_needs_one_class_only(mean_of_patches, tmp_path):
    projection = ImageToWordProjection.build("mean-of-patches", D, H)
    assert projection.project_text(torch.randn(3, D)).shape == (3, 2, H)
    patches = torch.randn(3, 5, D)
    expected = linear(projection.output, patches.mean(dim=1)).view(3, 2, H)
    torch.testing.assert_close(projection(torch.randn(3, D), patches), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="reads `patch_embeds`, but got None"):
        projection(torch.randn(3, D))
    projection.save_pretrained(tmp_path)
    assert type(ImageToWordProjection.from_pretrained(tmp_path)) is mean_of_patches


# Errors


def test_a_directly_built_projection_can_be_loaded_again(tmp_path):
    SEARLEProjection(ProjectionConfig(input_dim=D, hidden_dim=8, output_dim=H)).save_pretrained(tmp_path)
    assert type(ImageToWordProjection.from_pretrained(tmp_path)) is SEARLEProjection


def test_an_unknown_type_is_answered_with_what_there_is(tmp_path):
    projection = ImageToWordProjection.build("lincir", D, H)
    projection.config.projection_type = "linsir"
    projection.save_pretrained(tmp_path)
    with pytest.raises(RegistryError, match="Unknown projection `linsir`. Did you mean `lincir`.*pic2word, searle"):
        ImageToWordProjection.from_pretrained(tmp_path)
    with pytest.raises(RegistryError, match="Unknown projection `fti4cirr`"):
        ImageToWordProjection.build("fti4cirr", D)


def test_a_projection_of_another_class_is_refused(tmp_path):
    ImageToWordProjection.build("searle", D, H).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a `searle` projection .*not a Pic2WordProjection.*ImageToWordProj"):
        Pic2WordProjection.from_pretrained(tmp_path)


def test_a_folder_with_another_model_is_refused(tmp_path):
    tiny_text_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no projection: .*`model_type` is `clip_text_model`"):
        ImageToWordProjection.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="absent"):
        ImageToWordProjection.from_pretrained(tmp_path / "absent")


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_damaged_file_is_named(tmp_path, keep):
    ImageToWordProjection.build("lincir", D, H).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(OSError, match="damaged or cut short .*Delete the file") as error:
        ImageToWordProjection.from_pretrained(tmp_path)
    assert str(file) in str(error.value)


def test_missing_weights_are_refused_instead_of_drawn(tmp_path):
    from safetensors.torch import save_file

    ImageToWordProjection.build("lincir", D, H).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layers.3.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weight.*`layers.3.bias`; they would be random"):
        ImageToWordProjection.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_preprocess": "squash"}, "`image_preprocess` must be one of 'clip', 'targetpad', but is 'squash'"),
        ({"input_dim": 0}, "`input_dim` must be at least 1, but is 0"),
        ({"num_pseudo_words": 0}, "`num_pseudo_words` must be at least 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProjectionConfig(**options)
