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

    - `separability`: the area under the ROC curve of a linear classifier (ridge regression, fitted on every second
      pair, judged on the others) that tells them apart: 0.5 where it cannot, 1 where it always can;
    - `frechet`: the Fréchet distance of their Gaussians, \\(|\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2
      (\Sigma_1 \Sigma_2)^{1/2})\\), divided by \\(\mathrm{tr} \Sigma_1\\) of the pictures' (Dowson and Landau, 1982);
    - `pair_cosine`: the mean cosine of a picture's word and its caption's, which noise can only lower;
    - `norm_ratio`: of the words' mean lengths, captions' to pictures'.

    Where a projection gives several words, it is their mean that is compared. `input_*` are the first three of the
    embeddings that go into the projection.

    Pictures and captions are of the same scenes, so that both distances are free of what two samples of other scenes
    would differ in.

    Args:
        data ([`CaptionedImages`]): Pictures with captions; the first caption of each is taken. Some hundreds at least.
        retriever ([`CIREncoder`]): Its text encoder as it was before the training.
        kinds (`Sequence[str]`, *optional*): Of the noise, see [`draw_noise`].
        scales (`Sequence[float]`, *optional*): Of the noise.
        seed (`int`, *optional*, defaults to 0): Draws it.

    Returns:
        [`Diagnosis`]: `metrics` tell which noise comes closest (`best_scale_KIND`, by `frechet`) and which is hardest
        to tell apart (`hardest_scale_KIND`, by `separability`), with their figures and those without noise;
        `series["rows"]` hold all, one for each kind and scale.

    Raises:
        ValueError: There are fewer than 20 pictures, no scale, or the projection cannot be shown texts.
    """
    return ModalityGap(data, retriever, kinds=kinds, scales=scales, seed=seed).measure()


class ModalityGap:
    """
    A callable `() -> {metric: value}`, such as an evaluator of [`ProjectionTrainer`]: [`modality_gap`] while a
    projection is trained. `NAME_gap_...` are its metrics, with the name of the data.

    RTD's training changes neither the projection nor what is shown to it, so that this gap stays as it is there.

    Args:
        data, retriever, kinds, scales, seed: As for [`modality_gap`]. Pictures and captions are embedded now, and the
            projection is that of `retriever` each time.

    Raises:
        ValueError: As [`modality_gap`].
    """

    def __init__(
        self,
        data: CaptionedImages,
        retriever: CIREncoder,
        *,
        kinds: Sequence[str] = KINDS,
        scales: Sequence[float] = SCALES,
        seed: int = 0,
    ):
        if not scales or not kinds:
            raise ValueError(f"`kinds` and `scales` must not be empty, got {list(kinds)} and {list(scales)}.")
        number = len(data.images)
        if number < 20:
            raise ValueError(f"`data` must hold 20 pictures at least to compare distributions, got {number}.")
        self.name, self.retriever, self.seed = data.name, retriever, seed
        self.kinds, self.scales = tuple(kinds), tuple(scales)
        self._features = retriever.embed_references(lambda row: data.load_image(data.images[row]), number=number)
        captions = [texts[0] for texts in data.captions]
        self._texts = retriever.embed_texts(captions)
        self._contexts = retriever.embed_contexts(captions) if retriever.projection.needs_context else None

    def __call__(self, model=None) -> dict[str, float]:
        """The metrics; what a trainer hands over plays no part."""
        return {f"{self.name}_gap_{name}": value for name, value in self.measure().metrics.items()}

    def measure(self) -> Diagnosis:
        """
        [`modality_gap`] of the projection as it is now.

        Returns:
            [`Diagnosis`]
        """
        images, texts = self._features.image_embeds, self._texts
        of_pictures = _mean_word(self.retriever.project(self._features, self._contexts))
        rows = []
        for kind, scale in [("none", 0.0), *((kind, scale) for kind in self.kinds for scale in self.scales)]:
            generator = torch.Generator().manual_seed(self.seed)
            noisy = texts + draw_noise(tuple(texts.shape), kind=kind, scale=scale, generator=generator)
            of_texts = _mean_word(self.retriever.project_texts(noisy, self._contexts))
            inputs = compare_distributions(images, noisy)
            inputs.pop("norm_ratio")
            figures = compare_distributions(of_pictures, of_texts)
            rows.append({"kind": kind, "scale": scale, **figures, **{f"input_{n}": v for n, v in inputs.items()}})
        without = ("separability", "frechet", "pair_cosine", "norm_ratio")
        metrics = {f"without_{name}": rows[0][name] for name in without}
        for kind in self.kinds:
            of_kind = [row for row in rows if row["kind"] == kind]
            best = min(of_kind, key=lambda row: row["frechet"])
            metrics[f"best_scale_{kind}"] = best["scale"]
            metrics |= {f"best_{kind}_{name}": best[name] for name in ("separability", "frechet", "pair_cosine")}
            hardest = min(of_kind, key=lambda row: abs(row["separability"] - 0.5))
            metrics[f"hardest_scale_{kind}"] = hardest["scale"]
            metrics[f"hardest_{kind}_separability"] = hardest["separability"]
        return Diagnosis("modality_gap", metrics, {"rows": rows, "pictures": len(images)})


def compare_distributions(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """
    How unlike two sets of vectors are, see [`modality_gap`].

    Args:
        first, second (`torch.Tensor` of shape `(N, D)`): Row i of one belongs to row i of the other.

    Returns:
        `dict[str, float]`: `separability`, `frechet`, `pair_cosine`, `norm_ratio`.

    Raises:
        ValueError: They are not of one shape, fewer than 4, not finite, or all of `first` are the same.
    """
    first, second = first.double(), second.double()
    if first.dim() != 2 or first.shape != second.shape or len(first) < 4:
        raise ValueError(
            f"`first` and `second` must be of one shape (N, D) with N of at least 4, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    spread = (first - first.mean(0)).square().sum(1).mean()
    if not (spread > 0 and spread.isfinite() and second.isfinite().all()):
        raise ValueError(
            "`first` and `second` must be finite, and the rows of `first` not all the same: their spread is "
            f"{spread.item():g}. Look for a diverged projection, or one that makes the same word of everything."
        )
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
    # With centred rows X = QR, tr (S1 S2)^(1/2) is the sum of the singular values of R1 R2' / N, exact for any rank.
    roots = [torch.linalg.qr(rows - rows.mean(0), mode="r").R / math.sqrt(len(rows)) for rows in (first, second)]
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(root.square().sum() for root in roots)
    # Of equal sets a rounding error is left, which may be negative.
    return ((first.mean(0) - second.mean(0)).square().sum() + spread - 2 * shared).clamp_min(0)


def _separability(first: torch.Tensor, second: torch.Tensor) -> float:
    """ROC area of ridge regression on every second pair, judged on the others; pairs stay together."""
    rows = torch.cat([first[::2], second[::2]])
    labels = torch.ones(len(rows), dtype=rows.dtype)
    labels[len(rows) // 2 :] = -1
    mean = rows.mean(0)
    rows = rows - mean
    ridge = _RIDGE * rows.square().sum(1).mean()
    wide = rows.shape[0] <= rows.shape[1]  # the weights are the same either way
    gram = rows @ rows.T if wide else rows.T @ rows
    gram.diagonal().add_(ridge)
    weights = rows.T @ torch.linalg.solve(gram, labels) if wide else torch.linalg.solve(gram, rows.T @ labels)
    of_first, of_second = ((part[1::2] - mean) @ weights for part in (first, second))
    return roc_area(of_first, of_second)


def roc_area(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """
    The share of pairs in which the one score is higher than the other; ties count half.

    Args:
        positive (`torch.Tensor` of shape `(P,)`): Scores that should be high.
        negative (`torch.Tensor` of shape `(M,)`): Scores that should be low.

    Returns:
        `float`: 0.5 where they cannot be told apart, 1 where they always can.
    """
    ordered = negative.sort().values
    below, up_to = torch.searchsorted(ordered, positive), torch.searchsorted(ordered, positive, right=True)
    return ((below + up_to).double() / (2 * len(negative))).mean().item()
