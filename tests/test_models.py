import copy
import json
import threading

import pytest
import torch
import transformers
from backbone_models import tiny_backbone
from helpers import tiny_text_config, tiny_text_model, tiny_tokenizer
from safetensors import safe_open
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from rtd_hf.models import BACKBONES, CLIPTextModelForRTD
from rtd_hf.prompts import PromptTokenizer


WIDTH = 32
CAPTIONS = ["is red", "is blue and has a big zebra instead of the dog", "are two"]
EOS_KINDS = pytest.mark.parametrize("legacy_eos", [False, True], ids=["eos", "legacy-eos"])
ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def prompts(tokenizer):
    return PromptTokenizer(tokenizer)


@pytest.fixture
def model():
    return tiny_text_model(CLIPTextModelForRTD)


@pytest.fixture
def words():
    return torch.randn(len(CAPTIONS), 1, WIDTH)


def embeds(model, batch, **arguments):
    with torch.no_grad():
        return model(**batch, **arguments).text_embeds


def padded(tokenizer, texts):
    """Rows of 77 tokens as the stock tokenizer makes them, with the mask of their placeholders."""
    rows = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return rows["input_ids"], rows["input_ids"] == tokenizer.convert_tokens_to_ids("$</w>")


def handwritten(model, input_ids, words=None, mask=None):
    """The CLIP text tower spelled out, with softmax over the past: `(R, D)`, pooled at the first EOS."""
    tower = model.text_model
    rows, length = input_ids.shape
    hidden = tower.embeddings.token_embedding.weight[input_ids]
    if words is not None:
        hidden = hidden.clone()
        hidden[mask] = words.reshape(-1, words.shape[-1])
    hidden = hidden + tower.embeddings.position_embedding.weight[:length]
    future = torch.ones(length, length).triu(1).bool()
    for layer in tower.encoder.layers:
        attention, heads = layer.self_attn, layer.self_attn.num_heads
        normed = layer.layer_norm1(hidden)
        query, key, value = (
            linear(normed).view(rows, length, heads, -1).transpose(1, 2)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        mixed = scores.masked_fill(future, float("-inf")).softmax(dim=-1) @ value
        hidden = hidden + attention.out_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        inner = layer.mlp.fc1(layer.layer_norm2(hidden))
        hidden = hidden + layer.mlp.fc2(inner * torch.sigmoid(1.702 * inner))
    hidden = tower.final_layer_norm(hidden)
    eos = input_ids.argmax(dim=1)  # the highest id of the vocabulary, its first occurrence
    return hidden[torch.arange(rows), eos] @ model.text_projection.weight.T


# The contract of every backbone


@pytest.mark.parametrize("backbone", sorted(set(BACKBONES.values()), key=lambda entry: entry.__name__))
def test_a_backbone_adds_no_weights_and_states_its_facts(backbone):
    assert issubclass(backbone, backbone.stock_class)
    model = tiny_backbone(backbone)
    stock = backbone.stock_class(model.config)
    assert list(model.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(model.state_dict(), strict=True)
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in stock.named_buffers()]
    assert model.config.model_type in BACKBONES and model.config.model_type in backbone.model_types()
    assert model.projection_dim == 24
    longest = model.config.max_position_embeddings
    options = model.prompt_options()
    assert options["padding"] == backbone.padding in ("longest", "max_length") and options["max_length"] == longest
    output = model(input_ids=torch.full((1, longest), min(model.config.eos_token_id, 999)))
    assert isinstance(output, backbone.output_class) and output.text_embeds.shape == (1, 24)
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(backbone.lora_target_modules) <= names
    assert hasattr(backbone.vision_class, "from_pretrained") and hasattr(transformers, backbone.image_processor_class)


def test_a_whole_clip_checkpoints_configuration_leads_to_its_text_backbone():
    assert BACKBONES[CLIPConfig.model_type] is BACKBONES[CLIPTextConfig.model_type] is CLIPTextModelForRTD


# The stock behaviour


@EOS_KINDS
@ATTENTIONS
def test_without_pseudo_words_it_is_the_stock_model(tokenizer, legacy_eos, attention):
    options = {"legacy_eos": legacy_eos, "attn_implementation": attention}
    model, stock = tiny_text_model(CLIPTextModelForRTD, **options), tiny_text_model(**options)
    rows = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours, theirs = model(**rows, output_hidden_states=True), stock(**rows, output_hidden_states=True)
    assert type(ours) is type(theirs)
    assert torch.equal(ours.text_embeds, theirs.text_embeds)
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    assert all(map(torch.equal, ours.hidden_states, theirs.hidden_states))


def test_return_dict_is_honoured(model, prompts, words):
    batch = prompts.compose(CAPTIONS, bare=True)
    expected = embeds(model, batch, pseudo_words=words)
    with torch.no_grad():
        assert torch.equal(model(**batch, pseudo_words=words, return_dict=False)[0], expected)


@EOS_KINDS
@ATTENTIONS
def test_the_placeholders_own_embedding_as_pseudo_word_changes_nothing(prompts, legacy_eos, attention):
    options = {"legacy_eos": legacy_eos, "attn_implementation": attention}
    model, stock = tiny_text_model(CLIPTextModelForRTD, **options), tiny_text_model(**options)
    batch = prompts.compose(CAPTIONS)
    mask = batch.pop("placeholder_mask")
    own = model.get_input_embeddings().weight[prompts.placeholder_id].expand(3, 1, WIDTH)
    expected = embeds(stock, {key: batch[key] for key in ("input_ids", "attention_mask")})
    difference = embeds(model, batch, pseudo_words=own, placeholder_mask=mask) - expected
    assert difference.abs().max() == 0.0


# Injection


@EOS_KINDS
@ATTENTIONS
def test_injection_equals_a_handwritten_causal_forward(tokenizer, words, legacy_eos, attention):
    model = tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos, attn_implementation=attention)
    input_ids, mask = padded(tokenizer, [f"a photo of $ that {caption}" for caption in CAPTIONS])
    ours = embeds(model, {"input_ids": input_ids}, pseudo_words=words, placeholder_mask=mask)
    with torch.no_grad():
        expected = handwritten(model, input_ids, words, mask)
        without = handwritten(model, input_ids)
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)
    assert (expected - without).abs().max() > 0.1  # the pseudo-words matter


