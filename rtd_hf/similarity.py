"""
Similarities of queries and gallery, block by block, in full float32, with equal scores for equal features.

Three things go wrong otherwise without a word: half-precision or TF32 products tie by the dozen, a NaN loses every
comparison, and an item and its copy differ in the last bit when they fall into different corners of a product.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .contexts import full_precision


# Matrix products treat all columns alike only at widths that fill the tiles of their kernels. At others the columns of
# the edge are summed in another order (seen on CPUs at widths such as 10, 63 and 1001).
_COLUMN_MULTIPLE = 128


class TopK(NamedTuple):
    """
    The best items of each query, best first.

    Args:
        scores (`torch.Tensor` of shape `(Q, K)`): Similarities, float32.
        indices (`torch.Tensor` of shape `(Q, K)`): Positions in the gallery, int64.
    """

    scores: Tensor
    indices: Tensor


class BlockwiseSimilarity:
    """
    Yields the scores of all queries over all gallery items in blocks, so that the memory does not grow with `Q * N`.

    All blocks have the same shape (the last one is filled up with items of score -inf), and an item that is identical
    to another gets the identical score. A second pass repeats the scores of the first bit for bit.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Query features, of any floating type, on the device to work on.
        gallery (`torch.Tensor` of shape `(N, D)`): Gallery features, on any device: they are moved in blocks.
        normalize (`bool`, *optional*, defaults to `True`): Whether the score is the cosine, or the dot product.
        query_block (`int`, *optional*, defaults to 256): Queries scored at once.
        gallery_block (`int`, *optional*, defaults to 8192): Items scored at once, rounded up to a multiple of 128.

    Raises:
        `ValueError`: For shapes that do not fit, empty sides, or rows that are not finite (which side, and how many).
    """

    def __init__(
        self,
        queries: Tensor,
        gallery: Tensor,
        *,
        normalize: bool = True,
        query_block: int = 256,
        gallery_block: int = 8192,
    ):
        for name, size in (("query_block", query_block), ("gallery_block", gallery_block)):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}.")
        if queries.dim() != 2 or gallery.dim() != 2 or queries.shape[1] != gallery.shape[1]:
            raise ValueError(
                "`queries` and `gallery` must be of shape (Q, D) and (N, D) with the same D, got "
                f"{tuple(queries.shape)} and {tuple(gallery.shape)}."
            )
        for name, features in (("queries", queries), ("gallery", gallery)):
            if 0 in features.shape:
                raise ValueError(f"`{name}` must not be empty, got shape {tuple(features.shape)}.")
            _check_finite(name, features, gallery_block)
        self.gallery = gallery.detach()
        self.normalize = normalize
        self.query_block = query_block
        self.width = _round_up(min(gallery_block, len(gallery)))
        self.queries = self._prepare(queries.detach())

    @property
    def num_blocks(self) -> int:
        """The number of blocks the gallery is cut into."""
        return -(-len(self.gallery) // self.width)

    def scores(self, exclude: Tensor | None = None) -> Iterator[tuple[slice, int, Tensor]]:
        """
        Goes through the gallery once, and through all queries for each block of it.

        Args:
            exclude (`torch.Tensor` of shape `(Q, E)`, *optional*): Positions that score -inf, padded with -1.

        Yields:
            `(slice, int, torch.Tensor)`: The queries of the block, the gallery position of its first column, and the
            scores, of shape `(query_block, width)`. The scores may be written to.
        """
        for first in range(0, len(self.gallery), self.width):
            block = self._prepare(self.gallery[first : first + self.width])
            filled = F.pad(block, (0, 0, 0, self.width - len(block)))
            for rows in self._rows(self.query_block):
                with full_precision(filled.device.type):
                    scores = self.queries[rows] @ filled.T
                self._check_scores(scores)
                scores[:, len(block) :] = -torch.inf
                if exclude is not None:
                    columns = exclude[rows] - first
                    inside = (columns >= 0) & (columns < self.width)
                    row, slot = inside.nonzero(as_tuple=True)
                    scores[row, columns[row, slot]] = -torch.inf
                yield rows, first, scores

    def candidate_scores(self, candidates: Tensor, exclude: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """
        Scores a short list of items of each query's own.

        Args:
            candidates (`torch.Tensor` of shape `(Q, C)`): Gallery positions; padding (-1) scores -inf.
            exclude (`torch.Tensor` of shape `(Q, E)`, *optional*): Positions that score -inf, padded with -1.

        Yields:
            `(slice, torch.Tensor)`: The queries of the block and the scores `(rows, C)`, that may be written to.
        """
        for rows in self._rows(max(1, min(self.query_block, self.width // max(1, candidates.shape[1])))):
            positions = candidates[rows]
            flat = positions.clamp(min=0).flatten().to(self.gallery.device)
            items = self._prepare(self.gallery[flat]).unflatten(0, positions.shape)
            # A sum of products, unlike a batched matrix product, adds up all rows in the same order.
            scores = (items * self.queries[rows, None]).sum(dim=-1)
            self._check_scores(scores)
            hidden = positions < 0
            if exclude is not None:
                hidden |= (positions[:, :, None] == exclude[rows, None, :]).any(dim=-1)
            yield rows, scores.masked_fill_(hidden, -torch.inf)

    def check_positions(self, name: str, positions: Tensor) -> Tensor:
        """
        Checks gallery positions and moves them to where the scores are.

        Args:
            name (`str`): The argument's name, for the message.
            positions (`torch.Tensor` of shape `(Q, ...)`): Integers from 0 to N - 1, or -1 for padding.

        Returns:
            `torch.Tensor`: The positions, int64.

        Raises:
            `ValueError`: For another shape, kind or range.
        """
        num_queries, num_items = len(self.queries), len(self.gallery)
        if positions.dim() != 2 or len(positions) != num_queries:
            raise ValueError(
                f"`{name}` must be of shape ({num_queries}, any), one row per query, padded with -1, got "
                f"{tuple(positions.shape)}."
            )
        if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
            raise ValueError(f"`{name}` must hold integer gallery positions, got {positions.dtype}.")
        outside = (positions < -1) | (positions >= num_items)
        if outside.any():
            raise ValueError(
                f"`{name}` must hold gallery positions from 0 to {num_items - 1}, or -1 for padding, got "
                f"{int(positions[outside][0])} and {int(outside.sum()) - 1} more outside of the gallery."
            )
        return positions.to(self.queries.device, torch.int64)

    def _rows(self, size: int) -> Iterator[slice]:
        return (slice(first, first + size) for first in range(0, len(self.queries), size))

    def _prepare(self, features: Tensor) -> Tensor:
        device = getattr(self, "queries", features).device
        features = features.to(device).float()
        if not self.normalize:
            return features
        norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        if not norms.isfinite().all():
            raise ValueError("The norm of some features overflows float32. Scale the features down.")
        return features / norms.clamp_min(1e-12)

    def _check_scores(self, scores: Tensor) -> None:
        if not scores.isfinite().all():
            raise ValueError("Some products of `queries` and `gallery` overflow float32. Scale the features down.")


def _round_up(size: int) -> int:
    return -(-size // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE


def _check_finite(name: str, features: Tensor, step: int) -> None:
    if not features.is_floating_point():
        raise ValueError(f"`{name}` must hold floating point features, got {features.dtype}.")
    # In float32, as the scores are: a float64 may well be finite there and infinite here.
    bad = torch.cat([~part.float().isfinite().all(dim=1) for part in features.detach().split(step)])
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite, got NaN or infinity in {int(bad.sum())} of {len(bad)} rows (the first is row "
            f"{int(bad.int().argmax())}). Look for a diverged model, or half precision that overflowed."
        )


def top_k(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    exclude: Tensor | None = None,
    candidates: Tensor | None = None,
    normalize: bool = True,
    query_block: int = 256,
    gallery_block: int = 8192,
) -> TopK:
    """
    Lists the `k` best gallery items of each query. Ties go to the lower gallery position: the lists are reproducible.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Query features, of any floating type, on the device to work on.
        gallery (`torch.Tensor` of shape `(N, D)`): Gallery features, on any device: they are moved in blocks.
        k (`int`): Length of the lists.
        exclude (`torch.Tensor` of shape `(Q, E)`, *optional*): Gallery positions to leave out, padded with -1.
        candidates (`torch.Tensor` of shape `(Q, C)`, *optional*): The only gallery positions to list, padded with -1.
        normalize (`bool`, *optional*, defaults to `True`): Whether to rank by cosine similarity or dot product.
        query_block (`int`, *optional*, defaults to 256): Queries scored at once.
        gallery_block (`int`, *optional*, defaults to 8192): Items scored at once, rounded up to a multiple of 128.

    Returns:
        [`TopK`]: Scores and gallery positions, best first.

    Raises:
        `ValueError`: For features that are not finite, positions outside of the gallery, or fewer than `k` items.
    """
    check_k(k)
    similarity = BlockwiseSimilarity(
        queries, gallery, normalize=normalize, query_block=query_block, gallery_block=gallery_block
    )
    exclude = None if exclude is None else similarity.check_positions("exclude", exclude)
    scores = torch.full((len(queries), k), -torch.inf, device=queries.device)
    indices = torch.full_like(scores, -1, dtype=torch.int64)
    if candidates is not None:
        # In the order of the gallery, so that the first of equals is the lower position; repeats are listed once.
        candidates = similarity.check_positions("candidates", candidates).sort(dim=1).values
        for rows, block in similarity.candidate_scores(candidates, exclude):
            block[:, 1:].masked_fill_(candidates[rows, 1:] == candidates[rows, :-1], -torch.inf)
            best, order = block.sort(dim=1, descending=True, stable=True)
            width = min(k, block.shape[1])
            scores[rows, :width] = best[:, :width]
            indices[rows, :width] = candidates[rows].gather(1, order)[:, :width]
    else:
        for rows, first, block in similarity.scores(exclude):
            best, columns = _stable_top_k(block, min(k, block.shape[1]))
            # What was found before has the lower positions and stands first, so a stable sort keeps it first.
            best, order = torch.cat([scores[rows], best], dim=1).sort(dim=1, descending=True, stable=True)
            scores[rows] = best[:, :k]
            indices[rows] = torch.cat([indices[rows], columns + first], dim=1).gather(1, order)[:, :k]
    num_found = scores.isfinite().sum(dim=1)
    if (num_found < k).any():
        raise ValueError(
            f"`k` must not exceed the items to choose from, got {k}, but query {int(num_found.argmin())} has "
            f"{int(num_found.min())}. Ask for fewer."
        )
    return TopK(scores, indices)


def _stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk`, which takes any of the items that tie for the last places, with the first of them instead."""
    best, columns = scores.topk(k, dim=1)
    last = best[:, -1:]
    ambiguous = (scores == last).sum(dim=1) > (best == last).sum(dim=1)
    if ambiguous.any():
        redone, order = scores[ambiguous].sort(dim=1, descending=True, stable=True)
        best[ambiguous], columns[ambiguous] = redone[:, :k], order[:, :k]
    columns, order = columns.sort(dim=1)
    best, final = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, columns.gather(1, final)


def check_k(k: int) -> None:
    """Refuses (`ValueError`) a cut-off that is not a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"`k` must be an integer of at least 1, got {k!r}.")
