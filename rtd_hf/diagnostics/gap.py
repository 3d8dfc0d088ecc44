"""The modality gap where it matters: what a projection makes of pictures, of texts, and of texts with noise."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..noise import draw_noise
from ..preservation import CaptionedImages
from ..retrieval import CIREncoder
from .base import Diagnosis


KINDS = ("scaled_gaussian", "gaussian")
SCALES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
_RIDGE = 1e-2


def modality_gap(
    data: CaptionedImages,
    retriever: CIREncoder,
    *,
    kinds: Sequence[str] = KINDS,
    scales: Sequence[float] = SCALES,
    seed: int = 0,
) -> Diagnosis:
    r"""
    Compares a projection's words for pictures with its words for their captions, for each kind and scale of noise.

    RTD trains on captions and searches with pictures; noise on the captions' embeddings stands in for the difference
    (LinCIR; RTD, arXiv 2406.09188, section 3.3). Whether it does shows in the projection's output, and for whole
    distributions rather than pairs. With the words \\(w\\) of pictures and of noisy captions:

    - `separability`: the area under the ROC curve of a linear classifier (ridge regression, fitted on one half, judged
      on the other) that tells them apart: 0.5 where it cannot, 1 where it always can;
    - `frechet`: the Fréchet distance of their Gaussians, \\(|\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2
      (\Sigma_1 \Sigma_2)^{1/2})\\), divided by \\(\mathrm{tr} \Sigma_1\\) of the pictures' (Dowson and Landau, 1982);
    - `pair_cosine`: the mean cosine of a picture's word and its caption's, which noise can only lower;
    - `norm_ratio`: of the words' mean lengths, captions' to pictures'.

    `input_*` are the first three of the embeddings that go into the projection.

    Args:
        data ([`CaptionedImages`]): Pictures with captions; the first caption of each is taken. Some hundreds at least.
        retriever ([`CIREncoder`]): Its text encoder as it was before the training.
        kinds (`Sequence[str]`, *optional*): Of the noise, see [`draw_noise`].
        scales (`Sequence[float]`, *optional*): Of the noise.
        seed (`int`, *optional*, defaults to 0): Draws it.

    Returns:
        [`Diagnosis`]: `metrics` tell which noise comes closest (`best_scale_KIND`, by `frechet`), and the figures
        without noise and at the best; `series["rows"]` hold all, one for each kind and scale.

    Raises:
        ValueError: There are fewer than 20 pictures, or the projection cannot be shown texts.
    """
    if len(data.images) < 20:
        raise ValueError(f"`data` must hold 20 pictures at least to compare distributions, got {len(data.images)}.")
    features = retriever.embed_references(lambda row: data.load_image(data.images[row]), number=len(data.images))
    captions = [texts[0] for texts in data.captions]
    texts = retriever.embed_texts(captions)
    contexts = retriever.embed_contexts(captions) if retriever.projection.needs_context else None
    of_pictures = _mean_word(retriever.project(features, contexts))
    rows = []
    for kind, scale in [("none", 0.0), *((kind, scale) for kind in kinds for scale in scales)]:
        noise = draw_noise(tuple(texts.shape), kind=kind, scale=scale, generator=torch.Generator().manual_seed(seed))
        noisy = texts + noise
        of_texts = _mean_word(retriever.project_texts(noisy, contexts))
        inputs = compare_distributions(features.image_embeds, noisy)
        inputs.pop("norm_ratio")
        figures = compare_distributions(of_pictures, of_texts)
        rows.append({"kind": kind, "scale": scale, **figures, **{f"input_{n}": v for n, v in inputs.items()}})
    metrics = {f"without_{name}": rows[0][name] for name in ("separability", "frechet", "pair_cosine", "norm_ratio")}
    for kind in kinds:
        best = min((row for row in rows if row["kind"] == kind), key=lambda row: row["frechet"])
        metrics[f"best_scale_{kind}"] = best["scale"]
        metrics |= {f"best_{kind}_{name}": best[name] for name in ("separability", "frechet", "pair_cosine")}
    return Diagnosis("modality_gap", metrics, {"rows": rows, "pictures": len(data.images)})


def compare_distributions(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """
    How unlike two sets of vectors are, see [`modality_gap`].

    Args:
        first, second (`torch.Tensor` of shape `(N, D)`): Row i of one belongs to row i of the other.

    Returns:
        `dict[str, float]`: `separability`, `frechet`, `pair_cosine`, `norm_ratio`.
    """
    first, second = first.double(), second.double()
    spread = (first - first.mean(0)).square().sum(1).mean()
    return {
        "separability": _separability(first, second),
        "frechet": (_frechet(first, second) / spread).item(),
        "pair_cosine": F.cosine_similarity(first, second).mean().item(),
        "norm_ratio": (second.norm(dim=1).mean() / first.norm(dim=1).mean()).item(),
    }


def _mean_word(words: torch.Tensor) -> torch.Tensor:
    """`(N, K, H)` to `(N, H)`: the mean of the words that are used; unused ones are zero."""
    used = (words.abs().amax(-1, keepdim=True) > 0).double()
    return (words.double() * used).sum(1) / used.sum(1).clamp_min(1)


def _frechet(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    # tr (S1 S2)^(1/2) is the sum of the singular values of A1' A2, where S = A A'; exact for any rank.
    roots = [(rows - rows.mean(0)).T / math.sqrt(len(rows)) for rows in (first, second)]
    shared = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    spread = sum(root.square().sum() for root in roots)
    return (first.mean(0) - second.mean(0)).square().sum() + spread - 2 * shared


def _separability(first: torch.Tensor, second: torch.Tensor) -> float:
    """ROC area of ridge regression on one half, judged on the other; the halves keep pairs together."""
    half = len(first) // 2
    rows = torch.cat([first[:half], second[:half]])
    labels = torch.cat([torch.ones(half), -torch.ones(half)]).double()
    mean, spread = rows.mean(0), (rows - rows.mean(0)).square().sum(1).mean().sqrt()
    rows = (rows - mean) / spread
    # In the smaller of the two spaces.
    dual = torch.linalg.solve(rows @ rows.T + _RIDGE * torch.eye(len(rows), dtype=rows.dtype), labels)
    weights = rows.T @ dual
    scores = [((part[half:] - mean) / spread) @ weights for part in (first, second)]
    higher = (scores[0][:, None] > scores[1]).double() + 0.5 * (scores[0][:, None] == scores[1]).double()
    return higher.mean().item()