def test_gradients_reach_the_encoder_and_the_words(tokenizer, model, words):
    reference = copy.deepcopy(model)
    input_ids, mask = padded(tokenizer, [f"a photo of $ that {caption}" for caption in CAPTIONS])
    ours, theirs = words.clone().requires_grad_(), words.clone().requires_grad_()
    direction = torch.randn(3, 24)
    (model(input_ids, pseudo_words=ours, placeholder_mask=mask).text_embeds * direction).sum().backward()
    (handwritten(reference, input_ids, theirs, mask) * direction).sum().backward()
    assert theirs.grad.abs().max() > 1e-3
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        if "k_proj.bias" not in name:  # softmax is shift-invariant: its true gradient is zero
            assert other.grad.abs().max() > 1e-3, name
    assert model.get_input_embeddings().weight.grad[259].abs().max() == 0  # the replaced embedding plays no part


def test_words_may_be_given_flat_and_rows_may_differ_in_number(model, prompts, tokenizer):
    template = PromptTokenizer(tokenizer, "$ and a $ that {caption}")
    words = torch.randn(3, 2, WIDTH)
    batch = template.compose(CAPTIONS)
    together = embeds(model, batch, pseudo_words=words)
    assert torch.equal(together, embeds(model, batch, pseudo_words=words.reshape(6, WIDTH)))
    assert not torch.allclose(together, embeds(model, batch, pseudo_words=words.flip(1)), atol=1e-2)

    input_ids, mask = padded(tokenizer, ["a photo of $", "$ and a $ in the $", "a dog"])
    words = torch.randn(4, WIDTH)
    mixed = embeds(model, {"input_ids": input_ids}, pseudo_words=words, placeholder_mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(mixed, handwritten(model, input_ids, words, mask), rtol=0, atol=5e-6)


def test_half_precision_words_and_encoder(prompts, words, model):
    batch = prompts.compose(CAPTIONS, bare=True)
    exact = embeds(model, batch, pseudo_words=words)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = embeds(model, batch, pseudo_words=words)
    half = embeds(copy.deepcopy(model).bfloat16(), batch, pseudo_words=words)
    for approximate in (autocast.float(), half.float(), embeds(model, batch, pseudo_words=words.bfloat16())):
        assert 0 < (approximate - exact).abs().max() < 0.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_hook_is_removed_even_after_an_error(prompts, words, attention):
    model = tiny_text_model(CLIPTextModelForRTD, attn_implementation=attention)
    batch = prompts.compose(CAPTIONS)
    embeds(model, batch, pseudo_words=words)
    assert not model.get_input_embeddings()._forward_hooks
    with pytest.raises(IndexError):
        model(**{**batch, "input_ids": batch["input_ids"] + 10_000}, pseudo_words=words)
    with pytest.raises(ValueError, match="Sequence length"):
        tile = {name: value.repeat(1, 9) for name, value in batch.items() if name != "pooling_positions"}
        model(**tile, pseudo_words=torch.randn(27, WIDTH))
    assert not model.get_input_embeddings()._forward_hooks
    stock = tiny_text_model(attn_implementation=attention)
    rows = {"input_ids": batch["input_ids"]}
    assert torch.equal(embeds(model, rows), embeds(stock, rows))


def test_calls_from_two_threads_do_not_see_each_others_words(model, prompts, words):
    batch = prompts.compose(CAPTIONS)
    plain = {"input_ids": batch["input_ids"]}
    other = torch.randn_like(words)
    expected = [
        embeds(model, plain),
        embeds(model, batch, pseudo_words=other),
        embeds(model, batch, pseudo_words=words),
    ]
    seen = []

    def in_between(module, arguments, output):
        handle.remove()
        calls = lambda: seen.extend([embeds(model, plain), embeds(model, batch, pseudo_words=other)])  # noqa: E731
        thread = threading.Thread(target=calls)
        thread.start()
        thread.join()

    handle = model.get_input_embeddings().register_forward_hook(in_between)
    seen.append(embeds(model, batch, pseudo_words=words))
    assert [torch.equal(value, truth) for value, truth in zip(seen, expected, strict=True)] == [True] * 3


# Two prompts in one row


def check_two_in_one(model, tokenizer, template, words, captions, tolerance):
    prompts = PromptTokenizer(tokenizer, template)
    both = embeds(model, prompts.compose(captions, bare=True), pseudo_words=words)
    full = [" ".join(template.replace("{caption}", caption).split()) for caption in captions]
    bare = [template[: template.rindex("$") + 1]] * len(captions)
    input_ids, mask = padded(tokenizer, full + bare)
    separate = embeds(model, {"input_ids": input_ids}, pseudo_words=words.repeat(2, 1, 1), placeholder_mask=mask)
    assert both.shape == separate.shape
    assert (both - separate).abs().max() < tolerance
    assert (separate[: len(captions)] - separate[len(captions) :]).abs().max() > 0.1
    return both


@EOS_KINDS
@ATTENTIONS
@pytest.mark.parametrize("template", ["a photo of $ that {caption}", "a $ and a $ , {caption} now", "$ {caption}"])
@pytest.mark.parametrize("with_mask", [True, False], ids=["mask", "no-mask"])
def test_two_prompts_in_one_row_equal_two_padded_rows(tokenizer, legacy_eos, attention, template, with_mask):
    model = tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos, attn_implementation=attention)
    words = torch.randn(3, template.count("$"), WIDTH)
    both = check_two_in_one(model, tokenizer, template, words, CAPTIONS, 3e-6)
    batch = PromptTokenizer(tokenizer, template).compose(CAPTIONS, bare=True)
    if not with_mask:
        del batch["attention_mask"]
    assert (embeds(model, batch, pseudo_words=words) - both).abs().max() < 3e-6


