"""Every published backbone at its true configuration with random weights, and what its checkpoints can be wrong in."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from backbone_models import (
    TOWERS,
    full_clip_tokenizer,
    gemma_tokenizer,
    siglip_tokenizer,
    text_config,
    text_tower,
    tiny_backbone,
    tokenizer_for,
    vision_tower,
)
from datasets import Dataset
from helpers import real_tokenizer, tiny_projection, tiny_text_model, tiny_tokenizer, tiny_triplets
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionModelWithProjection,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)

from rtd_hf import (
    AutoTextModelForRTD,
    DataCollatorForRTD,
    ImageToWordProjection,
    PromptTokenizer,
    RTDTrainer,
    RTDTrainingArguments,
    encoder_fingerprint,
    export_text_encoder,
    precompute_anchors,
    verify_drop_in,
)
from rtd_hf.models import BACKBONES, CLIPTextModelForRTD, Siglip2TextModelForRTD, SiglipTextModelForRTD
from rtd_hf.texts import bare_prompt


# The others take seconds a test; these stand for them by default.
QUICK = ("openai-b32", "metaclip-l14", "siglip-b16-short")
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TOWERS]
SIGLIPS = pytest.mark.parametrize("backbone", [SiglipTextModelForRTD, Siglip2TextModelForRTD])
CAPTIONS = ["is red", "is blue and has a big dog instead of the cat", "are two"]
TEMPLATE = "a photo of $ that {caption}"


class Built:
    """A tower with its tokenizer, prompts and a projection made for it."""

    def __init__(self, name, folder):
        self.name, self.published = name, TOWERS[name]
        self.model = text_tower(name)
        self.tokenizer = tokenizer_for(name, folder)
        self.prompts = PromptTokenizer(self.tokenizer, TEMPLATE, **self.model.prompt_options())
        self.width = self.model.config.hidden_size
        self.causal = self.model.padding == "longest"

    def words(self, rows, count=1):
        return torch.randn(rows, count, self.width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=NAMES)
def built(request, tmp_path_factory):
    return Built(request.param, tmp_path_factory.mktemp("tokenizer"))


def embeds(model, batch, **arguments):
    with torch.no_grad():
        return model(**batch, **arguments).text_embeds


def assert_close(one, other, tolerance=1e-6):
    """Largest difference of the directions; an embedding's norm is the root of its width, 16 to 36."""
    assert one.shape == other.shape
    assert (F.normalize(one, dim=-1) - F.normalize(other, dim=-1)).abs().max() < tolerance


# At the true configurations


def test_it_is_the_published_architecture(built):
    config, published = built.model.config, built.published
    for key, value in published.text.items():
        assert getattr(config, key) == (published.layers if key == "num_hidden_layers" else value), key
    assert built.model.projection_dim == published.width
    if built.name == "openai-l14":
        assert sum(parameter.numel() for parameter in built.model.parameters()) == 123_650_304


def test_the_placeholders_own_embedding_gives_the_stock_output(built):
    model, batch = built.model, built.prompts.compose(CAPTIONS)
    own = model.get_input_embeddings().weight[built.prompts.placeholder_id].detach().expand(3, 1, -1)
    mine = embeds(model, batch, pseudo_words=own)
    rows = {"input_ids": batch["input_ids"]}
    with torch.no_grad():
        stock = getattr(model.to_stock()(**rows), model.stock_embeds)
    assert_close(mine, stock)
    assert (mine - embeds(model, batch, pseudo_words=2 * own)).abs().max() > 1e-2
    assert embeds(model, rows).equal(stock)


