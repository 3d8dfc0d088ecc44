"""Prepares an imported Context-I2W or FTI4CIR projection for RTD: teaches its surrogate on pictures.

    python examples/teach_surrogate.py --projection outputs/context_i2w --clip_model openai/clip-vit-large-patch14 \\
        --data photos --contexts triplets.jsonl --output_dir outputs/context_i2w_rtd

These two read the vision tokens of a picture, which a text has not. The surrogate learns from a few thousand pictures,
no captions needed, what the projection makes of them, and stands for it in training on texts. Projections that
`examples/train_projection.py` fitted have one already.
"""

# ci: --projection context_i2w --num_rows 64 --steps 5 --output_dir {tmp}

import sys
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors, parse
from utils.parts import WORLD_PROJECTIONS, load_triplets


@dataclass
class ScriptArguments:
    projection: str = field(metadata={"help": "Folder or Hub id of the projection."})
    output_dir: str = field(metadata={"help": "New, empty or earlier output folder."})
    clip_model: str = field(
        default="shapes", metadata={"help": "Folder or Hub id of the CLIP it was fitted to, or `shapes`."}
    )
    data: str = field(
        default="shapes", metadata={"help": "Pictures: a folder, a file, the Hub id of a data set, or `shapes`."}
    )
    num_rows: int | None = field(default=None, metadata={"help": "Pictures to show; all of a data set by default."})
    contexts: str | None = field(
        default=None,
        metadata={
            "help": "Context-I2W: the text triplets it will be trained with; their conditioning texts are contexts."
        },
    )
    steps: int = field(default=2000, metadata={"help": "Steps of the fit."})
    num_workers: int = field(default=0, metadata={"help": "Processes that open pictures."})
    seed: int = field(default=0, metadata={"help": "Draws contexts and batches."})
    device: str = field(default="cpu", metadata={"help": "Where it is done, such as `cuda`."})


def main(script: ScriptArguments) -> None:
    from torch.utils.data import Subset

    from rtd_hf import FrozenCLIP, ImageToWordProjection, load_rows, prepare_output_dir, teach_surrogate
    from rtd_hf.contexts import quiet_transformers
    from rtd_hf.shapes import ASSETS
    from rtd_hf.shapes.pairs import ScenePairs
    from rtd_hf.triplets import resolve_triplet_columns

    folder = prepare_output_dir(script.output_dir)
    name = str(ASSETS / script.projection) if script.projection in WORLD_PROJECTIONS else script.projection
    with quiet_transformers():
        projection = ImageToWordProjection.from_pretrained(name).to(script.device)
    if "surrogate" not in projection.text_trainings:
        raise ValueError(
            f"A `{projection.config.projection_type}` projection needs no surrogate: train with it as it is."
        )
    clip_name = str(ASSETS / "clip") if script.clip_model == "shapes" else script.clip_model
    clip = FrozenCLIP.from_pretrained(clip_name).to(script.device)
    rows = (
        ScenePairs(script.num_rows or 12000)
        if script.data == "shapes"
        else load_rows(script.data, images=True, captions=False)
    )
    rows = Subset(rows, range(min(script.num_rows, len(rows)))) if script.num_rows else rows
    contexts, source = None, script.contexts or ("shapes" if script.data == "shapes" else None)
    if projection.needs_context:
        if source is None:
            raise ValueError(
                "`--contexts` is missing: the words depend on the text of the query. Give the text triplets that the "
                "encoder will be trained with."
            )
        triplets = load_triplets(source, 20000, script.seed)
        contexts = list(triplets[resolve_triplet_columns(tuple(triplets.column_names))["conditioning_caption"]])
    explained = teach_surrogate(
        projection,
        clip,
        rows,
        contexts=contexts,
        num_workers=script.num_workers,
        seed=script.seed,
        steps=script.steps,
    )
    projection.save_pretrained(folder)
    sys.stdout.write(
        f"The surrogate explains {100 * explained:.1f} % of the variance on pictures it was not shown.\n"
        f"The projection lies in {Path(folder)}; train with `--projection {folder}`.\n"
    )


if __name__ == "__main__":
    with one_screen_errors():
        main(*parse((ScriptArguments,), sys.argv[1:], default_recipe=None, description=__doc__.splitlines()[0]))