@ATTENTIONS
def test_the_literal_ablation_shares_rows_too(tokenizer, attention):
    model = tiny_text_model(CLIPTextModelForRTD, attn_implementation=attention)
    references = ["a dog", "the big green tree in the house", "two"]
    both = embeds(model, PromptTokenizer(tokenizer).literal(references, CAPTIONS, bare=True))
    bare = [f"a photo of {reference}" for reference in references]
    full = [f"{text} that {caption}" for text, caption in zip(bare, CAPTIONS, strict=True)]
    separate = embeds(tiny_text_model(), {"input_ids": padded(tokenizer, full + bare)[0]})
    assert (both - separate).abs().max() < 3e-6


def test_a_template_without_common_prefix_gives_the_same_order_of_embeddings(model, tokenizer, words):
    template = PromptTokenizer(tokenizer, "a {caption} photo of $")
    both = embeds(model, template.compose(CAPTIONS, bare=True), pseudo_words=words.repeat(2, 1, 1))
    full = [f"a {caption} photo of $" for caption in CAPTIONS]
    input_ids, mask = padded(tokenizer, full + ["a photo of $"] * 3)
    separate = embeds(model, {"input_ids": input_ids}, pseudo_words=words.repeat(2, 1, 1), placeholder_mask=mask)
    assert (both - separate).abs().max() < 3e-6


