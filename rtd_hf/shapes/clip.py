"""The small CLIP of the offline world: tokenizer, configuration and the assets that ship with the package.

A genuine `CLIPModel`, `CLIPTokenizer` and CLIP image processor, only small: 48 x 48 pictures in 8 x 8 patches, a joint
space of 96 dimensions. `examples/fit_shapes_clip.py` trains it, `examples/train_projection.py` fits its projections;
recipe, seed and figures of the shipped files lie beside them in `assets/`.
"""

import json
import random
from pathlib import Path

from .captions import describe_scene
from .edits import sample_triplet
from .pictures import IMAGE_SIZE
from .scenes import sample_scene


ASSETS = Path(__file__).parent / "assets"
"""Folder of the shipped small CLIP (`clip/`) and of a projection of each kind fitted to it (`lincir/`, ...)."""

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def world_texts(number: int, seed: int) -> list[str]:
    """Captions and conditioning texts of training scenes, for fitting the tokenizer: `number` of each."""
    rng = random.Random(f"texts {seed}")
    captions = [describe_scene(sample_scene(rng, "train"), rng) for _ in range(number)]
    return captions + [sample_triplet(rng)["conditioning_caption"] for _ in range(number)]


def build_tokenizer(texts: list[str], vocab_size: int = 768):
    """Fits a CLIP BPE tokenizer: byte symbols, the same ending a word, merges, BOS, EOS as the highest id.

    Args:
        texts (`list[str]`): What to learn the merges from.
        vocab_size (`int`, *optional*, defaults to 768): About how many tokens; 781 for the texts of the offline world.

    Returns:
        `transformers.CLIPTokenizer` in which `$` is one token of its own, as in the published CLIP.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 450, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator((text.lower() for text in texts), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = alphabet + [symbol + "</w>" for symbol in alphabet] + ["".join(pair) for pair in merges] + [_BOS, _EOS]
    vocab = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def build_config(tokenizer):
    """The configuration of the small CLIP for a tokenizer: 4 layers a tower, joint space of 96 dimensions."""
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        projection_dim=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=96)


def build_image_processor():
    """CLIP's image processor at 48 x 48 pixels, with CLIP's mean and standard deviation."""
    from transformers import CLIPImageProcessorPil

    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
