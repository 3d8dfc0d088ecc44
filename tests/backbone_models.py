"""The published towers at their true sizes with random weights, and tokenizers of SigLIP's two kinds."""

import io
import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from helpers import BOS, EOS, WORDS, build_tokenizer, byte_symbols
from transformers import CLIPTokenizer, GemmaTokenizer, Siglip2Tokenizer, SiglipTokenizer
from transformers.initialization import no_init_weights

from rtd_hf.models import CLIPTextModelForRTD, Siglip2TextModelForRTD, SiglipTextModelForRTD


SPACE = "\u2581"  # what SentencePiece writes for a space


@dataclass(frozen=True)
class Tower:
    """A published backbone: its configuration, and how many of its layers a test can afford."""

    hub_id: str
    backbone: type
    text: dict[str, Any]
    vision: dict[str, Any]
    width: int  # of the joint space
    layers: int  # of the text tower that are built; all of them where that is quick
    facts: dict[str, Any] = field(default_factory=dict)


def sizes(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, **more):
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        **more,
    }


_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5}
_OPENAI = {**_CLIP, "hidden_act": "quick_gelu", "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_LAION = {**_OPENAI, "hidden_act": "gelu"}
_METACLIP = {**_OPENAI, "bos_token_id": 49406, "eos_token_id": 49407}
_SIGLIP = {"max_position_embeddings": 64, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
_V1, _V2 = {**_SIGLIP, "vocab_size": 32000}, {**_SIGLIP, "vocab_size": 256000}
_B, _SO = sizes(768, 3072, 12, 12), sizes(1152, 4304, 27, 16)

CLIP, SIGLIP, SIGLIP2 = CLIPTextModelForRTD, SiglipTextModelForRTD, Siglip2TextModelForRTD
TEXT_B, TEXT_L, TEXT_H, TEXT_G = (
    sizes(512, 2048, 12, 8),
    sizes(768, 3072, 12, 12),
    sizes(1024, 4096, 24, 16),
    sizes(1280, 5120, 32, 20),
)
VISION_L, VISION_H = sizes(1024, 4096, 24, 16, patch_size=14), sizes(1280, 5120, 32, 16, patch_size=14)
VISION_G = sizes(1664, 8192, 48, 16, patch_size=14)

TOWERS = {
    "openai-b32": Tower(
        "openai/clip-vit-base-patch32", CLIP, {**_OPENAI, **TEXT_B}, {**_B, "patch_size": 32}, 512, 12
    ),
    "openai-b16": Tower("openai/clip-vit-base-patch16", CLIP, {**_OPENAI, **TEXT_B}, {**_B, "patch_size": 16}, 512, 2),
    "openai-l14": Tower("openai/clip-vit-large-patch14", CLIP, {**_OPENAI, **TEXT_L}, VISION_L, 768, 12),
    "laion-h14": Tower("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", CLIP, {**_LAION, **TEXT_H}, VISION_H, 1024, 2),
    "laion-bigg14": Tower("Geonmo/CLIP-Giga-config-fixed", CLIP, {**_LAION, **TEXT_G}, VISION_G, 1280, 2),
    "metaclip-l14": Tower("facebook/metaclip-l14-fullcc2.5b", CLIP, {**_METACLIP, **TEXT_L}, VISION_L, 768, 2),
    "metaclip-h14": Tower("facebook/metaclip-h14-fullcc2.5b", CLIP, {**_METACLIP, **TEXT_H}, VISION_H, 1024, 2),
    "siglip-b16": Tower("google/siglip-base-patch16-224", SIGLIP, {**_V1, **_B}, {**_B, "patch_size": 16}, 768, 12),
    "siglip-b16-short": Tower(
        "google/siglip-base-patch16-224", SIGLIP, {**_V1, **_B}, {**_B, "patch_size": 16}, 768, 2
    ),
    "siglip-so400m": Tower(
        "google/siglip-so400m-patch14-384",
        SIGLIP,
        {**_V1, **_SO},
        {**_SO, "patch_size": 14, "image_size": 384},
        1152,
        2,
    ),
    "siglip2-b16": Tower("google/siglip2-base-patch16-224", SIGLIP, {**_V2, **_B}, {**_B, "patch_size": 16}, 768, 2),
    "siglip2-b16-naflex": Tower(
        "google/siglip2-base-patch16-naflex", SIGLIP2, {**_V2, **_B}, {**_B, "patch_size": 16}, 768, 2
    ),
}


@torch.no_grad()
def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights, so wide that a wrong token shows: a block of numbers over and over, at an offset of its own."""
    numbers = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for place, (name, parameter) in enumerate(model.named_parameters()):
        flat = parameter.view(-1)
        for start in range(0, flat.numel(), len(numbers)):
            part = flat[start : start + len(numbers)]
            part.copy_(numbers.roll(place * 7919)[: len(part)])
        if parameter.ndim >= 2:
            parameter.mul_(1.0 if "embedding.weight" in name else parameter[0].numel() ** -0.5)
        elif name.endswith("weight"):
            parameter.mul_(0.1).add_(1)
        else:
            parameter.mul_(0.1)
    return model.eval()


def projection_width(backbone: type, width: int) -> dict[str, int]:
    """The entry of a text configuration that says how wide the joint space is."""
    fields = backbone.config_class.__dataclass_fields__
    return {name: width for name in ("projection_dim", "projection_size") if name in fields}


def text_config(name: str, *, layers: int | None = None, **options):
    """The text configuration of a published tower."""
    tower = TOWERS[name]
    facts = {**tower.text, **projection_width(tower.backbone, tower.width), **options}
    return tower.backbone.config_class(**{**facts, "num_hidden_layers": layers or facts["num_hidden_layers"]})


def text_tower(name: str, **options):
    """A published text tower with random weights, and as many layers as a test can afford."""
    tower = TOWERS[name]
    with no_init_weights():
        model = tower.backbone(text_config(name, layers=tower.layers, **options))
    return fill(model)


def vision_tower(name: str):
    """One layer of a published vision tower with random weights."""
    tower = TOWERS[name]
    facts = {**tower.vision, "num_hidden_layers": 1}
    config_class = tower.backbone.vision_class.config_class
    if "projection_dim" in config_class.__dataclass_fields__:
        facts["projection_dim"] = tower.width
    with no_init_weights():
        model = tower.backbone.vision_class(config_class(**facts))
    return fill(model)


def tiny_backbone(backbone: type, **options):
    """Any backbone, two small layers; H = 32 and D = 24 differ on purpose."""
    facts = {**sizes(32, 64, 2, 4), "vocab_size": 1000, **projection_width(backbone, 24), **options}
    facts = {name: value for name, value in facts.items() if name in backbone.config_class.__dataclass_fields__}
    if backbone is CLIPTextModelForRTD:
        facts = {"bos_token_id": 998, "eos_token_id": 999, **facts}
    return fill(backbone(backbone.config_class(**facts)))


# Tokenizers


@cache
def full_clip_tokenizer() -> CLIPTokenizer:
    """A few words, with BOS and EOS where CLIP's vocabulary of 49,408 has them."""
    symbols = byte_symbols()
    small = build_tokenizer([])
    names = [name for name in small.get_vocab() if name not in (BOS, EOS)]
    vocabulary = {name: small.get_vocab()[name] for name in names}
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        left = word[0]
        for position, letter in enumerate(word[1:], start=2):
            right = letter + "</w>" if position == len(word) else letter
            merges[(left, right)] = None
            left += right
            vocabulary.setdefault(left, 2 * len(symbols) + len(merges))
    vocabulary |= {BOS: 49406, EOS: 49407}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=77)


@cache
def _spiece_model() -> bytes:
    import sentencepiece

    rng, words = random.Random(0), WORDS.split()
    lines = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(2000)]
    lines += ["thing , . ! ? ' - $ 0 1 2 3 4 5 6 7 8 9 " + " ".join("abcdefghijklmnopqrstuvwxyz")] * 200
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=200,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    return written.getvalue()


