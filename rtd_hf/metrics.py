"""
Ranks by counting, and the metrics that are functions of ranks.

A rank needs no sort: it is the number of gallery items that score higher than the target. Ties are counted and
reported, never decided by chance. A value that is not finite is refused: comparisons with NaN are false and would read
as hits.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .similarity import BlockwiseSimilarity, TopK, check_k, top_k


__all__ = [
    "NOT_RANKED",
    "TIES",
    "BootstrapInterval",
    "Ranks",
    "TopK",
    "average_precision_at_k",
    "paired_bootstrap",
    "rank_targets",
    "ranks_of_lists",
    "recall_at_k",
    "top_k",
]

TIES = ("pessimistic", "optimistic", "mean")

# Larger than any gallery: the rank of a target that a ranked list does not hold.
NOT_RANKED = 2**62
_COUNTED_AT_ONCE = 2048


@dataclasses.dataclass(frozen=True)
class Ranks:
    """
    Where the targets of each query were found.

    Args:
        ranks (`torch.Tensor` of shape `(Q, G)`):
            0-based rank of each target among the items that were ranked, the other targets included; -1 where
            `targets` is padded. int64, or float32 for `ties="mean"`.
        num_tied (`torch.Tensor` of shape `(Q,)`):
            How many items that are no targets score exactly as one of the query's targets. Where it is not 0, the
            ranks depend on the treatment of ties.
    """

    ranks: Tensor
    num_tied: Tensor

    @property
    def num_tied_queries(self) -> int:
        """The number of queries whose ranks depend on the treatment of ties."""
        return int((self.num_tied > 0).sum())


class BootstrapInterval(NamedTuple):
    """
    A mean gain and its percentile interval, in the unit of the inputs.

    Args:
        gain (`float`): Mean of after - before.
        low (`float`): Lower end.
        high (`float`): Upper end.
    """

    gain: float
    low: float
    high: float


def rank_targets(
    queries: Tensor,
    gallery: Tensor,
    targets: Tensor,
    *,
    exclude: Tensor | None = None,
    candidates: Tensor | None = None,
    ties: str = "pessimistic",
    normalize: bool = True,
    query_block: int = 256,
    gallery_block: int = 8192,
) -> Ranks:
    """
    Ranks the targets of each query in the gallery, by counting what scores higher.

    With `greater` items above a target and `equal` other items on a par with it, its rank is `greater + equal`
    (`"pessimistic"`), `greater` (`"optimistic"`), or `greater + equal / 2`, the expectation over a random order
    (`"mean"`). Targets that tie with each other take successive places, the first column the last of them if
    pessimistic, the first otherwise, so that a query's ranks stay distinct and its average precision at most 1. In
    the mean, the j-th of m targets that tie with e other items is expected at place j (m + e + 1) / (m + 1) of these.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Query features, of any floating type, on the device to work on.
        gallery (`torch.Tensor` of shape `(N, D)`): Gallery features, on any device: they are moved in blocks.
        targets (`torch.Tensor` of shape `(Q, G)`): Gallery positions of the targets, padded with -1.
        exclude (`torch.Tensor` of shape `(Q, E)`, *optional*):
            Gallery positions that are taken out of the query's ranking, padded with -1. CIRR removes the reference.
        candidates (`torch.Tensor` of shape `(Q, C)`, *optional*):
            If given, only these are ranked, padded with -1 (the subsets of CIRR, the galleries of GeneCIS). A position
            that is listed twice is two items, and the target is the first (GeneCIS has one such row: a certain tie).
        ties (`str`, *optional*, defaults to `"pessimistic"`): `"pessimistic"`, `"optimistic"` or `"mean"`.
        normalize (`bool`, *optional*, defaults to `True`): Whether to rank by cosine similarity or dot product.
        query_block (`int`, *optional*, defaults to 256): Queries scored at once.
        gallery_block (`int`, *optional*, defaults to 8192): Items scored at once, rounded up to a multiple of 512.

    Returns:
        [`Ranks`]: The ranks and the number of ties.

    Raises:
        `ValueError`: For features that are not finite (with the side and the number of rows), positions outside of the
            gallery, and queries without a target, or with one listed twice, excluded, or not among the candidates.
    """
    if ties not in TIES:
        raise ValueError(f"`ties` must be one of {', '.join(TIES)}, got {ties!r}.")
    similarity = BlockwiseSimilarity(
        queries, gallery, normalize=normalize, query_block=query_block, gallery_block=gallery_block
    )
    targets = similarity.check_positions("targets", targets)
    exclude = None if exclude is None else similarity.check_positions("exclude", exclude)
    candidates = None if candidates is None else similarity.check_positions("candidates", candidates)
    _check_targets(targets, exclude)
    if candidates is not None:
        count = _TargetCount(targets)
        for rows, scores in similarity.candidate_scores(candidates, exclude):
            slots = _find_slots(targets[rows], candidates[rows], rows.start)
            count.read(rows, scores, slots)
            count.add(rows, scores, slots)
    else:
        # In one block the targets' scores are all there; otherwise they come first, out of products of the same shape,
        # so that a target and its copy score the same to the last bit.
        one = similarity.num_blocks == 1
        count = _TargetCount(targets, None if one else similarity.scores_of(targets))
        for rows, first, scores in similarity.scores(exclude):
            slots = targets[rows] - first
            slots.masked_fill_((slots < 0) | (slots >= scores.shape[1]), -1)
            if one:
                count.read(rows, scores, slots)
            count.add(rows, scores, slots)
    return Ranks(count.ranks(ties), count.num_tied)


class _TargetCount:
    """The scores of the targets, and how many other items are above and on a par with each."""

    def __init__(self, targets: Tensor, scores: Tensor | None = None):
        self.valid = targets >= 0
        # NaN is neither above nor below nor equal to anything: padding counts nothing.
        self.scores = torch.full(targets.shape, torch.nan, device=targets.device) if scores is None else scores
        self.greater = torch.zeros_like(targets)
        self.equal = torch.zeros_like(targets)
        self.num_tied = torch.zeros_like(targets[:, 0])

    def read(self, rows: slice, scores: Tensor, slots: Tensor) -> None:
        """Takes the targets' scores from their columns `slots` (b, G), -1 where a target is not in the block."""
        found = scores.gather(1, slots.clamp(min=0))
        self.scores[rows] = torch.where(slots >= 0, found, self.scores[rows])

    def add(self, rows: slice, scores: Tensor, slots: Tensor) -> None:
        """Counts a block of scores (b, B), which is written to."""
        row, column = (slots >= 0).nonzero(as_tuple=True)
        scores[row, slots[row, column]] = -torch.inf
        # Comparisons that write numbers are counted by vectorised sums, those that write booleans are not: 4 times
        # slower on a CPU. A piece stays in the cache while all targets are compared with it.
        for piece in scores.split(_COUNTED_AT_ONCE, dim=1):
            buffer = torch.empty_like(piece, memory_format=torch.contiguous_format)
            on_par = torch.zeros(len(piece), dtype=torch.bool, device=piece.device)
            for column in range(slots.shape[1]):
                asked = self.valid[rows, column]
                at = slice(None) if bool(asked.all()) else asked.nonzero().flatten()
                some, target = piece[at], self.scores[rows, column][at, None]
                greater = torch.gt(some, target, out=buffer[: len(some)]).sum(dim=1).long()
                equal = torch.ge(some, target, out=buffer[: len(some)]).sum(dim=1).long() - greater
                self.greater[rows, column][at] += greater
                self.equal[rows, column][at] += equal
                on_par[at] |= equal > 0
            if on_par.any():  # hardly ever, and only then it matters which items they are
                some, tied = piece[on_par], torch.zeros_like(piece[on_par], dtype=torch.bool)
                for column in range(slots.shape[1]):
                    tied |= some == self.scores[rows, column][on_par, None]
                self.num_tied[rows][on_par] += tied.sum(dim=1)

    def ranks(self, ties: str) -> Tensor:
        """The ranks (Q, G) of all that was counted, with the targets put among themselves."""
        one, other = self.scores[:, :, None], self.scores[:, None, :]
        greater = self.greater + (other > one).sum(dim=2)
        on_par = other == one
        before = torch.ones(on_par.shape[1:], dtype=torch.bool, device=on_par.device).tril(-1)
        num_before = (on_par & before).sum(dim=2)
        num_after = (on_par & before.T).sum(dim=2)
        if ties == "pessimistic":
            ranks = greater + self.equal + num_after
        elif ties == "optimistic":
            ranks = greater + num_before
        else:
            num_on_par = num_before + 1 + num_after
            ranks = greater + (num_before + 1) * ((num_on_par + self.equal + 1) / (num_on_par + 1)) - 1
        return ranks.masked_fill(~self.valid, -1)


