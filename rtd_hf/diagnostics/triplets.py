"""What an encoder makes of text triplets: whether targets move where the conditioning texts point."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..retrieval import CIREncoder
from ..triplets.columns import TRIPLET_COLUMNS, resolve_triplet_columns
from ..triplets.quality import similarities
from .base import Diagnosis, Measure, cosine_histograms


class TripletQuality(Measure):
    """
    A callable `(text_encoder) -> {metric: value}`, such as an evaluator of [`RTDTrainer`]: the cosines that
    [`measure_triplets`] reports of triplets under the frozen encoder, under any.

    `triplets_reference_target`, `triplets_target_concatenation`, `triplets_target_conditioning` and
    `triplets_moved_as_told` are means over the triplets. How the last one changes says whether the encoder comes to
    read conditioning texts as differences.

    Args:
        triplets (`Sequence[Mapping]` or `datasets.Dataset`): Rows, with columns as a training takes them.
        retriever ([`CIREncoder`]): Encodes texts.
        number (`int`, *optional*, defaults to 500): As many are drawn; all, where there are no more.
        seed (`int`, *optional*, defaults to 0): Draws them.

    Raises:
        ValueError: There are no triplets, or texts are missing.
    """

    def __init__(
        self, triplets: Sequence[Mapping[str, Any]], retriever: CIREncoder, *, number: int = 500, seed: int = 0
    ):
        if number < 1 or len(triplets) < 1:
            raise ValueError(
                f"`number` must be at least 1 and `triplets` not empty, got {number} and {len(triplets)} rows."
            )
        places = range(len(triplets))
        if number < len(triplets):
            places = sorted(random.Random(f"triplet quality {seed}").sample(places, number))
        columns = resolve_triplet_columns(getattr(triplets, "column_names", None) or triplets[0])
        self.rows = [{name: triplets[place].get(column) for name, column in columns.items()} for place in places]
        faulty = [place for place, row in zip(places, self.rows, strict=True) if not all(map(_is_text, row.values()))]
        if faulty:
            raise ValueError(
                f"`triplets` must hold a text in each of {', '.join(TRIPLET_COLUMNS)}, but {len(faulty)} of "
                f"{len(self.rows)} rows do not, first row {faulty[0]}. `check_triplets` says what is wrong with them."
            )
        self.retriever = retriever

    def measure(self, text_encoder=None) -> Diagnosis:
        """
        Measures an encoder.

        Args:
            text_encoder (*optional*): The encoder; the retriever's own by default.

        Returns:
            [`Diagnosis`]: With one value a triplet, so that [`~Diagnosis.change_from`] gives intervals; its series are
            histograms of the cosines, `edges` and, by name, `counts`.
        """
        found = similarities(
            self.rows, lambda texts: self.retriever.encode_texts(texts, text_encoder=text_encoder).numpy()
        )
        drawn = {name: torch.from_numpy(cosines) for name, cosines in found.items()}
        values = {f"triplets_{name}": cosines.double() for name, cosines in drawn.items()}
        series = {**cosine_histograms(drawn), "triplets": len(self.rows)}
        return Diagnosis(
            "triplet_quality", {name: rows.mean().item() for name, rows in values.items()}, series, values
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