def test_both_prompts_of_a_triplet_equal_their_rows_alone(built):
    words, both = built.words(3), built.prompts.compose(CAPTIONS, bare=True)
    rows = len(both["input_ids"])
    assert rows == (3 if built.causal else 6)
    together = embeds(built.model, both, pseudo_words=words.repeat(rows // 3, 1, 1))
    alone = [
        embeds(built.model, built.prompts.mark([text]), pseudo_words=words[row, None])
        for texts in ([TEMPLATE.replace("{caption}", caption) for caption in CAPTIONS], [bare_prompt(TEMPLATE)] * 3)
        for row, text in enumerate(texts)
    ]
    assert_close(together, torch.cat(alone))


def test_packed_rows_equal_padded_ones_where_the_tower_takes_them(built):
    assert built.model.takes_packed_rows == built.causal
    if not built.causal:
        with pytest.raises(ValueError, match="takes no `packed_rows`"):
            built.model(**PromptTokenizer(full_clip_tokenizer()).compose(["red"], packed=True))
        return
    words = built.words(3)
    packed = embeds(built.model, built.prompts.compose(CAPTIONS, bare=True, packed=True), pseudo_words=words)
    assert_close(packed, embeds(built.model, built.prompts.compose(CAPTIONS, bare=True), pseudo_words=words))


@pytest.mark.parametrize("eos", [2, 49407], ids=["legacy-eos", "eos"])
def test_it_is_pooled_where_the_family_pools(built, eos, monkeypatch):
    model, batch = built.model, built.prompts.compose(CAPTIONS)
    words, last = built.words(3), [len(row) - 1 for row in built.prompts._tokenize(batch_texts())]
    if built.causal:
        monkeypatch.setattr(model.config, "eos_token_id", eos)
        monkeypatch.setattr(model.text_model, "eos_token_id", eos)
        head, columns = model.text_projection, last
    else:
        head, columns = model.head, [63] * 3
    with torch.no_grad():
        output = model(**batch, pseudo_words=words)
        expected = head(output.last_hidden_state[torch.arange(3), columns])
        rows = {name: batch[name] for name in ("input_ids", "placeholder_mask")}
        found = model(**rows, pseudo_words=words).text_embeds  # the family's own pooling, without our positions
    assert_close(output.text_embeds, expected)
    assert_close(found, expected)
    others = head(output.last_hidden_state.detach()[:, 0])
    assert (F.normalize(others, dim=-1) - F.normalize(expected, dim=-1)).abs().max() > 1e-2


def batch_texts():
    return [TEMPLATE.replace("{caption}", caption) for caption in CAPTIONS]


def test_what_is_saved_loads_strictly_as_the_stock_class(built, tmp_path):
    model, batch = built.model, built.prompts.encode(CAPTIONS)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [model.stock_class.__name__]
    names = set(load_file(tmp_path / "model.safetensors"))
    assert all(name.startswith(("text_model.", "text_projection.")) for name in names)
    stock, info = model.stock_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        found = getattr(stock(input_ids=batch["input_ids"]), model.stock_embeds)
    assert found.equal(embeds(model, {"input_ids": batch["input_ids"]}))
    again = AutoTextModelForRTD.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert all(left.equal(right) for left, right in zip(again.parameters(), model.parameters(), strict=True))


def test_a_projection_made_for_it_runs_end_to_end(built):
    vision = vision_tower(built.name)
    encode, facts = built.model.encode_image, vision.config
    if built.name.endswith("naflex"):
        shapes = torch.tensor([[16, 16], [8, 20]])
        mask = (torch.arange(256) < shapes.prod(dim=1, keepdim=True)).long()
        pixels = {"pixel_values": torch.randn(2, 256, 768), "pixel_attention_mask": mask, "spatial_shapes": shapes}
        patches = 256
    else:
        pixels = {"pixel_values": torch.randn(2, 3, facts.image_size, facts.image_size)}
        patches = (facts.image_size // facts.patch_size) ** 2
    with torch.no_grad():
        image_embeds, tokens = encode(vision, **pixels)
        stock = vision(**pixels)
    assert image_embeds.equal(stock.image_embeds if built.causal else stock.pooler_output)
    assert tokens.shape == (2, 1 + patches, facts.hidden_size)
    if built.causal:
        assert tokens.equal(stock.last_hidden_state)
    else:
        assert tokens[:, 0].equal(stock.pooler_output) and tokens[0, 1:].equal(stock.last_hidden_state[0])
    if built.name.endswith("naflex"):
        assert tokens[1, 1 + 160 :].count_nonzero() == 0 and tokens[1, 160].count_nonzero()
    projection = ImageToWordProjection.build("lincir", built.model.projection_dim, built.width)
    with torch.no_grad():
        words = projection(image_embeds, tokens)
        queries = embeds(built.model, built.prompts.compose(CAPTIONS[:2]), pseudo_words=words)
    assert queries.shape == image_embeds.shape == (2, built.published.width)
    assert queries.isfinite().all() and (queries[0] - queries[1]).abs().max() > 1e-3


def trainer_of(model, tokenizer, folder, **options):
    torch.manual_seed(0)
    projection = ImageToWordProjection.build("searle", model.projection_dim, model.config.hidden_size, hidden_dim=64)
    parts = {name: options.pop(name) for name in ("peft_config", "anchors") if name in options}
    defaults = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "noise_type": "none",
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "optim": "sgd",
        "learning_rate": 0.02,
    }
    return RTDTrainer(
        model,
        RTDTrainingArguments(output_dir=str(folder), **{**defaults, **options}),
        projection=projection,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(tiny_triplets(4)),
        **parts,
    )


def loss_on(trainer):
    batch = trainer._prepare_inputs(trainer.data_collator(tiny_triplets(4)))
    with torch.no_grad():
        return trainer.compute_loss(trainer.model.eval(), batch).item()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_one_step_of_rtd_lowers_the_loss(built, tmp_path, lora):
    from peft import LoraConfig

    targets = list(built.model.lora_target_modules)
    options = {"peft_config": LoraConfig(r=4, lora_alpha=64, target_modules=targets)} if lora else {}
    model = copy.deepcopy(built.model)
    trainer = trainer_of(model, built.tokenizer, tmp_path, **options)
    prompts = trainer.data_collator.prompts
    assert (prompts.padding, prompts.max_length) == (model.padding, model.config.max_position_embeddings)
    before = loss_on(trainer)
    frozen = {name: weight.clone() for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
    trainer.train()
    assert loss_on(trainer) < before - 1e-4
    if lora:
        assert len(frozen) == len(list(built.model.parameters()))
        assert all(dict(trainer.model.named_parameters())[name].equal(weight) for name, weight in frozen.items())
        adapted = [name for name, _ in trainer.model.named_parameters() if "lora_B" in name]
        assert len(adapted) == len(targets) * built.published.layers
        rows = {"input_ids": built.prompts.encode(CAPTIONS)["input_ids"]}
        with trainer.model.disable_adapter():
            assert_close(embeds(trainer.model, rows), embeds(built.model, rows))
        assert (embeds(trainer.model, rows) - embeds(built.model, rows)).abs().max() > 1e-4


def test_clips_own_vocabulary_at_clips_own_size():
    model, tokenizer = text_tower("openai-b32"), real_tokenizer()
    prompts = PromptTokenizer(tokenizer, TEMPLATE, **model.prompt_options())
    model.check_tokenizer(tokenizer)
    texts = ["costs $ 5 <|endoftext|>", "Is a NAÏVE jekyll's caf\u00e9", "is red"]
    assert prompts.placeholder_id == 259
    words = torch.randn(3, 1, 512)
    both = embeds(model, prompts.compose(texts, bare=True), pseudo_words=words)
    packed = embeds(model, prompts.compose(texts, bare=True, packed=True), pseudo_words=words)
    assert_close(packed, both)
    # As the published evaluations do it: whole rows of 77, every id 259 replaced, the stock model after that.
    rows = tokenizer(
        ["a photo of $ that costs 5", "a photo of $ that is red", "a photo of $"],
        padding="max_length",
        max_length=77,
        return_tensors="pt",
    )["input_ids"]
    with torch.no_grad():
        expected = model(rows, pseudo_words=words, placeholder_mask=rows == 259).text_embeds
    found = embeds(model, prompts.compose(["costs $ 5", "is red", ""]), pseudo_words=words)
    assert_close(found[:2], expected[:2])


# SigLIP


def handwritten_siglip(model, input_ids, words=None, mask=None):
    """The SigLIP text tower spelled out: no mask at all, the last position, the head."""
    rows, length = input_ids.shape
    hidden = model.embeddings.token_embedding.weight[input_ids].clone()
    if words is not None:
        hidden[mask] = words.reshape(-1, words.shape[-1])
    hidden = hidden + model.embeddings.position_embedding.weight[:length]
    for layer in model.encoder.layers:
        attention = layer.self_attn
        normed = layer.layer_norm1(hidden)
        query, key, value = (
            linear(normed).view(rows, length, attention.num_heads, -1).transpose(1, 2)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value
        hidden = hidden + attention.out_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        inner = layer.mlp.fc1(layer.layer_norm2(hidden))
        gelu = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
        hidden = hidden + layer.mlp.fc2(gelu)
    return model.head(model.final_layer_norm(hidden)[:, -1])


@SIGLIPS
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_siglip_is_the_tower_spelled_out(backbone, attention):
    model = tiny_backbone(backbone, attn_implementation=attention)
    ids = torch.randint(3, 1000, (4, 64))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, [3, 7]] = True
    words = torch.randn(4, 2, 32, requires_grad=True)
    output = model(ids, pseudo_words=words, placeholder_mask=mask)
    expected = handwritten_siglip(model, ids, words, mask)
    assert (output.text_embeds - expected).abs().max() < 1e-5
    assert output.text_embeds is output.pooler_output
    found, wanted = (
        torch.autograd.grad(value.square().sum(), words, retain_graph=True)[0]
        for value in (output.text_embeds, expected)
    )
    assert wanted.abs().max() > 1e-2 and (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    as_tuple = model(ids, return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[1].equal(as_tuple[-1])
    assert len(model(ids, output_hidden_states=True).hidden_states) == 3


@SIGLIPS
def test_siglip_reads_its_padding(backbone, tmp_path):
    model = tiny_backbone(backbone)
    prompts = PromptTokenizer(siglip_tokenizer(tmp_path), **model.prompt_options())
    ids = prompts.encode(["a red dog"])["input_ids"]
    assert ids.shape == (1, 64) and ids[0, 3:].tolist() == [1] * 61
    other = ids.clone()
    other[0, 40] = 5
    assert (embeds(model, {"input_ids": ids}) - embeds(model, {"input_ids": other})).abs().max() > 1e-3


@SIGLIPS
def test_siglip_refuses_rows_it_was_not_trained_on(backbone):
    model, ids = tiny_backbone(backbone), torch.randint(3, 1000, (2, 64))
    with pytest.raises(ValueError, match=r"rows of 64 tokens, padding included, but has shape \(2, 10\)"):
        model(ids[:, :10])
    mask = torch.ones_like(ids)
    assert embeds(model, {"input_ids": ids, "attention_mask": mask}).equal(embeds(model, {"input_ids": ids}))
    mask[1, -1] = 0
    with pytest.raises(ValueError, match="`attention_mask` hides positions.*prompt_options"):
        model(ids, attention_mask=mask)
    for positions in (torch.tensor([[63], [62]]), torch.tensor([[63, 10], [63, 10]])):
        with pytest.raises(ValueError, match="`pooling_positions` must be 63, the last position"):
            model(ids, pooling_positions=positions)
    with pytest.raises(ValueError, match="`max_length` is 32, but this .* reads rows of exactly 64 positions"):
        model.prompt_options(32)
    with pytest.raises(ValueError, match="`max_length` is 78, but this .* has only 77 positions"):
        tiny_backbone(CLIPTextModelForRTD).prompt_options(78)
    assert tiny_backbone(CLIPTextModelForRTD).prompt_options(20)["max_length"] == 20


@pytest.mark.parametrize("kind", ["siglip", "gemma", "siglip2"])
@pytest.mark.parametrize("template", [TEMPLATE, "$ , {caption} with $", "a {caption} photo of $"])
def test_siglips_prompts_are_the_tokenizers_own_around_the_placeholders(kind, template, tmp_path):
    tokenizer = siglip_tokenizer(tmp_path) if kind == "siglip" else None
    tokenizer = tokenizer or gemma_tokenizer(*([Siglip2Tokenizer] if kind == "siglip2" else []))
    prompts = PromptTokenizer(tokenizer, template, **tiny_backbone(SiglipTextModelForRTD).prompt_options())
    captions = ["Is RED", "costs $ 5 , it is $$ a thing", ""]
    batch = prompts.compose(captions)
    assert batch["input_ids"].shape == (3, 64) and batch["attention_mask"].all()
    assert batch["placeholder_mask"].sum(dim=1).tolist() == [prompts.num_placeholders] * 3
    # A word that both know in the place of each `$`: the rest of the row is what the stock tokenizer makes of it.
    for row, caption in enumerate(captions):
        text = template.replace("$", "dog").replace("{caption}", caption.replace("$", "")).lower()
        expected = tokenizer(" ".join(text.split()))["input_ids"]
        expected += [tokenizer.pad_token_id] * (64 - len(expected))
        dogs = tokenizer(["dog", "a dog"])["input_ids"]
        found = batch["input_ids"][row].clone()
        where = batch["placeholder_mask"][row]
        assert {expected[place] for place in where.nonzero().flatten().tolist()} <= {dogs[0][0], dogs[1][-2]}
        assert found[~where].tolist() == [token for token, marked in zip(expected, where, strict=True) if not marked]


@pytest.mark.parametrize("name", ["siglip-b16", "siglip2-b16"])
def test_a_stand_in_in_a_caption_is_no_placeholder(name, tmp_path):
    tokenizer = tokenizer_for(name, tmp_path)
    prompts = PromptTokenizer(tokenizer, TEMPLATE, padding="max_length", max_length=64)
    stand_in = tokenizer.convert_ids_to_tokens(prompts.placeholder_id).lstrip("\u2581")
    assert stand_in == ("it" if name == "siglip-b16" else "$")
    batch = prompts.compose([f"is {stand_in} and a {stand_in}"])
    assert batch["placeholder_mask"].nonzero().tolist() == [[0, 3]]
    marked = prompts.mark([f"$ {stand_in} a $"])["placeholder_mask"].nonzero()[:, 1].tolist()
    assert marked[0] == 0 and len(marked) == (2 if stand_in == "it" else 3)
    replaced = prompts.compose_with_token([f"is {stand_in}"], 7)
    assert replaced["input_ids"][0, 3] == 7 and not replaced["placeholder_mask"].any()
    assert (replaced["input_ids"] == 7).sum() == 1


@SIGLIPS
def test_siglip_is_exported_and_verified(backbone, tmp_path):
    model, tokenizer = tiny_backbone(backbone), siglip_tokenizer(tmp_path / "tokenizer")
    folder = export_text_encoder(model, tmp_path / "out", tokenizer=tokenizer)
    report = verify_drop_in(folder, model, tokenizer=tokenizer)
    assert report.max_difference == 0 and report.num_tensors == len(model.state_dict())
    # As a user of the stock class does it, from the folder alone.
    stock, spelled = backbone.stock_class.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = spelled(["a red dog"], padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    prompts = PromptTokenizer(tokenizer, **model.prompt_options())
    with torch.no_grad():
        assert (stock(rows).pooler_output - embeds(model, prompts.encode(["a red dog"]))).abs().max() < 1e-6
    again = export_text_encoder(stock, tmp_path / "again", tokenizer=tokenizer)
    assert load_file(again / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-2
    with pytest.raises(ValueError, match="gives other embeddings than the model"):
        verify_drop_in(folder, model, tokenizer=tokenizer)


def test_siglip_trains_with_adapters_and_anchors_from_disk(tmp_path):
    from peft import LoraConfig

    model, tokenizer = tiny_backbone(SiglipTextModelForRTD), siglip_tokenizer(tmp_path / "tokenizer")
    anchors = precompute_anchors(tiny_triplets(4), model, tokenizer, tmp_path / "anchors")
    texts = [row["target_caption"] for row in tiny_triplets(4)]
    prompts = PromptTokenizer(tokenizer, **model.prompt_options())
    assert_close(anchors.lookup(texts), embeds(model, prompts.encode(texts)))
    config = LoraConfig(r=2, target_modules=list(model.lora_target_modules))
    trainer = trainer_of(model, tokenizer, tmp_path / "run", peft_config=config, anchors=anchors)
    before = loss_on(trainer)
    trainer.train()
    assert loss_on(trainer) < before
    folder = export_text_encoder(trainer.model, tmp_path / "out", tokenizer=tokenizer, base_model="google/x")
    assert verify_drop_in(folder, trainer.model, tokenizer=tokenizer).max_difference < 1e-5
    with pytest.raises(ValueError, match="`max_length` is 32"):
        precompute_anchors(tiny_triplets(4), model, tokenizer, tmp_path / "other", max_length=32)
    with pytest.raises(ValueError, match="`mini_batch_size` needs packed rows"):
        trainer_of(model, tokenizer, tmp_path / "packed", mini_batch_size=2)


@SIGLIPS
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_siglip_resumed_is_siglip_uninterrupted(backbone, lora, tmp_path):
    from peft import LoraConfig

    tokenizer, trained = siglip_tokenizer(tmp_path / "tokenizer"), {}
    for name, steps in (("whole", 4), ("stopped", 2), ("resumed", 4)):
        model = tiny_backbone(backbone)
        options = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])} if lora else {}
        trainer = trainer_of(
            model,
            tokenizer,
            tmp_path / ("run" if name != "whole" else name),
            max_steps=steps,
            noise_type="scaled_gaussian",
            optim="adamw_torch",
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_strategy="steps",
            save_steps=2,
            **options,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2") if name == "resumed" else None)
        trained[name] = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    assert all(trained["whole"][key].equal(value) for key, value in trained["resumed"].items())
    assert not all(trained["whole"][key].equal(value) for key, value in trained["stopped"].items())
    folder = tmp_path / "run" / "checkpoint-2" / ("merged" if lora else "")
    assert backbone.stock_class.from_pretrained(folder, output_loading_info=True)[1]["missing_keys"] == set()


@SIGLIPS
def test_siglip_reads_its_own_file_by_hand(backbone, tmp_path):
    tiny_backbone(backbone).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith("text_model.") for name in weights)
    model = backbone(tiny_backbone(backbone).config)
    assert not any(model.load_state_dict(weights, strict=True))
    assert all(weight.equal(weights[f"text_model.{name}"]) for name, weight in model.state_dict().items())
    assert not any(copy.deepcopy(model).load_state_dict(model.state_dict(), strict=True))


def test_a_sentencepiece_tokenizer_has_a_fingerprint(tmp_path):
    model = tiny_backbone(SiglipTextModelForRTD)
    tokenizer = siglip_tokenizer(tmp_path)
    first = encoder_fingerprint(model, tokenizer)
    assert first == encoder_fingerprint(model.to_stock(), siglip_tokenizer(tmp_path))
    tokenizer.do_lower_case = False
    assert encoder_fingerprint(model, tokenizer)["tokenizer"] != first["tokenizer"]


def test_the_collator_gives_siglip_full_and_bare_prompts_of_one_length(tmp_path):
    model, tokenizer = tiny_backbone(SiglipTextModelForRTD), siglip_tokenizer(tmp_path)
    batch = DataCollatorForRTD(tokenizer, TEMPLATE, **model.prompt_options())(tiny_triplets(3))
    assert batch["input_ids"].shape == batch["anchor_input_ids"].shape == (6, 64)
    assert batch["pooling_positions"].tolist() == batch["anchor_pooling_positions"].tolist() == [[63]] * 6
    assert batch["attention_mask"].all() and batch["anchor_attention_mask"].all()
    assert batch["placeholder_mask"].nonzero().tolist() == [[row, 3] for row in range(6)]


# Checkpoints


def whole_clip(folder, width=24, tower_width=24):
    text = tiny_backbone(CLIPTextModelForRTD).config.to_dict()
    vision = {"hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    towers = {"text_config": text, "vision_config": vision}
    for tower in towers.values():
        tower["projection_dim"] = tower_width
    model = CLIPModel(CLIPConfig(**towers, projection_dim=width)).eval()
    model.save_pretrained(folder)
    return model


def whole_siglip(folder, backbone=SiglipTextModelForRTD):
    text = tiny_backbone(backbone).config.to_dict()
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"patch_size": 16, "image_size": 32} if backbone is SiglipTextModelForRTD else {"patch_size": 4}
    kinds = (SiglipConfig, SiglipModel) if backbone is SiglipTextModelForRTD else (Siglip2Config, Siglip2Model)
    model = kinds[1](kinds[0](text_config=text, vision_config=vision)).eval()
    model.save_pretrained(folder)
    return model


def test_a_clip_whose_towers_name_another_width_loads_as_the_whole_does(tmp_path):
    """`CLIPModel` reads the width at the top of the configuration only, so those of the towers may be wrong."""
    whole = whole_clip(tmp_path, width=24, tower_width=512)
    text = AutoTextModelForRTD.from_pretrained(tmp_path).eval()
    vision = text.load_vision_model(tmp_path)
    assert text.projection_dim == text.config.projection_dim == vision.config.projection_dim == 24
    ids = torch.tensor([[998, 5, 6, 999]])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole(input_ids=ids, pixel_values=pixels)
        assert_close(text(ids).text_embeds, expected.text_embeds)
        assert_close(text.encode_image(vision, pixels)[0], expected.image_embeds)
    text.save_pretrained(tmp_path / "text")
    assert CLIPTextConfig.from_pretrained(tmp_path / "text").projection_dim == 24
    own = CLIPTextModelForRTD.from_pretrained(tmp_path, config=text.config)
    assert own.text_projection.weight.equal(text.text_projection.weight)


@SIGLIPS
def test_a_whole_siglip_gives_both_towers(backbone, tmp_path):
    whole = whole_siglip(tmp_path, backbone)
    text = AutoTextModelForRTD.from_pretrained(tmp_path)
    assert type(text) is backbone
    vision = text.load_vision_model(tmp_path)
    assert not vision.training and not any(parameter.requires_grad for parameter in vision.parameters())
    ids = torch.randint(3, 1000, (2, 64))
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    if backbone is Siglip2TextModelForRTD:
        shapes = torch.tensor([[16, 16], [16, 16]])
        pixels = {
            "pixel_values": torch.randn(2, 256, 48),
            "pixel_attention_mask": torch.ones(2, 256, dtype=torch.long),
            "spatial_shapes": shapes,
        }
        with pytest.raises(ValueError, match="`pixel_attention_mask` and `spatial_shapes` besides `pixel_values`"):
            text.encode_image(vision, pixels["pixel_values"])
    with torch.no_grad():
        expected = whole(input_ids=ids, **pixels)
        assert_close(text(ids).text_embeds, expected.text_embeds)
        assert_close(text.encode_image(vision, **pixels)[0], expected.image_embeds)
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="lacks .* weight.*Load the checkpoint of the full model, with both towers"):
        text.load_vision_model(tmp_path / "text")


def test_siglip_without_a_pooling_head_gives_no_image_embeddings():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=16, vision_use_head=False))
    with pytest.raises(ValueError, match="`vision_model` has no pooling head"):
        SiglipTextModelForRTD.encode_image(vision, torch.randn(1, 3, 32, 32))


def test_each_family_loads_its_own_image_processor(tmp_path):
    for backbone in set(BACKBONES.values()):
        import transformers
        from transformers import AutoImageProcessor  # noqa: F401 (the classes are looked up by name)

        getattr(transformers, backbone.image_processor_class)().save_pretrained(tmp_path)
        assert type(backbone.load_image_processor(tmp_path)).__name__ == backbone.image_processor_class


def test_another_family_is_refused_by_name(tmp_path):
    whole_siglip(tmp_path / "siglip")
    whole_clip(tmp_path / "clip")
    message = (
        "is a checkpoint of `model_type` 'siglip', but CLIPTextModelForRTD loads 'clip_text_model', 'clip'. "
        "Load it with `SiglipTextModelForRTD.from_pretrained`, or any"
    )
    with pytest.raises(ValueError, match=message):
        CLIPTextModelForRTD.from_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="is a checkpoint of `model_type` 'clip', but SiglipTextModelForRTD loads"):
        SiglipTextModelForRTD.from_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="'siglip', but Siglip2TextModelForRTD loads 'siglip2_text_model', 'siglip2'"):
        Siglip2TextModelForRTD.load_vision_model(tmp_path / "siglip")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="There is no backbone for .*'bert'; there are ones for 'clip', .*'siglip'"):
        AutoTextModelForRTD.from_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="`model_type` 'bert', .*There are backbones for `model_type` 'clip',"):
        CLIPTextModelForRTD.from_pretrained(tmp_path / "bert")
    tiny_projection().save_pretrained(tmp_path / "projection")
    with pytest.raises(ValueError, match="There is no backbone for"):
        AutoTextModelForRTD.from_pretrained(tmp_path / "projection")
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no `config.json` that names a `model_type`.* `import_layout`"):
        AutoTextModelForRTD.from_pretrained(tmp_path / "open_clip")
    with pytest.raises(OSError):
        AutoTextModelForRTD.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="makes no object"):
        AutoTextModelForRTD()