def siglip_tokenizer(folder: Path) -> SiglipTokenizer:
    """SigLIP's: SentencePiece without BOS, EOS for padding, small letters, no punctuation, hence no `$`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(_spiece_model())
    return SiglipTokenizer(str(folder / "spiece.model"))


def gemma_tokenizer(kind: type = GemmaTokenizer) -> GemmaTokenizer | Siglip2Tokenizer:
    """SigLIP 2's: bytes for what is not known, no space before the first word, no BOS; Gemma's keeps capitals."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *map(chr, range(33, 127)), f"{SPACE}$"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: dict[tuple[str, str], None] = {(SPACE, "$"): None}
    for word in (spelled for each in WORDS.split() for spelled in (SPACE + each, each)):
        left = word[0]
        for letter in word[1:]:
            merges[(left, letter)] = None
            left += letter
            vocabulary.setdefault(left, len(vocabulary))
    return kind(vocabulary, list(merges), add_bos_token=False, add_eos_token=True, model_max_length=64)


def tokenizer_for(name: str, folder: Path):
    """A tokenizer of the kind that was published with a tower."""
    tower = TOWERS[name]
    if tower.backbone is CLIPTextModelForRTD:
        return full_clip_tokenizer()
    return siglip_tokenizer(folder) if tower.text["vocab_size"] == 32000 else gemma_tokenizer()
