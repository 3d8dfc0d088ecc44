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
# Items in one product, however wide a block is: what is filled up or multiplied again is never more than this.
_TILE = 512
_NORMED_AT_ONCE = 2**20


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

    All products have the same shape (a last one is filled up), so that an item that is identical to another gets the
    identical score, and the same score every time.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Query features, of any floating type, on the device to work on.
        gallery (`torch.Tensor` of shape `(N, D)`): Gallery features, on any device: they are moved in blocks.
        normalize (`bool`, *optional*, defaults to `True`): Whether the score is the cosine, or the dot product.
        query_block (`int`, *optional*, defaults to 256): Queries scored at once.
        gallery_block (`int`, *optional*, defaults to 8192): Items scored at once, rounded up to a multiple of 512.
        gallery_norms (`torch.Tensor` of shape `(N,)`, *optional*): Lengths of the gallery features, where they are
            known, and the features known to be finite: a pass over the gallery less.

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
        gallery_norms: Tensor | None = None,
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
            if not features.is_floating_point():
                raise ValueError(f"`{name}` must hold floating point features, got {features.dtype}.")
        self.gallery = gallery.detach()
        self.normalize = normalize
        self.query_block = query_block
        self.tile = min(_TILE, _round_up(len(gallery), _COLUMN_MULTIPLE))
        self.width = _round_up(gallery_block, self.tile)
        self.queries = queries.detach()
        self.query_norms = self._norms("queries", self.queries)
        # The scores are divided by these, not the gallery: a block is then a view of it, and not a copy.
        if gallery_norms is None:
            gallery_norms = self._norms("gallery", self.gallery)
        elif gallery_norms.shape != gallery.shape[:1]:
            raise ValueError(f"`gallery_norms` must be of shape ({len(gallery)},), got {tuple(gallery_norms.shape)}.")
        self.gallery_norms = gallery_norms.to(queries.device)

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
            scores, of shape `(query_block, width)`; less at the end of either side. They may be written to, and are
            written over by the next.
        """
        # One array for all: a new one for each would be made while the last is still looked at.
        size = (min(self.query_block, len(self.queries)), min(self.width, len(self.gallery)))
        buffer = torch.empty(size, device=self.queries.device)
        for first in range(0, len(self.gallery), self.width):
            columns = slice(first, min(first + self.width, len(self.gallery)))
            tiles = list(self._tiles(self.gallery[columns], self.gallery_norms[columns]))
            for rows in self._rows(self.query_block):
                scores = self._products(rows, tiles, buffer)
                if exclude is not None:
                    slots = exclude[rows] - first
                    inside = (slots >= 0) & (slots < scores.shape[1])
                    row, column = inside.nonzero(as_tuple=True)
                    scores[row, slots[row, column]] = -torch.inf
                yield rows, first, scores

    def scores_of(self, positions: Tensor) -> Tensor:
        """
        The scores of a few items of each query's own, equal bit for bit to those that [`scores`] yields.

        Products of the same shape are summed in the same order, so the items are scored in blocks of the same shape.

        Args:
            positions (`torch.Tensor` of shape `(Q, P)`): Gallery positions, or -1 for padding.

        Returns:
            `torch.Tensor` of shape `(Q, P)`: The scores, NaN for padding.
        """
        found = torch.full(positions.shape, torch.nan, device=self.queries.device)
        for rows in self._rows(self.query_block):
            wanted = positions[rows]
            items = wanted[wanted >= 0].unique()
            if len(items):
                block = self.gallery[items.to(self.gallery.device)]
                scores = self._products(rows, list(self._tiles(block, self.gallery_norms[items])))
                slots = torch.searchsorted(items, wanted).clamp_(max=len(items) - 1)
                found[rows] = torch.where(wanted >= 0, scores.gather(1, slots), torch.nan)
        return found

    def candidate_scores(self, candidates: Tensor, exclude: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """
        Scores a short list of items of each query's own.

        Args:
            candidates (`torch.Tensor` of shape `(Q, C)`): Gallery positions; padding (-1) scores -inf.
            exclude (`torch.Tensor` of shape `(Q, E)`, *optional*): Positions that score -inf, padded with -1.

        Yields:
            `(slice, torch.Tensor)`: The queries of the block and the scores `(rows, C)`, that may be written to.
        """
        # As many items at once as hold no more numbers than a block of scores does.
        room = (
            self.query_block
            * min(self.width, len(self.gallery))
            // (self.queries.shape[1] * max(1, candidates.shape[1]))
        )
        for rows in self._rows(max(1, min(self.query_block, room))):
            positions = candidates[rows]
            flat = positions.clamp(min=0).flatten()
            items = self.gallery[flat.to(self.gallery.device)].to(self.queries.device).float()
            # A sum of products, unlike a batched matrix product, adds up all rows in the same order.
            scores = (items.unflatten(0, positions.shape).mul_(self._prepared(rows)[:, None])).sum(dim=-1)
            scores = self._scaled(scores, self.gallery_norms[flat].unflatten(0, positions.shape))
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

    def _products(self, rows: slice, tiles: list[tuple[int, Tensor, Tensor]], buffer: Tensor | None = None) -> Tensor:
        """The scores of a block of queries and all items of the tiles, `(query_block, n)`."""
        queries = self._prepared(rows)
        size = (len(queries), sum(number for number, _, _ in tiles))
        scores = queries.new_empty(size) if buffer is None else buffer[: size[0], : size[1]]
        first = 0
        for number, items, norms in tiles:
            with full_precision(items.device.type):
                product = queries @ items.T
            scores[:, first : first + number] = self._scaled(product, norms)[:, :number]
            first += number
        return scores

    def _prepared(self, rows: slice) -> Tensor:
        queries = self.queries[rows].float()
        return queries / self.query_norms[rows, None] if self.normalize else queries

    def _scaled(self, scores: Tensor, norms: Tensor) -> Tensor:
        # With norms that are finite a cosine is, too, so that only dot products are looked through.
        if self.normalize:
            return scores.div_(norms)
        if not scores.isfinite().all():
            raise ValueError("Some products of `queries` and `gallery` overflow float32. Scale the features down.")
        return scores

    def _tiles(self, items: Tensor, norms: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Items `(n, D)` and norms in tiles of one width, float32 where the queries are, with the number in each."""
        for part, lengths in zip(items.split(self.tile), norms.split(self.tile), strict=True):
            part, missing = part.to(self.queries.device).float(), self.tile - len(part)
            if missing:
                part, lengths = F.pad(part, (0, 0, 0, missing)), F.pad(lengths, (0, missing), value=1.0)
            elif not part.is_contiguous() or part.data_ptr() % 64:
                # Kernels may treat the edge of an array differently that begins where their vectors do not.
                part = part.clone(memory_format=torch.contiguous_format)
            yield self.tile - missing, part, lengths

    def _norms(self, name: str, features: Tensor) -> Tensor:
        """Lengths `(N,)`, and the check that all values are finite, which shows in them without another pass."""
        step = max(1, _NORMED_AT_ONCE // features.shape[1])
        norms = torch.cat([torch.linalg.vector_norm(part.float(), dim=-1) for part in features.split(step)])
        if not norms.isfinite().all():
            _check_finite(name, features, step)
            if self.normalize:
                raise ValueError("The norm of some features overflows float32. Scale the features down.")
        return norms.clamp_min_(1e-12)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _check_finite(name: str, features: Tensor, step: int) -> None:
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
    gallery_norms: Tensor | None = None,
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
        gallery_block (`int`, *optional*, defaults to 8192): Items scored at once, rounded up to a multiple of 512.
        gallery_norms (`torch.Tensor` of shape `(N,)`, *optional*): As for [`BlockwiseSimilarity`].

    Returns:
        [`TopK`]: Scores and gallery positions, best first.

    Raises:
        `ValueError`: For features that are not finite, positions outside of the gallery, or fewer than `k` items.
    """
    check_k(k)
    blocks = {"query_block": query_block, "gallery_block": gallery_block}
    similarity = BlockwiseSimilarity(queries, gallery, normalize=normalize, gallery_norms=gallery_norms, **blocks)
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


def slerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    r"""The point at `weight` of the way along the great circle between two unit vectors, row by row.

    With the angle \\(\theta\\) between them, \\((\sin((1 - w) \theta) a + \sin(w \theta) b) / \sin \theta\\)
    (Shoemake, SIGGRAPH 1985; for composed retrieval Jang et al.,
    [arXiv:2405.00571](https://huggingface.co/papers/2405.00571)).

    Args:
        start (`torch.Tensor` of shape `(N, D)`): Where the way begins, of length 1.
        end (`torch.Tensor` of shape `(N, D)`): Where it ends, of length 1.
        weight (`float`): Between 0 and 1.

    Returns:
        `torch.Tensor` of shape `(N, D)`, of length 1 but for opposite vectors, between which there is no one way.
    """
    angle = (start * end).sum(dim=-1, keepdim=True).double().clamp(-1, 1).acos()
    # At small angles the way is straight, and the quotient of two zeros is avoided.
    first = torch.where(angle < 1e-6, 1 - weight, torch.sin((1 - weight) * angle) / torch.sin(angle).clamp_min(1e-12))
    second = torch.where(angle < 1e-6, weight, torch.sin(weight * angle) / torch.sin(angle).clamp_min(1e-12))
    return (first * start + second * end).to(start.dtype)