class Own(CLIPTextModelForRTD):
    """A user's subclass, which is not registered."""


def test_a_subclass_loads_what_its_parent_does(tmp_path):
    whole_clip(tmp_path)
    assert type(Own.from_pretrained(tmp_path)) is Own


def test_the_auto_door_passes_arguments_on(tmp_path):
    whole_clip(tmp_path / "sub")
    model, report = AutoTextModelForRTD.from_pretrained(
        tmp_path, subfolder="sub", attn_implementation="eager", dtype=torch.bfloat16, output_loading_info=True
    )
    assert type(model) is CLIPTextModelForRTD and not report["missing_keys"]
    assert model.config._attn_implementation == "eager" and model.dtype == torch.bfloat16
    given = AutoTextModelForRTD.from_pretrained(tmp_path / "sub", config=model.config)
    assert given.text_projection.weight.shape == model.text_projection.weight.shape


@pytest.mark.parametrize("door", [AutoTextModelForRTD, CLIPTextModelForRTD])
def test_adapters_alone_load_onto_their_base(door, tmp_path):
    from peft import LoraConfig, get_peft_model

    whole_clip(tmp_path / "base")
    base = AutoTextModelForRTD.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    model, ids = door.from_pretrained(tmp_path / "adapter"), torch.tensor([[998, 5, 6, 999]])
    assert isinstance(model, CLIPTextModelForRTD)
    assert_close(embeds(model, {"input_ids": ids}), embeds(adapted, {"input_ids": ids}))
    with adapted.disable_adapter():
        assert (embeds(model, {"input_ids": ids}) - embeds(adapted, {"input_ids": ids})).abs().max() > 1e-3


