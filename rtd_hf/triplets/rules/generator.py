"""Triplets by rules: a caption is edited, and a template says how."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...parsing import parse_yaml
from ...texts import clean_caption
from ..base import GENERATORS, TripletGenerator
from ..faults import text_fault
from . import noun_edits, other_edits
from .counting import count_corpus
from .neighbours import corpus_embeddings, embed_keywords, similar_keywords
from .noun_edits import Edit
from .phrases import Caption
from .vocabulary import Encoder, Vocabulary, company_of, keywords_of, letters_of


logger = logging.get_logger(__name__)

# Rule -> what makes such an edit, and its share by default.
RULES: dict[str, tuple[Callable[..., Edit | None], float]] = {
    "replace": (partial(noun_edits.replace_noun, wording="replace"), 3.0),
    "change": (partial(noun_edits.replace_noun, wording="change"), 2.5),
    "become": (partial(noun_edits.replace_noun, wording="become"), 2.0),
    "add": (noun_edits.add_object, 2.0),
    "remove": (noun_edits.remove_object, 1.0),
    "count": (other_edits.change_count, 1.5),
    "attribute": (other_edits.change_attribute, 3.0),
    "move": (other_edits.move_elsewhere, 1.5),
    "style": (other_edits.change_style, 0.7),
    "negation": (other_edits.negate, 1.0),
}
# What an edit is called where source and target are swapped.
_SWAPPED = {"add": "remove", "remove": "add"}
_NOUN_RULES = ("replace", "change", "become")
_MARGIN = 6  # attempts for each triplet that is wanted


@dataclass
class RuleOptions:
    """Options of the rule-based generator."""

    triplets_per_caption: int = field(default=5, metadata={"help": "The most triplets made of one caption."})
    weights: str = field(
        default="{}",
        metadata={"help": f"How often each rule is tried, such as `{{style: 0}}`; rules: {', '.join(RULES)}."},
    )
    min_count: int = field(default=5, metadata={"help": "Nouns that captions hold less often are not exchanged."})
    max_keywords: int | None = field(default=None, metadata={"help": "The most nouns to know; all by default."})
    similarity: str = field(
        default="corpus",
        metadata={
            "help": "What makes nouns similar: folder or Hub id of a CLIP, `shapes` for ours, or `corpus`: the words "
            "that stand beside them."
        },
    )
    device: str = field(default="cpu", metadata={"help": "Where nouns are encoded and compared, such as `cuda`."})
    sim_min: float | None = field(
        default=None, metadata={"help": "Lower bound of a replacement's similarity; 0.5 of a CLIP by default."}
    )
    sim_max: float | None = field(
        default=None, metadata={"help": "Upper bound of a replacement's similarity; 0.7 of a CLIP by default."}
    )
    quantiles: bool = field(
        default=False,
        metadata={"help": "The bounds are quantiles of a noun's similarities to all others, such as 0.97 and 0.998."},
    )
    quantile_sample: int = field(
        default=0,
        metadata={
            "help": "Quantiles are estimated from so many nouns drawn at random, such as 20000; 0: exact, from all, "
            "which takes long for hundreds of thousands of nouns."
        },
    )
    neighbours: int = field(default=32, metadata={"help": "Replacements kept for each noun, drawn from the band."})
    occurrences: str = field(default="all", metadata={"help": "`all`: a noun is replaced everywhere; or `first`."})
    swap: float = field(default=0.3, metadata={"help": "Share of triplets whose reference and target are swapped."})
    tagger: str = field(default="auto", metadata={"help": "`spacy`, `hanta`, or `auto`: spaCy where it is there."})
    tagged_captions: int = field(
        default=200_000, metadata={"help": "Captions that the vocabulary is made from, the first ones; 0: all."}
    )

    def __post_init__(self):
        try:
            given = parse_yaml(self.weights) if isinstance(self.weights, str) else self.weights
        except ValueError as error:
            raise ValueError(f"`weights` must read like `{{style: 0, count: 2}}`, got {self.weights!r}.") from error
        if not isinstance(given, dict) or not all(isinstance(value, int | float) for value in given.values()):
            raise ValueError(f"`weights` must read like `{{style: 0, count: 2}}`, got {self.weights!r}.")
        unknown = sorted(map(str, set(given) - set(RULES)))
        if unknown:
            raise ValueError(f"`weights` names the unknown rule `{unknown[0]}`. Rules: {', '.join(RULES)}.")
        self.shares = {name: float(given.get(name, share)) for name, (_, share) in RULES.items()}
        if min(self.shares.values()) < 0 or not any(self.shares.values()):
            raise ValueError(f"`weights` must not be negative, and one must be above 0, got {self.weights!r}.")
        if self.occurrences not in ("all", "first"):
            raise ValueError(f"`occurrences` must be `all` or `first`, got {self.occurrences!r}.")
        if not 0 <= self.swap <= 1:
            raise ValueError(f"`swap` must be a share in [0, 1], got {self.swap}.")
        for name in ("triplets_per_caption", "min_count", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.quantile_sample < 0 or self.quantile_sample == 1:
            raise ValueError(f"`quantile_sample` must be 0, for all, or at least 2, got {self.quantile_sample}.")

    def band(self, *, by_corpus: bool) -> tuple[tuple[float, float], bool]:
        """The similarity band, and whether it is in quantiles."""
        quantiles = self.quantiles or (by_corpus and self.sim_min is None and self.sim_max is None)
        low, high = (0.95, 0.998) if quantiles else (0.1, 0.7) if by_corpus else (0.5, 0.7)
        return (
            low if self.sim_min is None else self.sim_min,
            high if self.sim_max is None else self.sim_max,
        ), quantiles


@GENERATORS.register("rules")
class RuleGenerator(TripletGenerator):
    """
    Triplets by rules, after CompoDiff's keyword route (Gu et al., TMLR 2024, section 4.1), with more kinds of edits.

    `prepare` tags captions and collects their nouns, and for each noun others whose text similarity lies in a band.
    `generate` then needs neither tagger nor model: captions are taken apart by the vocabulary alone, and only where
    the borders of a phrase are sure is it edited. So articles, plurals, verbs and capitals can be made to agree.

    Args:
        options ([`RuleOptions`], *optional*): Options.
        seed (`int`, *optional*, defaults to 0): With a caption and its number, it alone decides what is drawn.
        encode (`Callable[[Sequence[str]], np.ndarray]`, *optional*):
            A text encoder, `(n,)` texts to `(n, D)` embeddings, under which replacements are similar. Without it they
            are those that keep the same company in the corpus ([`corpus_embeddings`]).
    """

    name = "rules"
    options_class = RuleOptions
    parallel = True

    def __init__(
        self,
        options: RuleOptions | None = None,
        *,
        seed: int = 0,
        encode: Encoder | None = None,
    ):
        super().__init__(options, seed=seed)
        self.encode = encode
        self.folder: Path | None = None
        self._vocabulary: Vocabulary | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Processes read the vocabulary from the disk; half a million keywords are not sent to each.
        return {**self.__dict__, "_vocabulary": None, "encode": None}

    @property
    def vocabulary(self) -> Vocabulary:
        """The keywords, read where they are needed."""
        if self._vocabulary is None:
            if self.folder is None:
                raise ValueError("The generator knows no words yet. Call `prepare` with the captions first.")
            self._vocabulary = _load(str(self.folder))
        return self._vocabulary

    def prepare(self, captions: Iterable[str | None], *, folder: Path, workers: int = 1) -> None:
        """
        Makes the vocabulary, or finds the one that an earlier, interrupted run made.

        Args:
            captions (`Iterable[str | None]`): All captions. Unfit ones are passed over; `generate` counts them.
            folder (`Path`): Where the vocabulary is kept.
            workers (`int`, *optional*, defaults to 1): Processes that tag; the vocabulary is the same.

        Raises:
            ValueError: the captions hold no noun that could be exchanged; the message says how many were looked at.
            ImportError: there is no tagger.
        """
        self.folder = Path(folder)
        self._vocabulary = None
        _load.cache_clear()
        if Vocabulary.is_in(self.folder):
            return
        options = self.options
        counts = count_corpus(captions, tagger=options.tagger, most=options.tagged_captions, workers=workers)
        keywords = keywords_of(counts, min_count=options.min_count, max_keywords=options.max_keywords)
        if not keywords:
            raise ValueError(
                f"The {counts.captions} usable captions hold no noun that stands in at least {options.min_count} of "
                f"them and could be exchanged. Give more captions, or lower `min_count`."
            )
        band, quantile = options.band(by_corpus=self.encode is None)
        embeddings = embed_keywords(keywords, self.encode) if self.encode else corpus_embeddings(counts, keywords)
        neighbours = similar_keywords(
            embeddings,
            keywords,
            band=band,
            quantile=quantile,
            number=options.neighbours,
            seed=self.seed,
            device=options.device,
            sample=options.quantile_sample,
        )
        alone = int((neighbours < 0).all(1).sum())
        logger.info(f"{len(keywords)} keywords of {counts.captions} captions; {alone} have no replacement in {band}.")
        if alone == len(keywords) and any(options.shares[name] for name in _NOUN_RULES) and len(keywords) > 1:
            logger.warning(
                f"No keyword has a replacement whose similarity lies in {band[0]} to {band[1]}: the rules "
                f"{', '.join(_NOUN_RULES)} make nothing. Encoders differ in where their similarities lie; try "
                f"`quantiles`, with `sim_min` 0.95 and `sim_max` 0.998."
            )
        company = company_of(counts, keywords)
        Vocabulary(keywords, neighbours, letters=letters_of(counts), company=company).save(self.folder)

    def generate(self, captions: Iterable[tuple[int, str | None]]) -> Iterator[dict[str, Any]]:
        """Triplets of captions; see [`TripletGenerator`]. Captions without any are counted in `skipped`."""
        for number, caption in captions:
            fault = text_fault(caption)
            made = 0
            if fault is None:
                for row in self.triplets_of(caption, number):
                    made += 1
                    yield row
            if not made:
                self.skipped[fault or "nothing to edit"] += 1

    def triplets_of(self, caption: str, number: int) -> Iterator[dict[str, Any]]:
        """
        The triplets of one caption, no two the same.

        Args:
            caption (`str`): The caption.
            number (`int`): Its place in the input.
        """
        taken_apart = Caption(caption, self.vocabulary.letters)
        if not taken_apart.phrases:
            return
        rng = random.Random(f"triplets {self.seed} {number} {taken_apart.text}")
        names = [name for name, share in self.options.shares.items() if share > 0]
        shares = [self.options.shares[name] for name in names]
        seen, wanted = set(), self.options.triplets_per_caption
        for name in rng.choices(names, shares, k=wanted * _MARGIN):
            swap = rng.random() < self.options.swap
            more = {"all_of_them": self.options.occurrences == "all"} if name in _NOUN_RULES else {}
            edit = RULES[name][0](taken_apart, self.vocabulary, rng, swap=swap, **more)
            if edit is None or clean_caption(edit.reference) == clean_caption(edit.target):
                continue
            # The same change in other words is worth little.
            if (edit.reference, edit.target) in seen:
                continue
            seen.add((edit.reference, edit.target))
            texts = (edit.reference, edit.conditioning, edit.target)
            rule = _SWAPPED.get(name, name) if swap else name
            yield self.row(texts, rule=rule, source=edit.source, target=edit.new, caption_row=number)
            if len(seen) == wanted:
                return


@lru_cache(maxsize=1)
def _load(folder: str) -> Vocabulary:
    """Kept over the generators' copies, so that a process that is forked finds it loaded."""
    return Vocabulary.load(folder)
