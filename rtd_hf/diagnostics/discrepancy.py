"""The task discrepancy itself: how far composed queries lie from the captions and pictures that they should find."""

import torch

from ..evaluator import CIREvaluator
from .base import Diagnosis, Measure, cosine_histograms


class TaskDiscrepancy(Measure):
    r"""
    How alike a composed query is to what it asks for. A callable `(text_encoder) -> {metric: value}`.

    CLIP's text encoder was trained to bring captions to pictures, composed retrieval asks it for prompts with a
    pseudo-word: that is the discrepancy that RTD is named after (arXiv 2406.09188, section 3). With \\(q_i\\) the
    composed query, \\(t_i\\) the target's caption under the **frozen** encoder, \\(v_i\\) the target's picture, all
    normalised, and means over the queries:

    - `NAME_query_to_caption`: \\(q_i \cdot t_i\\), and `..._margin`: that less the mean of \\(q_i \cdot t_j\\) over
      the other queries' captions, since all embeddings of a text encoder are more or less alike;
    - `NAME_query_to_image`, `NAME_query_to_image_margin`: the same with pictures;
    - `NAME_query_to_reference`: to the reference's picture, which a query that overlooks the text comes close to;
    - `NAME_caption_to_image`: \\(t_i \cdot v_i\\), what the caption itself reaches under the frozen encoder.

    Of several targets the first one counts. All but the margins' other queries are values of a query, so that
    [`~Diagnosis.change_from`] gives intervals; those of margins take the other queries as they are.

    Args:
        evaluator ([`CIREvaluator`]): Over a benchmark with target captions. Its retriever's text encoder must be the
            frozen one when this is made: the captions are embedded now.

    Raises:
        ValueError: If queries have no target caption, their targets are hidden, or there is only one query.
    """

    def __init__(self, evaluator: CIREvaluator):
        self.evaluator = evaluator
        benchmark = evaluator.read_gallery()
        self.name, queries = benchmark.name, benchmark.queries
        if not all(query.target_caption and query.targets for query in queries):
            without = sum(not (query.target_caption and query.targets) for query in queries)
            raise ValueError(
                f"{without} of {len(queries)} queries of `{self.name}` have no target caption, or no known target, "
                f"which the task discrepancy is measured by. The offline world's benchmarks have both."
            )
        if len(queries) < 2:
            raise ValueError(f"`{self.name}` has one query only: a margin over other queries needs two at least.")
        rows = {name: row for row, name in enumerate(benchmark.gallery)}
        images = torch.nn.functional.normalize(evaluator.image_embeds, dim=-1)
        self._captions = evaluator.retriever.encode_texts([query.target_caption for query in queries])
        self._targets = images[[rows[query.targets[0]] for query in queries]]
        self._references = images[[rows[query.reference] for query in queries]]

    def measure(self, text_encoder=None) -> Diagnosis:
        """
        Measures an encoder.

        Args:
            text_encoder (*optional*): The encoder; the retriever's own by default.

        Returns:
            [`Diagnosis`]: Its series are histograms of the cosines: `edges` and, by name, `counts`.
        """
        queries = self.evaluator.encode(text_encoder)
        pairs = {
            "query_to_caption": (queries, self._captions),
            "query_to_image": (queries, self._targets),
            "query_to_reference": (queries, self._references),
            "caption_to_image": (self._captions, self._targets),
        }
        drawn = {name: (left * right).sum(1) for name, (left, right) in pairs.items()}
        values = {f"{self.name}_{name}": cosines for name, cosines in drawn.items()}
        for name in ("query_to_caption", "query_to_image"):
            left, right = pairs[name]
            others = (left @ right.sum(0) - drawn[name]) / (len(left) - 1)
            values[f"{self.name}_{name}_margin"] = drawn[name] - others
        metrics = {name: rows.double().mean().item() for name, rows in values.items()}
        return Diagnosis("task_discrepancy", metrics, cosine_histograms(drawn), values)