def test_gradients_of_shared_rows_equal_those_of_separate_rows(model, tokenizer, prompts, words):
    reference = copy.deepcopy(model)
    ours, theirs = words.clone().requires_grad_(), words.clone().requires_grad_()
    direction = torch.randn(6, 24)
    (model(**prompts.compose(CAPTIONS, bare=True), pseudo_words=ours).text_embeds * direction).sum().backward()
    full = [f"a photo of $ that {caption}" for caption in CAPTIONS]
    input_ids, mask = padded(tokenizer, full + ["a photo of $"] * 3)
    (handwritten(reference, input_ids, theirs.repeat(2, 1, 1), mask) * direction).sum().backward()
    assert theirs.grad.abs().max() > 1e-3
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_left_padding_is_hidden_too(model, prompts, words):
    batch = prompts.compose(CAPTIONS[:1], bare=True)
    expected = embeds(model, batch, pseudo_words=words[:1])
    shifted = {name: torch.nn.functional.pad(value, (2, 0)) for name, value in batch.items()}
    shifted["pooling_positions"] = batch["pooling_positions"] + 2
    assert (embeds(model, shifted, pseudo_words=words[:1]) - expected).abs().max() < 3e-6


@pytest.mark.slow
def test_two_prompts_in_one_row_at_the_size_of_vit_l_14(tokenizer):
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12, num_attention_heads=12
    )
    vocabulary = len(tokenizer)
    config.eos_token_id, config.bos_token_id = vocabulary - 1, vocabulary - 2
    model = CLIPTextModelForRTD(config).eval()
    words = torch.randn(3, 1, 768) * 0.02
    both = check_two_in_one(model, tokenizer, "a photo of $ that {caption}", words, CAPTIONS, 5e-6)
    assert both.std() > 0.3  # the scale that the tolerance refers to


# Pooling


@EOS_KINDS
def test_pooling_is_at_the_first_eos_whatever_the_padding(tokenizer, legacy_eos):
    model = tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos)
    input_ids, _ = padded(tokenizer, CAPTIONS)  # padded with EOS
    expected = embeds(model, {"input_ids": input_ids})
    lengths = [len(row) for row in tokenizer(CAPTIONS)["input_ids"]]
    zeros = input_ids.clone()
    for row, length in enumerate(lengths):
        zeros[row, length:] = 0
    assert (embeds(model, {"input_ids": zeros}) - expected).abs().max() < 3e-6
    positions = torch.tensor(lengths)[:, None] - 1
    assert torch.equal(embeds(model, {"input_ids": input_ids}, pooling_positions=positions), expected)


def test_with_one_pooled_position_the_mask_is_the_callers(model, prompts, words):
    batch = prompts.compose(CAPTIONS)
    length = batch["input_ids"].shape[1]
    causal = torch.full((length, length), float("-inf")).triu(1).expand(3, 1, length, length)
    expected = embeds(model, batch, pseudo_words=words)
    assert (embeds(model, {**batch, "attention_mask": causal}, pseudo_words=words) - expected).abs().max() < 3e-6
    blind = torch.full((length, length), float("-inf")).fill_diagonal_(0).expand(3, 1, length, length)
    assert (embeds(model, {**batch, "attention_mask": blind}, pseudo_words=words) - expected).abs().max() > 0.1


@EOS_KINDS
def test_a_row_without_eos_is_named_instead_of_pooled_at_its_start(tokenizer, legacy_eos):
    model = tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos)
    input_ids = tokenizer(CAPTIONS, padding=True, return_tensors="pt")["input_ids"][:, :5]
    input_ids[0, 4] = input_ids[2, 4] = tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"Row 1 of `input_ids` has no EOS token.*`pooling_positions`"):
        model(input_ids)
    model(input_ids, pooling_positions=torch.full((3, 1), 4))


# Errors


def test_mismatches_are_refused_with_both_counts(model, prompts, words):
    batch = prompts.compose(CAPTIONS)
    for wrong, message in [
        (torch.randn(2, WIDTH), "holds 2 vectors, but `placeholder_mask` marks 3 placeholders"),
        (torch.randn(3, 2, WIDTH), "holds 2 vector.* for each of 3 rows, .*3 rows, row 0 with 1"),
        (torch.randn(2, 1, WIDTH), "holds 1 vector.* for each of 2 rows, .*placeholders in 3 rows"),
        (torch.randn(3, 1, WIDTH + 1), r"\(placeholders, 32\).*shape \(3, 1, 33\)"),
        (torch.randn(WIDTH), r"shape \(32,\)"),
    ]:
        with pytest.raises(ValueError, match=f"`pseudo_words`.*{message}"):
            model(**batch, pseudo_words=wrong)


