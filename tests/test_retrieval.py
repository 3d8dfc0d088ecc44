import io
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPTextModelWithProjection
from world_models import random_clip, random_retriever, world_tokenizer

from rtd_hf.images import open_image, pad_to_ratio
from rtd_hf.shapes.pictures import picture
from rtd_hf.shapes.scenes import sample_scene


TEXTS = [
    "is red",
    "move the large star to the left and has three rings",
    "add a blue circle",
    "is on a navy background",
]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = random.Random(0)
    return [picture(sample_scene(rng), seed) for seed in range(7)]


@pytest.fixture(scope="module")
def retriever():
    return random_retriever()


@pytest.fixture(scope="module")
def stock_text_model() -> CLIPTextModelWithProjection:
    model = CLIPTextModelWithProjection(random_clip().config.text_config)
    model.load_state_dict({name: random_clip().state_dict()[name] for name in model.state_dict()}, strict=True)
    return model.eval()


def stock_query(model, word: torch.Tensor, text: str) -> torch.Tensor:
    """A composed query as plain as can be: one row, no padding, the stock model, the word put in by a hook."""
    ids = world_tokenizer()(f"a photo of $ that {text}", return_tensors="pt")["input_ids"]
    place = ids[0].tolist().index(world_tokenizer().convert_tokens_to_ids("$</w>"))

    def put_in(module, args, output):
        output = output.clone()
        output[0, place] = word
        return output

    hook = model.text_model.embeddings.token_embedding.register_forward_hook(put_in)
    try:
        with torch.no_grad():
            return model(input_ids=ids).text_embeds[0]
    finally:
        hook.remove()


# ---------------------------------------- images
def test_image_embeddings_are_those_of_the_stock_model_one_by_one(pictures):
    retriever = random_retriever(batch_size=3)
    with torch.no_grad():
        expected = torch.cat(
            [
                random_clip().get_image_features(**retriever.image_processor(one, return_tensors="pt")).pooler_output
                for one in pictures
            ]
        )
    embeds = retriever.embed_images(pictures)
    torch.testing.assert_close(embeds, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(embeds.norm(dim=-1), torch.ones(len(pictures)), atol=0.1)
    torch.testing.assert_close(retriever.encode_images(pictures), F.normalize(expected, dim=-1), rtol=1e-5, atol=1e-5)


def test_images_arrive_as_pictures_arrays_files_or_a_callable(retriever, pictures, tmp_path):
    paths = []
    for number, one in enumerate(pictures):
        paths.append(tmp_path / f"{number}.png")
        one.save(paths[-1])
    expected = retriever.embed_images(pictures)
    sources = {
        "arrays": [np.asarray(one) for one in pictures],
        "paths": paths,
        "strings": [str(path) for path in paths],
        "mixed": [paths[0], *pictures[1:]],
    }
    for name, images in sources.items():
        torch.testing.assert_close(retriever.embed_images(images), expected, rtol=0, atol=1e-5, msg=name)
    opened = []
    embeds = retriever.embed_images(lambda i: opened.append(i) or paths[i], number=len(paths))
    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-5)
    assert opened == list(range(len(paths)))


@pytest.mark.parametrize(
    "images, options, error, message",
    [
        ([], {}, ValueError, "at least one image"),
        ("one.png", {}, TypeError, "Put it in a list"),
        (lambda i: None, {}, TypeError, "`number`"),
    ],
)
def test_images_that_are_none(retriever, images, options, error, message):
    with pytest.raises(error, match=message):
        retriever.embed_images(images, **options)


def jpeg(size: int = 96) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


