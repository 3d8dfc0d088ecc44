"""Optimization-based textual inversion: a word for every image by itself, which SEARLE's projection then imitates."""

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..anchors.fingerprints import hash_bytes
from ..distributed import rank, world_size
from .base import ObjectiveOptions
from .concepts import PhraseBank
from .frozen_texts import FrozenTexts


_MOST_PHRASES = 100_000  # a bound on memory: 300 MB for ViT-L/14

TEMPLATES = (
    "a photo of $",
    "a picture of $",
    "an image of $",
    "a close view of $",
    "a cropped photo of $",
    "a dark picture of $",
    "a bright photo of $",
    "a blurred image of $",
    "a sharp photo of $",
    "a snapshot of $",
    "one photo of $",
    "the photo shows $",
    "this is $",
    "$ in a picture",
    "here we see $",
    "a good view of $",
)
"""Sentences around the word, in our own wording."""


@dataclass
class InversionOptions(ObjectiveOptions):
    """How words are found; the published values are the defaults."""

    inversion_steps: int = field(default=350, metadata={"help": "Steps for the word of each picture."})
    inversion_learning_rate: float = field(default=2e-2, metadata={"help": "AdamW's learning rate for these words."})
    inversion_weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay for these words."})
    inversion_ema: float = field(default=0.99, metadata={"help": "Decay of the moving average that becomes the word."})
    inversion_phrase_weight: float = field(
        default=0.5, metadata={"help": "Weight of the phrases, beside 1 for the picture."}
    )
    inversion_concepts: int = field(default=15, metadata={"help": "Nearest concepts whose phrases a word meets."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("inversion_steps", "inversion_concepts"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)}.")
        if not 0 <= self.inversion_ema < 1:
            raise ValueError(f"`inversion_ema` must be at least 0 and below 1, but is {self.inversion_ema}.")


def textual_inversion(
    image_embeds: torch.Tensor,
    texts: FrozenTexts,
    options: InversionOptions | None = None,
    *,
    bank: PhraseBank | None = None,
    concepts: torch.Tensor | None = None,
    seed: int = 0,
    batch_size: int = 256,
    folder: str | os.PathLike | None = None,
    templates: Sequence[str] = TEMPLATES,
) -> torch.Tensor:
    """
    Finds a word for each image (Baldrati et al., ICCV 2023, section 3.1).

    A word starts at N(0, 0.02) and is moved by AdamW to lower the mean of two cosine losses, weighted 1 and
    `inversion_phrase_weight`: of a template with the word against the image, and of a phrase about one of the image's
    nearest concepts, the word in the concept's place, against that phrase as it is. A moving average over the steps is
    what is kept. Images do not influence each other, so how they are batched changes nothing, and everything that is
    drawn is keyed by the seed and the image's number.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): Image embeddings, not normalised.
        texts ([`FrozenTexts`]): The text encoder, on the device to compute on.
        options ([`InversionOptions`], *optional*): Steps, rates and weights; the published ones by default.
        bank ([`PhraseBank`], *optional*): Phrases; without it the images alone count.
        concepts (`torch.Tensor` of shape `(N, C)`, *optional*): The nearest concepts of each image; with `bank`.
        seed (`int`, *optional*, defaults to 0): Draws starts, templates and phrases.
        batch_size (`int`, *optional*, defaults to 256): Images at once; as many are lost by an interruption.
        folder (`str` or `os.PathLike`, *optional*):
            Where words are kept, in a subfolder named after all that decides them. Words that are there are not
            computed again. Several processes share the work if they share the folder.
        templates (`Sequence[str]`, *optional*): Sentences with one `$` each.

    Returns:
        `torch.Tensor` of shape `(N, H)`, float32, on the CPU.

    Raises:
        ValueError: `concepts` does not fit, or processes have no `folder` to share.
        FloatingPointError: a word is not finite.
    """
    options = InversionOptions() if options is None else options
    if (bank is None) != (concepts is None) or (concepts is not None and len(concepts) != len(image_embeds)):
        raise ValueError("`bank` and `concepts` belong together: give the numbers of concepts for every image.")
    if folder is None and world_size() > 1:
        raise ValueError("`folder` is needed where several processes share the work.")
    job = _Inversion(texts, options, bank, tuple(templates), seed)
    starts = range(0, len(image_embeds), batch_size)
    paths: list[Path | None] = [None] * len(starts)
    if folder is not None:
        home = Path(folder) / job.fingerprint(image_embeds, concepts)
        home.mkdir(parents=True, exist_ok=True)
        paths = [home / f"{start:09d}-{batch_size}.safetensors" for start in starts]
    words: dict[int, torch.Tensor] = {}
    for place in tqdm(range(rank(), len(starts), world_size()), desc="Inverting images", unit="batch"):
        if paths[place] is not None and paths[place].is_file():
            continue
        rows = torch.arange(starts[place], min(starts[place] + batch_size, len(image_embeds)))
        words[place] = job.run(image_embeds[rows], rows.tolist(), None if concepts is None else concepts[rows])
        if paths[place] is not None:
            _write(paths[place], words[place])
    if world_size() > 1:
        torch.distributed.barrier()
    return torch.cat([words[place] if place in words else _read(paths[place]) for place in range(len(starts))])


class _Inversion:
    """What the words of all images share."""

    def __init__(
        self,
        texts: FrozenTexts,
        options: InversionOptions,
        bank: PhraseBank | None,
        templates: tuple[str, ...],
        seed: int,
    ):
        self.texts, self.options, self.bank, self.templates, self.seed = texts, options, bank, templates, seed
        self.device = next(texts.encoder.parameters()).device
        self._known: dict[str, torch.Tensor] = {}

    def run(self, image_embeds: torch.Tensor, rows: list[int], concepts: torch.Tensor | None) -> torch.Tensor:
        """The words `(B, H)` of images with these numbers."""
        images, options = image_embeds.to(self.device), self.options
        draws = [random.Random(f"inversion {self.seed} {row}") for row in rows]
        width = self.texts.encoder.config.hidden_size
        starts = [np.random.default_rng(draw.getrandbits(63)).normal(0, 0.02, width) for draw in draws]
        words = torch.tensor(np.stack(starts), dtype=torch.float32, device=self.device).requires_grad_()
        average = words.detach().clone()
        optimizer = torch.optim.AdamW(
            [words], lr=options.inversion_learning_rate, weight_decay=options.inversion_weight_decay
        )
        for _ in range(options.inversion_steps):
            optimizer.zero_grad()
            self.losses(words, images, draws, concepts).sum().backward()  # a sum, so that each image is on its own
            optimizer.step()
            average.lerp_(words.detach(), 1 - options.inversion_ema)
        if not torch.isfinite(average).all():
            raise FloatingPointError(
                f"The word of image {rows[int((~torch.isfinite(average)).any(dim=1).nonzero()[0, 0])]} is not finite. "
                f"Lower `inversion_learning_rate` (now {options.inversion_learning_rate:g})."
            )
        return average.cpu()

    def losses(
        self, words: torch.Tensor, images: torch.Tensor, draws: list[random.Random], concepts: torch.Tensor | None
    ) -> torch.Tensor:
        """One step's loss of every image, `(B,)`."""
        number, weight = len(words), self.options.inversion_phrase_weight
        prompts = [draw.choice(self.templates) for draw in draws]
        if self.bank is None or weight == 0:
            return 1 - F.cosine_similarity(self._encode(prompts, words), images, dim=-1)
        pairs = [
            self.bank.draw(int(draw.choice(row)), draw) for draw, row in zip(draws, concepts.tolist(), strict=True)
        ]
        embeds = self._encode(prompts + [masked for _, masked in pairs], words)
        phrases = self._phrase_embeds([phrase for phrase, _ in pairs])
        image_loss = 1 - F.cosine_similarity(embeds[:number], images, dim=-1)
        phrase_loss = 1 - F.cosine_similarity(embeds[number:], phrases, dim=-1)
        return (image_loss + weight * phrase_loss) / (1 + weight)

    def _phrase_embeds(self, phrases: list[str]) -> torch.Tensor:
        """Embeddings `(n, D)` of phrases as they are; each is met in many steps, and encoded once."""
        if len(self._known) > _MOST_PHRASES:
            self._known.clear()
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._known]
        if new:
            plain = self.texts.lay_out_plain(new)
            embeds = self.texts.encode_plain({name: value.to(self.device) for name, value in plain.items()})
            self._known.update(zip(new, embeds, strict=True))
        return torch.stack([self._known[phrase] for phrase in phrases])

    def _encode(self, prompts: list[str], words: torch.Tensor) -> torch.Tensor:
        numbers = [row % len(words) for row in range(len(prompts))]
        batch = self.texts.lay_out(prompts, numbers, num_words=len(words))
        return self.texts.encode({name: value.to(self.device) for name, value in batch.items()}, words[:, None])

    def fingerprint(self, image_embeds: torch.Tensor, concepts: torch.Tensor | None) -> str:
        """A name for everything that decides the words."""
        state = hashlib.blake2b(digest_size=8)
        for weight in self.texts.encoder.state_dict().values():
            state.update(hash_bytes(weight.detach().cpu().contiguous().view(torch.uint8).numpy()).encode())
        state.update(hash_bytes(image_embeds.float().contiguous().numpy()).encode())
        settings = (asdict(self.options), self.templates, self.seed)
        state.update(repr(settings).encode())
        if concepts is not None:
            state.update(hash_bytes(concepts.contiguous().numpy()).encode())
            state.update(repr((self.bank.concepts, self.bank.rows)).encode())
        return state.hexdigest()


def _write(path: Path, words: torch.Tensor) -> None:
    from safetensors.torch import save_file

    partial = path.with_suffix(f".partial{rank()}")
    save_file({"words": words.contiguous()}, partial)
    os.replace(partial, path)  # a run that is killed leaves a whole file or none


def _read(path: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(path)["words"]
