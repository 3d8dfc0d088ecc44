"""
The loss and every gradient of one training step against the step as published, written out here in the plainest form:
77 tokens in every row, two sequences per triplet, three passes of the frozen encoder, the loss as a double sum.
"""

import copy
import math

import pytest
import torch
from helpers import (
    REAL_VOCABULARY,
    real_tokenizer,
    tiny_projection,
    tiny_text_model,
    tiny_tokenizer,
    tiny_triplets,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from rtd_hf.data_collator import DataCollatorForRTD
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.trainer import RTDTrainer
from rtd_hf.training_args import RTDTrainingArguments


# What users write: capitals, a name tag, a price, an odd space, a duplicate target, a long text.
TRIPLETS = [
    {
        "reference_caption": "A red  dog on <PERSON>",
        "conditioning_caption": "is blue and costs $5 or $ more",
        "target_caption": "a blue $ dog",
    },
    {
        "reference_caption": "two small birds",
        "conditioning_caption": "are in a tree",
        "target_caption": "Two small birds in a tree",
    },
    {
        "reference_caption": "the car",
        "conditioning_caption": "has a black triangle and is in the grass with a big yellow house on the left",
        "target_caption": "the car with a black triangle",
    },
    {"reference_caption": "a cat", "conditioning_caption": "is a dog that is blue", "target_caption": "a BLUE dog"},
]
TOLERANCE = 1e-5


# ------------------------------------------------------------------------------------------------- the plain reference
def cleaned(caption):
    return caption.replace("<PERSON>", "person").lower().replace("$", "")


def rows_of_77(tokenizer, texts):
    rows = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    assert rows["input_ids"].shape == (len(texts), 77)
    return rows["input_ids"]


def encode_with_words(model, input_ids, placeholder, words):
    """Row i with its word in place of every placeholder, position by position; the model is the stock one."""

    def overwrite(module, args, embeddings):
        rows = []
        for i, row in enumerate(input_ids.tolist()):
            rows.append([words[i] if token == placeholder else embeddings[i, j] for j, token in enumerate(row)])
        return torch.stack([torch.stack(row) for row in rows])

    hook = model.get_input_embeddings().register_forward_hook(overwrite)
    embeds = model(input_ids=input_ids).text_embeds
    hook.remove()
    return embeds


def nt_xent(queries, anchors, texts, temperature, masked):
    """-1/2N sum_k [s(k, partner) - log sum over l != k of exp s(k, l)] over the 2N joint vectors."""
    vectors = [vector / vector.norm() for vector in [*anchors, *queries]]
    texts, half = texts + texts, len(queries)
    total = 0
    for k in range(2 * half):
        partner = (k + half) % (2 * half)
        denominator = 0
        for m in range(2 * half):
            if m != k and (m == partner or not (masked and texts[m] == texts[k])):
                denominator = denominator + ((vectors[k] * vectors[m]).sum() / temperature).exp()
        total = total + (vectors[k] * vectors[partner]).sum() / temperature - denominator.log()
    return -total / (2 * half)


def info_nce(queries, anchors, texts, temperature, masked):
    """Each query among the anchors and each anchor among the queries, averaged."""
    queries, anchors = ([vector / vector.norm() for vector in side] for side in (queries, anchors))
    total = 0
    for rows, columns in ((queries, anchors), (anchors, queries)):
        for k, row in enumerate(rows):
            kept = [m for m in range(len(columns)) if m == k or not (masked and texts[m] == texts[k])]
            denominator = sum(((row * columns[m]).sum() / temperature).exp() for m in kept)
            total = total + (row * columns[k]).sum() / temperature - denominator.log()
    return -total / (2 * len(queries))


def published_step(moving, frozen, projection, tokenizer, triplets, noise, options):
    """The loss; its graph reaches the parameters of `moving`."""
    references = [cleaned(row["reference_caption"]) for row in triplets]
    targets = [cleaned(row["target_caption"]) for row in triplets]
    changes = [row["conditioning_caption"].replace("$", "") for row in triplets]
    target_rows, reference_rows = rows_of_77(tokenizer, targets), rows_of_77(tokenizer, references)

    with torch.no_grad():
        words = projection(frozen(input_ids=reference_rows).text_embeds + noise)[:, 0]
    anchor_encoder = frozen if options.get("anchored", True) else moving
    with torch.set_grad_enabled(anchor_encoder is moving):
        target_embeds = anchor_encoder(input_ids=target_rows).text_embeds
        reference_embeds = anchor_encoder(input_ids=reference_rows).text_embeds

    subjects = ["$"] * len(triplets) if options.get("refined_concatenation", True) else references
    composed = [f"a photo of {subject} that {change}" for subject, change in zip(subjects, changes, strict=True)]
    placeholder = tokenizer.convert_tokens_to_ids("$</w>")
    queries = encode_with_words(moving, rows_of_77(tokenizer, composed), placeholder, words)
    anchors, texts = target_embeds, targets
    if options.get("refined_batch", True):
        bare = rows_of_77(tokenizer, [f"a photo of {subject}" for subject in subjects])
        queries = torch.cat([queries, encode_with_words(moving, bare, placeholder, words)])
        anchors, texts = torch.cat([anchors, reference_embeds]), targets + references
    loss = info_nce if options.get("loss_type") == "info_nce" else nt_xent
    texts = [" ".join(text.split()) for text in texts]
    return loss(queries, anchors, texts, options.get("temperature", 0.07), options.get("mask_duplicates", False))


# ------------------------------------------------------------------------------------------------------ the comparison
def compare(model, projection, tokenizer, triplets, folder, **options):
    """One step of `RTDTrainer` on an encoder that has left its anchor, and the published step on copies of both."""
    options = {"noise_type": "none", **options}
    trainer = RTDTrainer(
        model,
        RTDTrainingArguments(output_dir=str(folder), use_cpu=True, **options),
        projection=projection,
        processing_class=tokenizer,
    )
    assert isinstance(trainer.data_collator, DataCollatorForRTD)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    moving, frozen = copy.deepcopy(model.to_stock()), trainer.anchor_model.to_stock()
    assert type(moving) is type(frozen) is CLIPTextModelWithProjection

    model.train()
    loss = trainer.compute_loss(model, trainer.data_collator(triplets))
    loss.backward()

    # The very noise of that step: its key is where the draws start again.
    trainer._draw_key = ("", -1)
    noise = trainer._noise_like(torch.empty(len(triplets), projection.config.input_dim))
    expected = published_step(moving, frozen, projection, tokenizer, triplets, noise, options)
    expected.backward()

    assert math.isclose(loss.item(), expected.item(), rel_tol=TOLERANCE)
    assert expected > 0.1
    compare_gradients(dict(model.named_parameters()), dict(moving.named_parameters()))
    return loss.item(), noise


def compare_gradients(ours, theirs):
    """Within the tolerance relative to the largest entry of each tensor, and none is zero without a reason."""
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        largest, error = parameter.grad.abs().max(), (ours[name].grad - parameter.grad).abs().max()
        if name.endswith("k_proj.bias"):
            # It adds the same number to all scores of a query, which the softmax takes out again: the true gradient
            # is zero, and both are the rounding errors of their own order of summation.
            scale = theirs[name.replace("bias", "weight")].grad.abs().max()
            assert largest < TOLERANCE * scale and error < TOLERANCE * scale
            continue
        assert largest > 1e-5, name
        assert error <= TOLERANCE * largest, f"{name}: {error / largest:.1e}"


@pytest.mark.parametrize("legacy_eos", [False, True], ids=["eos", "legacy-eos"])
@pytest.mark.parametrize("loss_type", ["nt_xent", "info_nce"])
@pytest.mark.parametrize("refined_batch", [True, False], ids=["two-prompts", "one-prompt"])
@pytest.mark.parametrize("refined_concatenation", [True, False], ids=["pseudo-word", "literal"])
@pytest.mark.parametrize(
    "layout", [{}, {"packing": False}, {"mini_batch_size": 3}], ids=["packed", "padded", "mini-batches"]
)
def test_step_is_the_published_one(tmp_path, legacy_eos, loss_type, refined_batch, refined_concatenation, layout):
    model = tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos)
    options = {"refined_batch": refined_batch, "refined_concatenation": refined_concatenation, **layout}
    compare(model, tiny_projection(), tiny_tokenizer(), TRIPLETS, tmp_path, loss_type=loss_type, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_type": "scaled_gaussian"},
        {"noise_type": "gaussian", "noise_scale": 1.5},
        {"temperature": 0.3},
        {"mask_duplicates": True},
        {"mask_duplicates": True, "loss_type": "info_nce", "refined_batch": False},
        {"anchored": False},
        {"anchored": False, "refined_batch": False},
        {"anchored": False, "packing": False},
    ],
    ids=str,
)
def test_every_option_means_what_the_reference_does(tmp_path, options):
    def step(**chosen):
        model = tiny_text_model(CLIPTextModelForRTD)
        torch.manual_seed(0)
        return compare(model, tiny_projection(), tiny_tokenizer(), TRIPLETS, tmp_path, **chosen)

    loss, noise = step(**options)
    assert noise.any() == ("noise_type" in options)
    default, _ = step(**{name: options[name] for name in ("loss_type", "refined_batch") if name in options})
    assert abs(loss - default) > 1e-3  # or the option was not used on either side


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_template_with_the_caption_first_takes_two_rows(tmp_path, packing):
    projection = tiny_projection(prompt_template="{caption} in the photo of $")
    model, tokenizer = tiny_text_model(CLIPTextModelForRTD), tiny_tokenizer()
    arguments = RTDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, noise_type="none", packing=packing)
    trainer = RTDTrainer(model, arguments, projection=projection, processing_class=tokenizer)
    triplets = tiny_triplets(4)
    batch = trainer.data_collator(triplets)
    assert len(batch["packed_rows"][0].ends if packing else batch["input_ids"]) == 8
    _, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    texts = [f"{row['conditioning_caption']} in the photo of $" for row in triplets] + ["in the photo of $"] * 4
    stock = model.to_stock()
    with torch.no_grad():
        references = stock(input_ids=rows_of_77(tokenizer, [row["reference_caption"] for row in triplets]))
        words = projection(references.text_embeds)[:, 0].repeat(2, 1)
        placeholder = tokenizer.convert_tokens_to_ids("$</w>")
        expected = encode_with_words(stock, rows_of_77(tokenizer, texts), placeholder, words)
    torch.testing.assert_close(outputs["queries"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("noise_type", ["none", pytest.param("scaled_gaussian", marks=pytest.mark.huge)])
def test_step_is_the_published_one_at_the_size_of_l14(tmp_path, noise_type):
    tokenizer = real_tokenizer() if REAL_VOCABULARY.is_file() else tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    model = CLIPTextModelForRTD(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 123_650_304
    for name, parameter in model.named_parameters():
        # Wider than CLIP's own initialisation, under which all texts look alike and differences are rounding errors.
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.0 if "embedding" in name else parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    projection = ImageToWordProjection.build("lincir", 768, 768)
    compare(model, projection, tokenizer, TRIPLETS, tmp_path, noise_type=noise_type)