DAMAGED = {
    "truncated.jpg": jpeg()[: len(jpeg()) // 2],
    "truncated.png": png()[: len(png()) // 2],
    "flipped.png": png()[:200] + bytes(300) + png()[500:],
    "text.jpg": b"this is no picture\n",
    "empty.png": b"",
    "header.jpg": jpeg()[:20],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_picture_is_named(retriever, pictures, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    for images in ([pictures[0], path], [str(path)]):
        with pytest.raises(OSError) as caught:
            retriever.embed_images(images)
        assert str(path) in str(caught.value)
        assert "Copy or download it again" in str(caught.value)
        assert f"({len(DAMAGED[name])} bytes)" in str(caught.value)


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture at .*gone.jpg"):
        open_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("one.jpg" if mode == "CMYK" else "one.png")
    Image.fromarray(np.full((8, 8, 3), 204, np.uint8)).convert(mode).save(path)
    image = open_image(path)
    assert image.mode == "RGB" and image.size == (8, 8)
    path.unlink()
    assert np.abs(np.asarray(image).astype(int) - 204).max() <= 4  # read in full before the file went


# ---------------------------------------- queries
def test_queries_are_those_of_the_stock_model_one_by_one(pictures, stock_text_model):
    retriever = random_retriever(batch_size=2)
    embeds = retriever.embed_images(pictures[:4])
    with torch.no_grad():
        words = retriever.projection(embeds)[:, 0]
    expected = torch.stack(
        [stock_query(stock_text_model, word, text) for word, text in zip(words, TEXTS, strict=True)]
    )
    queries = retriever.encode_queries(embeds, TEXTS)
    torch.testing.assert_close(queries, F.normalize(expected, dim=-1), rtol=1e-5, atol=1e-5)
    # The order in which texts are batched (by length) must not show: the rows are far apart.
    assert (queries @ queries.T).fill_diagonal_(0).max() < 0.99


def test_several_captions_are_joined_in_both_orders_and_averaged_after_normalisation(
    retriever, pictures, stock_text_model
):
    embeds = retriever.embed_images(pictures[:3])
    texts = [("is red", "has three rings and is on grey"), "is blue", ("is red", "is small", "is large")]
    with torch.no_grad():
        words = retriever.projection(embeds)[:, 0]
    expected = []
    for word, entry in zip(words, texts, strict=True):
        entry = (entry,) if isinstance(entry, str) else (" and ".join(entry), " and ".join(entry[::-1]))
        parts = [F.normalize(stock_query(stock_text_model, word, text), dim=-1) for text in entry]
        expected.append(F.normalize(torch.stack(parts).mean(0), dim=-1))
    torch.testing.assert_close(retriever.encode_queries(embeds, texts), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_plain_texts(retriever, stock_text_model):
    texts = ["a long striped caption of a small red star on grey", "a ring", ("a ring", "a cross on navy")]
    features = []
    joined = ["a ring and a cross on navy", "a cross on navy and a ring"]
    for text in ["a long striped caption of a small red star on grey", "a ring", *joined]:
        with torch.no_grad():
            embeds = stock_text_model(**world_tokenizer()(text, return_tensors="pt")).text_embeds[0]
        features.append(F.normalize(embeds, dim=-1))
    both = F.normalize(features[2] + features[3], dim=-1)
    expected = torch.stack([features[0], features[1], both])
    torch.testing.assert_close(retriever.encode_texts(texts), expected, rtol=1e-5, atol=1e-5)


def test_a_dollar_in_a_text_is_no_placeholder(retriever, pictures):
    embeds = retriever.embed_images(pictures[:1])
    torch.testing.assert_close(
        retriever.encode_queries(embeds, ["is $ red"]), retriever.encode_queries(embeds, ["is red"])
    )


def test_another_text_encoder_can_be_scored(retriever, pictures):
    other = random_retriever().text_encoder
    with torch.no_grad():
        other.text_projection.weight.neg_()
    embeds = retriever.embed_images(pictures[:2])
    own = retriever.encode_queries(embeds, TEXTS[:2])
    torch.testing.assert_close(retriever.encode_queries(embeds, TEXTS[:2], text_encoder=other), -own)
    torch.testing.assert_close(
        retriever.encode_texts(TEXTS, text_encoder=other), -retriever.encode_texts(TEXTS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "texts, message", [(["is red"], "got 1 for 2"), (["is red", ()], "1 entries without one .the first is 1")]
)
def test_texts_that_do_not_fit(retriever, pictures, texts, message):
    with pytest.raises(ValueError, match=message):
        retriever.encode_queries(retriever.embed_images(pictures[:2]), texts)


def test_no_texts_at_all(retriever):
    with pytest.raises(ValueError, match="nothing at all"):
        retriever.encode_texts([])


# ---------------------------------------- mode
def test_dropout_is_off_and_every_module_gets_its_own_mode_back(pictures):
    retriever = random_retriever()
    quiet = retriever.encode_queries(retriever.embed_images(pictures[:3]), TEXTS[:3])
    parts = (retriever.text_encoder, retriever.vision_model, retriever.projection)
    for part in parts:
        part.train()
        for module in part.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.5  # attention
    retriever.text_encoder.text_model.encoder.layers[0].eval()
    modes = [[module.training for module in part.modules()] for part in parts]
    assert any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in retriever.projection.modules())

    torch.testing.assert_close(retriever.encode_queries(retriever.embed_images(pictures[:3]), TEXTS[:3]), quiet)
    assert [[module.training for module in part.modules()] for part in parts] == modes

    retriever.prompts.compose = None  # a failure in the middle
    with pytest.raises(TypeError):
        retriever.encode_queries(retriever.embed_images(pictures[:3]), TEXTS[:3])
    assert [[module.training for module in part.modules()] for part in parts] == modes


def test_nothing_asks_for_a_gradient(retriever, pictures):
    embeds = retriever.embed_images(pictures[:2])
    assert not embeds.requires_grad
    assert not retriever.encode_queries(embeds, TEXTS[:2]).requires_grad
    assert not retriever.encode_texts(TEXTS).requires_grad


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        ((100, 50), (100, 80)),  # 100 / 1.25 = 80
        ((50, 100), (80, 100)),
        ((101, 50), (101, 80)),  # 80.8 - 50 = 30.8, on each side 15 whole pixels
        ((100, 81), (100, 81)),
        ((64, 64), (64, 64)),
    ],
)
def test_long_pictures_are_padded_to_the_ratio(size, padded):
    image = pad_to_ratio(Image.new("RGB", size, "white"))
    assert image.size == padded
    pixels = np.asarray(image)
    assert (pixels == 255).all(-1).sum() == size[0] * size[1] and set(np.unique(pixels)) <= {0, 255}
    assert (pixels == pixels[::-1, ::-1]).all()  # as much on one side as on the other


def test_pictures_are_prepared_as_the_projection_asks(tmp_path):
    """SEARLE's is fitted to padded pictures, LinCIR's is not; files, arrays and pictures are treated alike."""
    retriever, seen = random_retriever(), []
    process = retriever.image_processor

    def spy(images, **options):
        seen.extend(np.asarray(image).shape[:2] for image in images)
        return process(images, **options)

    long = Image.new("RGB", (100, 50), "red")
    long.save(tmp_path / "long.png")
    images = [long, np.asarray(long), tmp_path / "long.png"]
    retriever.image_processor = spy
    plain = retriever.embed_images(images)
    assert seen == [(50, 100)] * 3
    seen.clear()
    retriever.projection.config.image_preprocess = "targetpad"
    padded = retriever.embed_images(images)
    assert seen == [(80, 100)] * 3
    assert torch.equal(padded[0], padded[1]) and torch.equal(padded[0], padded[2])
    assert (plain - padded).abs().max() > 1e-3


# ---------------------------------------- projections that read patches, and the query's text
METHODS = ["pic2word", "searle", "lincir", "context_i2w", "fti4cir"]


def tokens_of(image, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The image embedding `(1, D)` and the tokens before the final layer norm `(1, 1 + patches, W)`."""
    retriever = random_retriever(method)
    if method in ("searle", "fti4cir"):
        image = pad_to_ratio(image)
    with torch.no_grad():
        output = retriever.vision_model(**retriever.image_processor([image], return_tensors="pt"))
    return output.image_embeds, output.last_hidden_state


def one_query(method: str, model, image, caption: str) -> torch.Tensor:
    """A query by the projection's own rules, token by token, with the stock text model."""
    projection, tokenizer = random_retriever(method).projection.eval(), world_tokenizer()
    dollar = tokenizer.convert_tokens_to_ids("$</w>")
    template = {"pic2word": "a photo of $ , {}", "context_i2w": "a photo of $ , {}"}.get(
        method, "a photo of $ that {}"
    )
    embeds, tokens = tokens_of(image, method)
    context = None
    if method == "context_i2w":
        ids = tokenizer(template.format(caption), return_tensors="pt")["input_ids"]
        context = model(input_ids=torch.where(ids == dollar, 5, ids)).text_embeds
    with torch.no_grad():
        words = projection(embeds, tokens, context)[0]
    if method == "fti4cir":
        words = words[words.abs().sum(-1) > 0]
        template = "a photo of $ with " + "$ " * (len(words) - 1) + "but {}"
    ids = tokenizer(template.format(caption), return_tensors="pt")["input_ids"]
    places = (ids[0] == dollar).nonzero().squeeze(1)
    hook = model.text_model.embeddings.token_embedding.register_forward_hook(
        lambda module, args, output: output.index_put((torch.tensor(0), places), words)
    )
    try:
        with torch.no_grad():
            return F.normalize(model(input_ids=ids).text_embeds[0], dim=-1)
    finally:
        hook.remove()


@pytest.mark.parametrize("method", METHODS)
def test_queries_of_every_projection_are_those_by_hand(method, pictures, stock_text_model):
    # Two captions: Pic2Word and Context-I2W take one order, the last first, the others the mean of both.
    texts = [*TEXTS, ("is red. ", "has three rings, "), "is blue", "is small"]
    retriever = random_retriever(method, batch_size=3)
    wide = [pictures[0].resize((96, 48)), *pictures[1:]]  # where padding shows
    expected = []
    for image, text in zip(wide, texts, strict=True):
        orders = [text]
        if not isinstance(text, str):
            orders = ["is red and has three rings", "has three rings and is red"]
            if method in ("pic2word", "context_i2w"):
                orders = ["has three rings,  and is red. "]
        parts = [one_query(method, stock_text_model, image, order) for order in orders]
        expected.append(F.normalize(torch.stack(parts).mean(0), dim=-1))
    queries = retriever.encode_queries(retriever.embed_references(wide), texts)
    torch.testing.assert_close(queries, torch.stack(expected), rtol=1e-4, atol=2e-5)


def test_images_differ_in_their_number_of_words(pictures):
    retriever = random_retriever("fti4cir")
    counts = retriever.compose(retriever.embed_references(pictures), ["is red"] * len(pictures)).counts
    assert len(set(counts)) > 1 and 2 <= min(counts) and max(counts) <= 5


def test_the_context_is_read_by_the_original_encoder(pictures):
    retriever = random_retriever("context_i2w")
    references, other = retriever.embed_references(pictures[:3]), random_retriever().text_encoder
    before = retriever.compose(references, TEXTS[:3]).words
    with torch.no_grad():
        for encoder in (retriever.text_encoder, other):
            encoder.text_projection.weight.mul_(-1)
    torch.testing.assert_close(retriever.compose(references, TEXTS[:3]).words, before, rtol=0, atol=0)
    retriever.context_encoder = other
    assert (retriever.compose(references, TEXTS[:3]).words - before).abs().max() > 1e-3


def test_a_context_encoder_or_patches_that_are_missing(pictures):
    with pytest.raises(ValueError, match="`context_encoder` is missing"):
        random_retriever("context_i2w", context_encoder=None)
    retriever = random_retriever("fti4cir")
    with pytest.raises(ValueError, match="embed_references"):
        retriever.encode_queries(retriever.embed_images(pictures[:1]), ["is red"])


def test_the_template_of_a_benchmark(pictures):
    retriever = random_retriever("pic2word")
    embeds = retriever.embed_images(pictures[:2])
    templates = {name: retriever.compose(embeds, TEXTS[:2], benchmark=name).templates[0] for name in ("cirr", "coco")}
    assert templates == {"cirr": "a photo of $ , {caption}", "coco": "a photo of $ and {caption}"}
    queries = [retriever.encode_queries(embeds, TEXTS[:2], benchmark=name) for name in ("", "cirr", "coco")]
    torch.testing.assert_close(queries[0], queries[1], rtol=0, atol=0)
    assert (queries[0] - queries[2]).abs().max() > 1e-3