def spoil(file, name, value):
    weights = load_file(file)
    weights[name].view(-1)[5] = value
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_weights_that_are_not_finite_are_refused_by_name(family, value, tmp_path):
    (whole_clip if family == "clip" else whole_siglip)(tmp_path)
    spoil(tmp_path / "model.safetensors", "text_model.encoder.layers.1.mlp.fc2.weight", value)
    model_class = BACKBONES[family]
    with pytest.raises(ValueError, match=r"not finite in 1 of \d+ weights.*layers\.1\.mlp\.fc2\.weight` \(1 of 2048"):
        model_class.from_pretrained(tmp_path)
    model_class.load_vision_model(tmp_path)  # which is whole
    spoil(tmp_path / "model.safetensors", "vision_model.post_layernorm.weight", value)
    with pytest.raises(ValueError, match="not finite in 1 of .*post_layernorm.weight"):
        model_class.load_vision_model(tmp_path)


def test_a_projection_that_is_not_finite_is_refused_by_name(tmp_path):
    projection = tiny_projection()
    name = next(iter(projection.state_dict()))
    projection.save_pretrained(tmp_path)
    spoil(tmp_path / "model.safetensors", name, float("nan"))
    with pytest.raises(ValueError, match=rf"not finite in 1 of \d+ weights, first in `{name}`"):
        ImageToWordProjection.from_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [4, 200, -100])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_truncated_file_is_named(family, keep, tmp_path):
    (whole_clip if family == "clip" else whole_siglip)(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    for load in (BACKBONES[family].from_pretrained, BACKBONES[family].load_vision_model):
        with pytest.raises(OSError, match=r"weights of `.*model\.safetensors` are damaged or cut short.*download"):
            load(tmp_path)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path):
    model, tokenizer = tiny_text_model(CLIPTextModelForRTD), tiny_tokenizer()
    model.check_tokenizer(tokenizer)
    tokenizer.add_tokens(["[$]"])
    message = r"token ids up to \d+ \('\[\$\]'\), but this CLIPTextModelForRTD has \d+ token embeddings"
    with pytest.raises(ValueError, match=message):
        model.check_tokenizer(tokenizer)
    with pytest.raises(ValueError, match=message):
        trainer_of(model, tokenizer, tmp_path)
    with pytest.raises(ValueError, match=message):
        precompute_anchors(tiny_triplets(4), model, tokenizer, tmp_path / "anchors")


def test_the_two_kinds_of_clip_configuration_are_the_stock_ones():
    assert text_config("openai-l14").eos_token_id == 2 and text_config("metaclip-l14").eos_token_id == 49407
    assert text_config("laion-h14").hidden_act == "gelu"
    assert {vision_tower("openai-b16").config.patch_size, vision_tower("openai-b32").config.patch_size} == {16, 32}
    assert CLIPTextModelForRTD.vision_class is CLIPVisionModelWithProjection
