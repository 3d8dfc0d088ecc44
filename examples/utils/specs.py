"""Benchmarks as they are named on a command line: `cirr=ROOT`, `coco=ROOT,seed=1`, `shapes,num_queries=50`."""

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
        retriever (`ComposedImageRetriever`): Encodes texts and pictures.
        options: Of `PreservationEvaluator`.

    Raises:
        ValueError: If it is neither.
    """
    from rtd_hf import PreservationEvaluator, load_coco_captions, load_shapes_captions

    head, *rest = text.split(",")
    name, _, file = head.partition("=")
    wanted = dict(part.split("=", 1) for part in rest if "=" in part)
    known = {"shapes": {"num_images", "seed"}, "coco": {"images", "num_images"}}
    fits = name in known and wanted.keys() <= known[name] and len(wanted) == len(rest)
    if not fits or (name == "coco" and not (file and "images" in wanted)):
        raise ValueError(
            f"`--preservation` must be `shapes[,num_images=500,seed=0]` or "
            f"`coco=CAPTIONS.json,images=FOLDER[,num_images=1000]`, got {text!r}."
        )
    numbers = {key: int(wanted.pop(key)) for key in ("num_images", "seed") if key in wanted}
    if name == "shapes":
        data = load_shapes_captions(**numbers)
    else:
        data = load_coco_captions(file, wanted["images"], **numbers)
    return PreservationEvaluator(data, retriever, **options)