def test_words_and_mask_need_each_other(model, prompts, words):
    batch = prompts.compose(CAPTIONS)
    with pytest.raises(ValueError, match="marks 3 placeholder.*`pseudo_words` is missing"):
        model(**batch)
    mask = batch.pop("placeholder_mask")
    with pytest.raises(ValueError, match="`pseudo_words` needs `placeholder_mask`"):
        model(**batch, pseudo_words=words)
    for wrong in (mask.long(), mask[:, :-1]):
        with pytest.raises(ValueError, match="`placeholder_mask` must be boolean with the shape"):
            model(**batch, pseudo_words=words, placeholder_mask=wrong)


def test_arguments_that_cannot_work_are_refused(model, prompts, words):
    batch = prompts.compose(CAPTIONS, bare=True)
    with pytest.raises(ValueError, match=r"`pooling_positions` must have shape \(3, P\).*shape \(2, 2\)"):
        model(**{**batch, "pooling_positions": batch["pooling_positions"][:2]}, pseudo_words=words)
    length = batch["input_ids"].shape[1]
    with pytest.raises(ValueError, match="`attention_mask` must have shape"):
        model(**{**batch, "attention_mask": torch.zeros(3, 1, length, length)}, pseudo_words=words)
    with pytest.raises(ValueError, match="`inputs_embeds` is not supported"):
        model(**batch, pseudo_words=words, inputs_embeds=torch.zeros(3, length, WIDTH))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="uses `flash_attention_2`.*attn_implementation='sdpa'"):
        model(**batch, pseudo_words=words)


# Wrappers


def gradients(model, batch, words, call=None):
    model.zero_grad()
    (call or model)(**batch, pseudo_words=words).text_embeds.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys() and ours
    assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-2
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(model, prompts, words, reentrant):
    batch = prompts.compose(CAPTIONS, bare=True)
    model.train()
    plain = gradients(model, batch, words)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_gradients(gradients(model, batch, words), plain)


def test_it_works_inside_ddp(model, prompts, words, tmp_path):
    batch = prompts.compose(CAPTIONS, bare=True)
    plain = gradients(model, batch, words)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        assert_same_gradients(gradients(model, batch, words, call=wrapped), plain)
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_calls_with_and_without_words_alternate(model, prompts, words):
    batch = prompts.compose(CAPTIONS, bare=True)
    plain = {"input_ids": batch["input_ids"], "pooling_positions": batch["pooling_positions"]}
    compiled = torch.compile(model, backend="eager")
    for seed in range(2):
        other = torch.randn(words.shape, generator=torch.Generator().manual_seed(seed))
        assert (embeds(compiled, plain) - embeds(model, plain)).abs().max() < 3e-6
        expected = embeds(model, batch, pseudo_words=other)
        assert (embeds(compiled, batch, pseudo_words=other) - expected).abs().max() < 3e-6


@pytest.fixture(params=[None, "FEATURE_EXTRACTION"])
def lora(request, model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        target_modules=list(model.lora_target_modules), init_lora_weights=False, task_type=request.param
    )
    return peft.get_peft_model(copy.deepcopy(model), config)


def test_lora_sees_the_words_and_is_the_base_when_off(lora, model, prompts, words):
    batch = prompts.compose(CAPTIONS, bare=True)
    base = embeds(model, batch, pseudo_words=words)
    assert (embeds(lora, batch, pseudo_words=words) - base).abs().max() > 0.1
    with lora.disable_adapter():
        assert torch.equal(embeds(lora, batch, pseudo_words=words), base)
    merged = copy.deepcopy(lora).merge_and_unload()
    assert isinstance(merged, CLIPTextModelForRTD)
    expected = embeds(lora, batch, pseudo_words=words)
    torch.testing.assert_close(embeds(merged, batch, pseudo_words=words), expected, rtol=1e-5, atol=1e-5)


