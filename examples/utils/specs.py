"""What is measured, as it is named on a command line: `cirr=ROOT`, `coco=ROOT,seed=1`, `shapes,num_queries=50`."""

import ast
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark to load.

    Args:
        name (`str`): Name in `BENCHMARKS`.
        root (`str`, *optional*): Its folder.
        options (`dict`, *optional*): Keyword arguments of its loader.
        draws (`int`, *optional*, defaults to 1): How many seeds in a row are measured (COCO).
    """

    name: str
    root: str | None = None
    options: dict = field(default_factory=dict)
    draws: int = 1

    @property
    def label(self) -> str:
        """Tells the draws of a benchmark apart, and its variants."""
        shown = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name},{shown}" if shown else self.name

    def each_draw(self) -> "list[BenchmarkSpec]":
        """One spec a seed."""
        first = self.options.get("seed", 0)
        if self.draws == 1:
            return [self]
        return [replace(self, options={**self.options, "seed": first + i}, draws=1) for i in range(self.draws)]

    def load(self, *, images: str = "strict", **more):
        """The benchmark.

        Args:
            images (`str`, *optional*): What the loader does about missing pictures, where it reads any.
            more: Further options.

        Returns:
            `CIRBenchmark`
        """
        from rtd_hf import BENCHMARKS
        from rtd_hf.benchmarks import SOURCES

        options = {**self.options, **more, **({"images": images} if self.name in SOURCES else {})}
        try:
            return BENCHMARKS[self.name](self.root, **options)
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                raise
            raise ValueError(f"`--benchmarks {self.name}` has no such option: {error}.") from error


def parse_spec(text: str) -> BenchmarkSpec:
    """Reads one `NAME[=ROOT][,option=value ...]`.

    Args:
        text (`str`): Values are read as Python does; what is none is text. `a/b/c` in the options `tasks`,
            `categories` and `metrics` is a list.

    Returns:
        [`BenchmarkSpec`]

    Raises:
        ValueError: If the name is unknown or an option has no value.
    """
    from rtd_hf import BENCHMARKS

    head, *parts = text.split(",")
    name, _, root = head.partition("=")
    BENCHMARKS[name]  # an unknown name is an error of its own, with the nearest one
    options = {}
    for part in parts:
        key, mark, value = part.partition("=")
        if not mark or not key:
            raise ValueError(f"`--benchmarks {text}`: {part!r} is no `option=value`. A root must hold no comma.")
        options[key] = _value(key, value)
    draws = options.pop("draws", 1)
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"`--benchmarks {text}`: `draws` must be a number of at least 1, got {draws!r}.")
    return BenchmarkSpec(name, root or None, options, draws)


def _value(key: str, value: str):
    if key in ("tasks", "categories", "metrics"):
        return tuple(value.split("/"))
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def preservation_of(text: str, retriever, **options):
    """The evaluator of a `--preservation` argument.

    Args:
        text (`str`): `shapes[,num_images=500,seed=0]` or `coco=CAPTIONS.json,images=FOLDER[,num_images=1000]`.
        retriever (`CIREncoder`): Encodes texts and pictures.
        options: Of `PreservationEvaluator`.

    Raises:
        ValueError: If it is neither.
    """
    from rtd_hf import PreservationEvaluator

    return PreservationEvaluator(_pictures_of(text, "preservation"), retriever, **options)


def captions_of(text: str):
    """The pictures of a `--captions` argument: `shapes[,num_images=500]` or `coco=CAPTIONS.json,images=FOLDER`.

    Raises:
        ValueError: If it is neither.
    """
    return _pictures_of(text, "captions")


def alignment_of(text: str, retriever):
    """The evaluator of a `--watch_alignment` argument.

    Args:
        text (`str`): `shapes[,num_images=200,seed=1]`, `coco=CAPTIONS.json,images=FOLDER[,num_images=1000]`,
            `rows=DATA[,num_images=1000]` (pictures with captions, as `load_rows` reads them), or
            `captions=DATA[,num_captions=1000]` for who has no pictures.
        retriever (`CIREncoder`): Encodes texts and pictures, its text encoder being the frozen one yet.

    Returns:
        `ImageAlignment` or `CaptionDrift`

    Raises:
        ValueError: If it is none of these.
    """
    from rtd_hf import CaptionDrift, ImageAlignment, captioned_rows, load_rows

    name, file, wanted = _pieces_of(text)
    limit = {"rows": "num_images", "captions": "num_captions"}.get(name)
    if limit is None:
        defaults = {"num_images": "200", "seed": "1"} if name == "shapes" else {}
        return ImageAlignment(_pictures_of(text, "watch_alignment", **defaults), retriever)
    if not file or not wanted.keys() <= {limit} or not all(value.isdigit() for value in wanted.values()):
        raise ValueError(f"`--watch_alignment` must be `{name}=DATA[,{limit}=1000]`, got {text!r}.")
    number = int(wanted[limit]) if wanted else None
    rows = load_rows(file, images=name == "rows", captions=True)
    if name == "rows":
        return ImageAlignment(captioned_rows(rows, num_images=number), retriever)
    number = len(rows) if number is None else min(number, len(rows))
    return CaptionDrift([rows[row]["caption"] for row in range(number)], retriever)


def _pieces_of(text: str) -> tuple[str, str, dict[str, str]]:
    head, *rest = text.split(",")
    name, _, file = head.partition("=")
    return name, file, {key: value for key, _, value in (part.partition("=") for part in rest)}


def _pictures_of(text: str, option: str, **defaults: str):
    from rtd_hf import load_coco_captions, load_shapes_captions

    name, file, given = _pieces_of(text)
    known = {"shapes": {"num_images", "seed"}, "coco": {"images", "num_images"}}
    numbers = [value for key, value in given.items() if key != "images"]
    fits = name in known and given.keys() <= known[name] and all(value.isdigit() for value in numbers)
    if not fits or (name == "coco" and not (file and given.get("images"))):
        more = ", `rows=DATA` or `captions=DATA`" if option == "watch_alignment" else ""
        raise ValueError(
            f"`--{option}` must be `shapes[,num_images=500,seed=0]` or "
            f"`coco=CAPTIONS.json,images=FOLDER[,num_images=1000]`{more}, got {text!r}."
        )
    wanted = defaults | given
    images = wanted.pop("images", None)
    numbers = {key: int(value) for key, value in wanted.items()}
    return load_shapes_captions(**numbers) if name == "shapes" else load_coco_captions(file, images, **numbers)