def _check_targets(targets: Tensor, exclude: Tensor | None) -> None:
    missing = (targets < 0).all(dim=1)
    same = (targets[:, :, None] == targets[:, None, :]) & (targets >= 0)[:, :, None]
    repeated = same.sum(dim=(1, 2)) > (targets >= 0).sum(dim=1)
    excluded = torch.zeros_like(missing)
    if exclude is not None:
        excluded = ((targets[:, :, None] == exclude[:, None, :]) & (targets >= 0)[:, :, None]).any(dim=2).any(dim=1)
    for wrong, what in ((missing, "no target"), (repeated, "a target twice"), (excluded, "a target in `exclude`")):
        if wrong.any():
            raise ValueError(
                f"`targets` must give every query its targets, each once and none excluded, but {int(wrong.sum())} of "
                f"{len(wrong)} queries have {what} (the first is query {int(wrong.int().argmax())})."
            )


def _find_slots(targets: Tensor, candidates: Tensor, first: int) -> Tensor:
    """The column (b, G) of each target in its query's candidates (b, C), the first one if it is listed twice."""
    same = targets[:, :, None] == candidates[:, None, :]
    lost = ((targets >= 0) & ~same.any(dim=2)).any(dim=1)
    if lost.any():
        raise ValueError(
            f"`candidates` must hold every query's targets, but lacks one of query {first + int(lost.int().argmax())}."
        )
    return same.int().argmax(dim=2).masked_fill_(targets < 0, -1)