def test_lora_trains_with_gradient_checkpointing(lora, prompts, words):
    batch = prompts.compose(CAPTIONS, bare=True)
    lora.train()
    plain = gradients(lora, batch, words)
    assert plain and all("lora_" in name for name in plain)
    lora.enable_input_require_grads()
    lora.gradient_checkpointing_enable({"use_reentrant": True})
    assert_same_gradients(gradients(lora, batch, words), plain)


# Loading and saving


def assert_drop_in(folder, model, tokenizer):
    """The folder loads with plain classes, with nothing missing, and gives the same embeddings."""
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["CLIPTextModelWithProjection"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    assert names == set(tiny_text_model().state_dict())
    rows = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    for stock_class, unexpected in [(CLIPTextModelWithProjection, set()), (CLIPTextModel, {"text_projection.weight"})]:
        stock, report = stock_class.from_pretrained(folder, output_loading_info=True)
        assert (report["missing_keys"], set(report["unexpected_keys"])) == (set(), unexpected)
        with torch.no_grad():
            output, expected = stock(**rows), model(**rows)
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
        if stock_class is CLIPTextModelWithProjection:
            assert torch.equal(output.text_embeds, expected.text_embeds)


@EOS_KINDS
def test_what_is_saved_is_the_stock_model(tokenizer, tmp_path, legacy_eos):
    model = tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos)
    model.save_pretrained(tmp_path)
    assert_drop_in(tmp_path, model, tokenizer)
    assert CLIPTextModelWithProjection.from_pretrained(tmp_path).config.eos_token_id == model.config.eos_token_id
    # The model itself is left as it was.
    assert model.config.architectures is None and not any(weight.is_meta for weight in model.state_dict().values())


def test_what_the_trainer_passes_is_honoured(model, tokenizer, tmp_path):
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.text_projection.weight.mul_(2)
    model.save_pretrained(tmp_path / "given", state_dict=trained.state_dict(), is_main_process=True)
    assert_drop_in(tmp_path / "given", trained, tokenizer)
    model.save_pretrained(tmp_path / "positional", True, trained.state_dict(), max_shard_size="1GB")
    assert_drop_in(tmp_path / "positional", trained, tokenizer)
    # Where the weights are sharded, the other processes hold nothing.
    model.save_pretrained(tmp_path / "other", is_main_process=False, state_dict={})
    assert not list((tmp_path / "other").iterdir())


def test_shards_keep_the_stock_name_too(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = CLIPTextModelWithProjection.from_pretrained(tmp_path)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_a_merged_adapter_is_saved_as_the_stock_model(lora, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"not those of CLIPTextModelWithProjection.*merge_and_unload"):
        lora.get_base_model().save_pretrained(tmp_path / "unmerged")
    merged = lora.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert_drop_in(tmp_path / "merged", merged, tokenizer)


def test_half_precision_is_kept_on_disk(model, tmp_path):
    model.half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_the_stock_view_works_and_shares_the_weights(model, tokenizer):
    stock = model.to_stock()
    assert type(stock) is CLIPTextModelWithProjection and not stock.training
    rows = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    assert torch.equal(embeds(stock, rows), embeds(model, rows))
    assert stock.text_projection.weight.data_ptr() == model.text_projection.weight.data_ptr()


def tiny_clip():
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "projection_dim": 24}
    config = CLIPConfig(text_config=tiny_text_config().to_dict(), vision_config=vision, projection_dim=24)
    return CLIPModel(config).eval()


@pytest.mark.parametrize("source", [tiny_text_model, tiny_clip])
def test_stock_checkpoints_load_completely(source, tokenizer, tmp_path):
    stock = source()
    stock.save_pretrained(tmp_path)
    model, report = CLIPTextModelForRTD.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    rows = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = stock.get_text_features(**rows).pooler_output if source is tiny_clip else stock(**rows).text_embeds
    assert torch.equal(embeds(model, rows), expected)
    assert not model.training


def test_a_checkpoint_without_projection_is_refused(tmp_path):
    CLIPTextModel(tiny_text_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks 1 weight.*`text_projection.weight`.*CLIPTextModelWithProjection"):
        CLIPTextModelForRTD.from_pretrained(tmp_path)


def test_images_are_encoded_with_their_patches():
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    vision = CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad():
        image_embeds, patch_embeds = CLIPTextModelForRTD.encode_image(vision, torch.randn(2, 3, 16, 16))
        pooled = vision.vision_model.post_layernorm(patch_embeds[:, 0])
        assert torch.equal(image_embeds, vision.visual_projection(pooled))
    assert patch_embeds.shape == (2, 5, 16)
