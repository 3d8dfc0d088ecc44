"""Tiny random CLIP text models and a tiny CLIP tokenizer, the same in every process; the real tokenizer if at hand."""

import copy
import gzip
from functools import cache
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer


BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORDS = """
a an the photo of that is are in on with and or to it from not has person same but more less one two three
red green blue yellow black white small large big left right up down instead made change add remove
dog cat car tree bird circle square triangle grass table house man woman
"""
REAL_VOCABULARY = Path(__file__).resolve().parents[2] / "shared" / "clip_vocab" / "bpe_simple_vocab_16e6.txt.gz"


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of OpenAI's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(len(others))]


def build_tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    """A CLIP tokenizer with the vocabulary that follows from the merges; BOS and EOS have the highest ids."""
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(merge) for merge in merges), BOS, EOS]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=77
    )


@cache
def _tiny_tokenizer() -> CLIPTokenizer:
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        left = word[0]
        for position, letter in enumerate(word[1:], start=2):
            right = letter + "</w>" if position == len(word) else letter
            merges[(left, right)] = None
            left += right
    return build_tokenizer(list(merges))


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows a few words as one token each and spells all others in bytes."""
    return copy.deepcopy(_tiny_tokenizer())


@cache
def _real_tokenizer() -> CLIPTokenizer:
    lines = gzip.decompress(REAL_VOCABULARY.read_bytes()).decode().split("\n")
    return build_tokenizer([tuple(line.split()) for line in lines[1:48895]])


def real_tokenizer() -> CLIPTokenizer:
    """OpenAI's CLIP tokenizer, built from its merges; skips the test where the file is not at hand."""
    import pytest

    if not REAL_VOCABULARY.is_file():
        pytest.skip(f"the CLIP vocabulary is not at {REAL_VOCABULARY}")
    return _real_tokenizer()


def tiny_text_config(*, legacy_eos: bool = False, **options) -> CLIPTextConfig:
    """Configuration of a text encoder of two layers; the widths H = 32 and D = 24 differ on purpose."""
    vocab_size = len(_tiny_tokenizer())
    facts = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": 0 if legacy_eos else vocab_size - 2,
        "eos_token_id": 2 if legacy_eos else vocab_size - 1,
        "pad_token_id": 1,
        "attn_implementation": "sdpa",
    }
    return CLIPTextConfig(**{**facts, **options})


@cache
def _tiny_weights(shape: tuple) -> dict[str, torch.Tensor]:
    config = tiny_text_config(**dict(shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPTextModelWithProjection(config)
        # CLIP's own initialisation is so narrow that a wrong token hardly shows in the embedding.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1.0 if "embedding" in name else parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.state_dict()


def tiny_text_model(model_class: type = CLIPTextModelWithProjection, *, legacy_eos: bool = False, **options):
    """
    A random text encoder of `model_class` in evaluation mode, with the same weights at every call.

    Args:
        model_class (`type`): `CLIPTextModelWithProjection` or a subclass without parameters of its own.
        legacy_eos (`bool`): Whether the configuration has OpenAI's old `eos_token_id` 2.
        options: Other entries of the configuration, such as `hidden_size` or `attn_implementation`.
    """
    model = model_class(tiny_text_config(legacy_eos=legacy_eos, **options))
    shape = tuple(sorted((key, value) for key, value in options.items() if key != "attn_implementation"))
    model.load_state_dict(_tiny_weights(shape), strict=True)
    return model.eval()


def tiny_triplets(number: int) -> list[dict[str, str]]:
    """Text triplets of different lengths out of words the tiny tokenizer knows, every reference different."""
    colours, things = ("red", "green", "blue", "yellow", "black", "white"), ("dog", "cat", "car", "tree", "bird")
    places = ("on the grass", "in a house with a small table", "and a man")
    rows = []
    for index in range(number):
        colour, other = colours[index % 6], colours[(index + 1 + index // 6 % 5) % 6]
        thing, place = things[index % 5], places[index // 30 % 3]
        more = " and has more white in the right" if index % 2 else ""
        rows.append(
            {
                "reference_caption": f"a {colour} {thing} {place}" + " more" * (index // 90),
                "conditioning_caption": f"is {other} instead of {colour}{more}",
                "target_caption": f"the {other} {thing} {place}{more}",
            }
        )
    return rows


def tiny_projection(**options):
    """A LinCIR projection that fits the tiny text encoder (D = 24, H = 32), with the same weights at every call."""
    from rtd_hf.projections import ImageToWordProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        projection = ImageToWordProjection.build("lincir", 24, 32, **options)
        for parameter in projection.parameters():
            # As wide as the tiny encoder's token embeddings, so that the noise and a wrong word show in the result.
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    return projection


def tiny_trainer(folder, *, max_steps: int, eval_rows: int, peft_config=None, evaluators=(), callbacks=(), **options):
    """A training of the tiny encoder on 27 triplets, four a step and process, always with the same weights."""
    from datasets import Dataset

    from rtd_hf.models import CLIPTextModelForRTD
    from rtd_hf.trainer import RTDTrainer
    from rtd_hf.training_args import RTDTrainingArguments

    torch.manual_seed(7)
    defaults = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = RTDTrainingArguments(output_dir=str(folder), max_steps=max_steps, **{**defaults, **options})
    return RTDTrainer(
        tiny_text_model(CLIPTextModelForRTD),
        args,
        projection=tiny_projection(),
        processing_class=tiny_tokenizer(),
        train_dataset=Dataset.from_list(tiny_triplets(27)),
        eval_dataset=Dataset.from_list(tiny_triplets(eval_rows)),
        evaluators=evaluators,
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