def ranks_of_lists(predictions: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> Tensor:
    """
    Turns ranked lists, such as a submission's, into ranks.

    Args:
        predictions (`Sequence[Sequence]`): For each query the ids of the retrieved items, best first, of any length.
        references (`Sequence[Sequence]`): For each query the ids of its targets, of the same type.

    Returns:
        `torch.Tensor` of shape `(Q, G)`: 0-based ranks, int64, padded with -1. A target that is not in the list has
        the rank `NOT_RANKED`, beyond every cut-off.

    Raises:
        `ValueError`: For sides of different length, a query without target, or an id that is listed twice.
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(
            "`predictions` and `references` must hold one list per query, at least one, got "
            f"{len(predictions)} and {len(references)}."
        )
    ranks = torch.full((len(references), max(map(len, references))), -1, dtype=torch.int64)
    for query, (ranked, wanted) in enumerate(zip(predictions, references, strict=True)):
        places = {item: place for place, item in enumerate(ranked)}
        for name, items, distinct in (("predictions", ranked, places), ("references", wanted, set(wanted))):
            if len(distinct) < len(items):
                raise ValueError(
                    f"`{name}` must not list an id twice, but does for query {query}. Remove the repeats."
                )
        if len(wanted) == 0:
            raise ValueError(f"`references` must name at least one target per query, but has none for query {query}.")
        found = [places.get(item, NOT_RANKED) for item in wanted]
        ranks[query, : len(found)] = torch.tensor(found)
    return ranks


def recall_at_k(ranks: Ranks | Tensor, k: int) -> Tensor:
    """
    Tells for each query whether one of its targets is among the first `k`. The mean over queries is Recall@K.

    CIRCO's recall asks for one particular target: pass its column, `ranks[:, :1]`. With `ties="mean"` the expected
    rank is compared with `k`.

    Args:
        ranks ([`Ranks`] or `torch.Tensor` of shape `(Q, G)`): 0-based ranks, padded with -1.
        k (`int`): The cut-off.

    Returns:
        `torch.Tensor` of shape `(Q,)`: 1.0 or 0.0, float32.

    Raises:
        `ValueError`: For a query without any rank, or a cut-off below 1.
    """
    ranks = _check_ranks(ranks)
    check_k(k)
    return ((ranks >= 0) & (ranks < k)).any(dim=1).float()


def average_precision_at_k(ranks: Ranks | Tensor, k: int) -> Tensor:
    r"""
    Average precision of each query over its first `k` items. The mean over queries is mAP@K.

    With the 1-based ranks \\(r_1 < r_2 < \dots < r_n\\) of all n targets,
    \\(AP@K = \frac{1}{\min(n, K)} \sum_{i: r_i \le K} i / r_i\\) (Baldrati et al., CIRCO,
    [arXiv:2303.15247](https://huggingface.co/papers/2303.15247)). With `ties="mean"` the expected ranks are put
    in, which only approximates the expected average precision.

    Args:
        ranks ([`Ranks`] or `torch.Tensor` of shape `(Q, G)`): 0-based ranks of all targets, padded with -1.
        k (`int`): The cut-off.

    Returns:
        `torch.Tensor` of shape `(Q,)`: Between 0 and 1, float32.

    Raises:
        `ValueError`: For a query without any rank, or a cut-off below 1.
    """
    ranks = _check_ranks(ranks)
    check_k(k)
    num_targets = (ranks >= 0).sum(dim=1)
    places = ranks.masked_fill(ranks < 0, NOT_RANKED).sort(dim=1).values + 1
    found = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    return (found / places * (places <= k)).sum(dim=1) / num_targets.clamp(max=k)


def _check_ranks(ranks: Ranks | Tensor) -> Tensor:
    ranks = ranks.ranks if isinstance(ranks, Ranks) else ranks
    if ranks.dim() != 2 or not (ranks >= 0).any(dim=1).all():
        raise ValueError(
            "`ranks` must be of shape (Q, G) with at least one rank in every row, got "
            + (f"shape {tuple(ranks.shape)}." if ranks.dim() != 2 else f"rows {_rows_without(ranks)} without.")
        )
    return ranks


def _rows_without(ranks: Tensor) -> list[int]:
    return (ranks < 0).all(dim=1).nonzero().flatten()[:8].tolist()


def paired_bootstrap(
    before: Tensor, after: Tensor, *, num_samples: int = 10000, confidence: float = 0.95, seed: int = 0
) -> BootstrapInterval:
    """
    Says how sure a gain is: both systems are scored on the same resampled queries, over and over (Efron, 1979).

    Args:
        before (`torch.Tensor` of shape `(Q,)`): A metric of each query under the first system.
        after (`torch.Tensor` of shape `(Q,)`): The same of the same queries under the second.
        num_samples (`int`, *optional*, defaults to 10000): Number of resamplings.
        confidence (`float`, *optional*, defaults to 0.95): Share of the resampled gains inside of the interval.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling; the result is the same on every device.

    Returns:
        [`BootstrapInterval`]: The gain and its percentile interval, in the unit of the inputs.

    Raises:
        `ValueError`: For inputs of different shape, empty or not finite, or options out of range.
    """
    if before.dim() != 1 or before.shape != after.shape or len(before) == 0:
        raise ValueError(
            "`before` and `after` must hold one value per query, in the same order, got shapes "
            f"{tuple(before.shape)} and {tuple(after.shape)}."
        )
    if not 0 < confidence < 1 or num_samples < 1:
        raise ValueError(
            "`confidence` must lie between 0 and 1 and `num_samples` be at least 1, got "
            f"{confidence} and {num_samples}."
        )
    gains = after.detach().cpu().double() - before.detach().cpu().double()
    if not gains.isfinite().all():
        raise ValueError(
            f"`before` and `after` must be finite, got {int((~gains.isfinite()).sum())} rows that are not."
        )
    generator = torch.Generator().manual_seed(seed)
    # A few million draws at a time, as all of them would take gigabytes on a large benchmark.
    step = max(1, 2**22 // len(gains))
    means = torch.cat(
        [
            gains[torch.randint(len(gains), (min(step, num_samples - done), len(gains)), generator=generator)].mean(
                dim=1
            )
            for done in range(0, num_samples, step)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return BootstrapInterval(gains.mean().item(), low, high)
