"""Concept names and phrases about them: SEARLE's text regulariser, whatever the phrases come from."""

import json
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers.utils import logging

from ..language_models import LocalLanguageModel
from ..parsing import read_json
from ..texts import PLACEHOLDER, clean_caption
from .frozen_texts import FrozenTexts


logger = logging.get_logger(__name__)

_AT_ONCE = 512


class PhraseBank:
    """
    Concepts, each with phrases that name it.

    Args:
        phrases (`Mapping[str, Sequence[str]]`): For every concept its phrases, each of which holds the concept's name.

    Attributes:
        concepts (`tuple[str, ...]`): The names, cleaned ([`clean_caption`]).

    Raises:
        ValueError: there is no concept, one has no phrases, or a phrase does not name its concept.
    """

    def __init__(self, phrases: Mapping[str, Sequence[str]]):
        if not phrases:
            raise ValueError("`phrases` holds no concept. Give at least one, as `{concept: [phrases]}`.")
        self.rows: list[list[tuple[str, str]]] = []
        for concept, lines in phrases.items():
            if isinstance(lines, str) or not lines:
                raise ValueError(
                    f"`phrases` must hold a list of phrases for every concept, but has {lines!r} for {concept!r}."
                )
            self.rows.append([_mask_concept(clean_caption(line), clean_caption(concept)) for line in lines])
        self.concepts = tuple(clean_caption(concept) for concept in phrases)

    def __len__(self) -> int:
        return len(self.concepts)

    def draw(self, concept: int, rng: random.Random) -> tuple[str, str]:
        """A phrase about the concept of this number: as it is, and with `$` in the place of the concept."""
        return rng.choice(self.rows[concept])

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "PhraseBank":
        """
        Reads a JSON file `{concept: [phrases]}`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else; see the class.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"`phrases` {path} does not exist. Give a JSON file `{{concept: [phrases]}}`, or generate one with "
                f"`concepts` and `phrase_model`."
            )
        phrases = _read_phrases(path)
        try:
            return cls(phrases)
        except ValueError as error:
            raise ValueError(f"`phrases` {path}: {error}") from error


def _read_phrases(path: Path) -> dict[str, list[str]]:
    try:
        phrases = read_json(path)
    except ValueError as error:
        raise ValueError(f"`phrases` {path} is not valid JSON ({error}).") from error
    if not isinstance(phrases, dict):
        raise ValueError(f"`phrases` {path} must hold `{{concept: [phrases]}}`, but is a {type(phrases).__name__}.")
    for concept, lines in phrases.items():
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError(f"`phrases` {path} must hold a list of texts for {concept!r}, got {str(lines)[:60]!r}.")
    return phrases


def _mask_concept(phrase: str, concept: str) -> tuple[str, str]:
    found = re.search(rf"(?<!\w){re.escape(concept)}(?!\w)", phrase) if concept else None
    if found is None:
        raise ValueError(
            f"Every phrase must hold its concept's name, but {phrase!r} does not hold {concept!r}. Remove it, or "
            f"write the name out."
        )
    masked = f"{phrase[: found.start()]} {PLACEHOLDER} {phrase[found.end() :]}"
    return phrase, " ".join(masked.split())


@torch.no_grad()
def nearest_concepts(
    image_embeds: torch.Tensor, concepts: Sequence[str], texts: FrozenTexts, number: int
) -> torch.Tensor:
    """
    The concepts that CLIP finds most similar to images, as `a photo of {concept}`.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): Image embeddings; need not be normalised.
        concepts (`Sequence[str]`): C names.
        texts ([`FrozenTexts`]): The text encoder.
        number (`int`): How many for each image; all where there are fewer.

    Returns:
        `torch.Tensor` of shape `(N, min(number, C))`, int64, on the CPU: numbers of concepts, the best first.
    """
    device = next(texts.encoder.parameters()).device
    names = [f"a photo of {concept}" for concept in concepts]
    starts = range(0, len(names), _AT_ONCE)
    embeds = []
    for start in tqdm(starts, desc="Encoding concepts", unit="batch", disable=len(starts) < 4, leave=False):
        batch = texts.lay_out_plain(names[start : start + _AT_ONCE])
        embeds.append(texts.encode_plain({name: value.to(device) for name, value in batch.items()}))
    names_by = F.normalize(torch.cat(embeds), dim=-1).T
    parts = [
        (F.normalize(part.to(device).float(), dim=-1) @ names_by).topk(min(number, len(names)), dim=-1).indices.cpu()
        for part in image_embeds.split(_AT_ONCE)
    ]
    return torch.cat(parts)


def generate_phrases(
    concepts: Sequence[str], generate: Callable[[str, int], Sequence[str]], number: int, path: str | os.PathLike
) -> PhraseBank:
    """
    Has phrases written about concepts, `a photo of {concept} that ...`, and keeps them in a file.

    What the file holds already is not written again, so an interrupted run goes on.

    Args:
        concepts (`Sequence[str]`): Names.
        generate (`Callable[[str, int], Sequence[str]]`): Continues a prompt so many times; see [`local_generator`].
        number (`int`): Phrases for each concept.
        path (`str` or `os.PathLike`): JSON file `{concept: [phrases]}`.

    Returns:
        [`PhraseBank`]: of these concepts.

    Raises:
        ValueError: as [`PhraseBank`] raises.
    """
    path = Path(path)
    phrases = _read_phrases(path) if path.is_file() else {}
    missing = [concept for concept in concepts if len(phrases.get(concept, ())) < number]
    for place, concept in enumerate(tqdm(missing, desc="Writing phrases", unit="concept", disable=len(missing) < 4)):
        prompt = f"a photo of {concept} that"
        # A model that repeats nothing of the prompt is as welcome as one that does.
        lines = (text if text.startswith(prompt) else f"{prompt} {text}" for text in generate(prompt, number))
        phrases[concept] = [" ".join(line.split()) for line in lines]
        if place % 50 == 49 or place == len(missing) - 1:
            _write(path, phrases)
    try:
        return PhraseBank({concept: phrases[concept] for concept in concepts})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _write(path: Path, phrases: Mapping[str, Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(phrases, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def local_generator(
    name: str, *, device: torch.device | str = "cpu", seed: int = 0
) -> Callable[[str, int], list[str]]:
    """
    A local text-generation model that continues prompts as SEARLE has it (section 3.1; there GPT-Neo 2.7B): sampled at
    temperature 0.5, no pair of tokens twice, up to 35 tokens.

    Args:
        name (`str`): Folder or Hub id of a causal language model.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where it runs.
        seed (`int`, *optional*, defaults to 0): With the prompt, it alone decides what is drawn.

    Returns:
        `Callable[[str, int], list[str]]`: for [`generate_phrases`].
    """
    model = LocalLanguageModel(name, device=device)

    def generate(prompt: str, number: int) -> list[str]:
        tokens = model.encode(prompt)
        rows = model.generate(
            [tokens],
            seed=f"{seed} {prompt}",
            do_sample=True,
            temperature=0.5,
            no_repeat_ngram_size=2,
            max_length=max(35, len(tokens) + 8),
            num_return_sequences=number,
        )
        return [f"{prompt} {model.decode(row)}" for row in rows]

    return generate
