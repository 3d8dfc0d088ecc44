"""The contract of triplet generators: captions in, text triplets with their provenance out."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from ..registry import Registry
from .columns import TRIPLET_COLUMNS


GENERATORS = Registry("triplet generator", "GENERATORS")

# What every generated row says about its making, beside the three texts.
PROVENANCE = {
    "rule": str,  # what kind of change it is, such as `replace`
    "source": str,  # what the change takes away, such as `dog`; empty where nothing is
    "target": str,  # what it brings in, such as `cat`; empty where nothing is
    "generator": str,  # which generator made it; with a model, its name behind a colon
    "seed": int,
    "caption_row": int,  # place of the caption in the input, counted from 0
}
ROW_COLUMNS = (*TRIPLET_COLUMNS, *PROVENANCE)


class TripletGenerator(ABC):
    """
    Base class of the generators. A generator is one file with a subclass; `@GENERATORS.register(name)` enters it.

    `examples/generate_triplets.py --generator name` makes one as `cls(options, seed=seed)`, with its `options_class`
    parsed from the command line, calls `prepare` and then `generate`.

    Class attributes:
        name (`str`): Its name in `GENERATORS`.
        options_class (`type`): Dataclass of its options, each with a `help` in its metadata.
        parallel (`bool`):
            Whether the rows of a caption depend on nothing but the caption, its number and the options, so that
            captions may be shared among processes. Such a generator must be picklable.

    Attributes:
        options: An instance of `options_class`.
        seed (`int`): With a caption and its number, it decides what is drawn.
        skipped (`Counter[str]`): Captions without triplets, and answers that were refused, counted by reason.
    """

    name: ClassVar[str]
    options_class: ClassVar[type]
    parallel: ClassVar[bool] = False

    def __init__(self, options: Any = None, *, seed: int = 0):
        self.options = self.options_class() if options is None else options
        if not isinstance(self.options, self.options_class):
            raise TypeError(
                f"`options` of the generator `{self.name}` must be a `{self.options_class.__name__}`, but is a "
                f"`{type(self.options).__name__}`."
            )
        self.seed = seed
        self.skipped: Counter[str] = Counter()

    def prepare(self, captions: Iterable[str | None], *, folder: Path, workers: int = 1) -> None:  # noqa: B027
        """
        Looks at the corpus first, where the generator needs that; by default it does not.

        Args:
            captions (`Iterable[str | None]`): All captions, as they stand in the data. Read once, in order.
            folder (`Path`):
                Exists, belongs to this run, and is found again when the run is resumed: what was computed can be kept
                there. It is removed when the output is complete.
            workers (`int`, *optional*, defaults to 1): Processes it may use. The result must not depend on them.
        """

    @abstractmethod
    def generate(self, captions: Iterable[tuple[int, str | None]]) -> Iterator[dict[str, Any]]:
        """
        Makes triplets.

        Args:
            captions (`Iterable[tuple[int, str | None]]`):
                Captions as they stand in the data, each with its number, which is its place in the whole input. Read
                lazily: it may be a stream that does not fit in memory.

        Yields:
            `dict`: rows with exactly the columns `ROW_COLUMNS`: the three texts and [`PROVENANCE`]. In the order of
            the captions. A caption that gives none is counted in `skipped`, never dropped silently.
        """

    def map_batch(self, captions: Sequence[str | None], numbers: Sequence[int]) -> dict[str, list]:
        """
        A batch of captions as `datasets` maps it, in memory or streamed, once `prepare` has seen the corpus:

        ```python
        >>> dataset.map(
        ...     generator.map_batch, input_columns="caption", with_indices=True, batched=True,
        ...     remove_columns=dataset.column_names, num_proc=4,
        ... )
        ```

        [`generate_triplets`] makes the same rows, and filters, writes and resumes.

        Args:
            captions (`Sequence[str | None]`): A batch.
            numbers (`Sequence[int]`): The place of each in the whole input.

        Returns:
            `dict[str, list]`: the columns `ROW_COLUMNS`.
        """
        rows = list(self.generate(zip(numbers, captions, strict=True)))
        return {name: [row[name] for row in rows] for name in ROW_COLUMNS}

    def row(
        self, texts: tuple[str, str, str], *, rule: str, source: str, target: str, caption_row: int
    ) -> dict[str, Any]:
        """
        One row of this generator.

        Args:
            texts (`tuple[str, str, str]`): Reference caption, conditioning text, target caption.
            rule (`str`): What kind of change it is.
            source (`str`): What it takes away; may be empty.
            target (`str`): What it brings in; may be empty.
            caption_row (`int`): Place of the caption in the input.
        """
        provenance = (rule, source, target, self.label, self.seed, caption_row)
        return dict(zip(ROW_COLUMNS, (*texts, *provenance), strict=True))

    @property
    def settings(self) -> dict[str, Any]:
        """What the triplets depend on besides captions and seed: an unfinished run goes on with the same alone."""
        return asdict(self.options)

    @property
    def label(self) -> str:
        """What stands in the column `generator`: the name, and behind a colon the model, where there is one."""
        return self.name
