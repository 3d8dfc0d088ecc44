"""
Target-anchored contrastive learning: the queries of the encoder in training against the anchors of the frozen one.

A loss sees embeddings, never a model. Everything is computed in float32, whatever the inputs, and under autocast and
TF32 too. Of the matrix of similarities no more than a block of rows exists at a time.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contexts import full_precision
from .distributed import check_same_shape, gather, gather_with_grad, rank, world_size


# Similarities computed at once unless `block_size` is given: 256 MiB in float32. Up to 5,792 pairs are not cut
# then, and larger blocks would save next to no time: on CPU even those of 64 rows take but a tenth more.
_MAX_BLOCK_ELEMENTS = 2**26

# Rows of one side, all rows of the other side, and all rows of their own side where they are compared with these too.
_Comparison = tuple[Tensor, Tensor, Tensor | None]


def _nt_xent(queries: Tensor, anchors: Tensor, all_queries: Tensor, all_anchors: Tensor) -> tuple[_Comparison, ...]:
    """Every row over all joint vectors but itself: those of the other side and those of its own."""
    return (queries, all_anchors, all_queries), (anchors, all_queries, all_anchors)


def _info_nce(queries: Tensor, anchors: Tensor, all_queries: Tensor, all_anchors: Tensor) -> tuple[_Comparison, ...]:
    """Query -> anchor and anchor -> query."""
    return (queries, all_anchors, None), (anchors, all_queries, None)


_LOSSES = {"nt_xent": _nt_xent, "info_nce": _info_nce}

LOSS_TYPES = tuple(_LOSSES)


class _CrossEntropy(torch.autograd.Function):
    """
    The mean over rows of minus the log-softmax at the row's partner, and its gradient, one block of rows at a time.

    Row i of `rows` is number `first + i` of its side: there its partner stands in `others`, and itself in `own_side`.

    The gradient of a block of logits is softmax minus one-hot. Multiplied with columns and rows while the block is
    there, it need not be computed again (as in fused kernels: Hsu et al., *Liger Kernel*,
    [arXiv:2410.10989](https://huggingface.co/papers/2410.10989)). Checkpoints, which compute each block twice, took
    4.1 s for what takes 1.6 s here: 4096 pairs of 512 dimensions with frozen anchors, on one CPU thread.
    """

    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        others: Tensor,
        own_side: Tensor | None,
        texts: tuple[Tensor, Tensor] | None,
        first: int,
        temperature: float,
        block_size: int | None,
    ) -> Tensor:
        columns = others if own_side is None else torch.cat([others, own_side])
        block_size = block_size or max(1, _MAX_BLOCK_ELEMENTS // len(columns))
        grad_rows, grad_others, grad_own_side = (
            torch.zeros_like(part) if needed else None
            for part, needed in zip((rows, others, own_side), ctx.needs_input_grad[:3], strict=True)
        )
        losses = rows.new_empty(len(rows))
        for start in range(0, len(rows), block_size):
            block, number = slice(start, start + block_size), first + start
            logits = (rows[block] @ columns.T).div_(temperature)
            _hide(logits.split(len(others), dim=1), None if texts is None else (texts[0][block], texts[1]), number)
            log_probabilities = logits.log_softmax(dim=1)
            losses[block] = -log_probabilities.diagonal(number)
            if any(ctx.needs_input_grad):
                residual = log_probabilities.exp_()
                residual.diagonal(number).sub_(1)
                if grad_rows is not None:
                    grad_rows[block] = residual @ columns
                if grad_others is not None:
                    grad_others.addmm_(residual[:, : len(others)].T, rows[block])
                if grad_own_side is not None:
                    grad_own_side.addmm_(residual[:, len(others) :].T, rows[block])
                del residual
            del log_probabilities  # before the next block is there
        ctx.save_for_backward(grad_rows, grad_others, grad_own_side)
        ctx.divisor = temperature * len(rows)
        return losses.mean()

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # `once_differentiable` objects only if `grad_output` needs a gradient: that of embeddings would lack a part.
        if torch.is_grad_enabled():
            raise RuntimeError("The contrastive loss has no second derivative. Leave out `create_graph=True`.")
        scale = grad_output / ctx.divisor
        gradients = [None if gradient is None else gradient * scale for gradient in ctx.saved_tensors]
        return *gradients, None, None, None, None


def _hide(logits: tuple[Tensor, ...], texts: tuple[Tensor, Tensor] | None, number: int) -> None:
    """
    Puts -inf where a row of a block is not compared: with itself and, given the texts of rows and columns, its equals.

    The logits are those of the other side and, if compared with too, of the rows' own. The first row is that number
    of its side, so that the partners, and the rows themselves, stand on diagonals.
    """
    _, *own_side = logits
    for part in own_side:
        part.diagonal(number).fill_(-torch.inf)
    if texts is not None:
        equal = texts[0][:, None] == texts[1]
        equal.diagonal(number).fill_(False)
        for part in logits:
            part.masked_fill_(equal, -torch.inf)


def _check_options(temperature: float, loss_type: str, block_size: int | None) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"`temperature` must be a number, got {type(temperature).__name__}.")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"`temperature` must be positive and finite, got {temperature}. The published value is 0.07.")
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"`loss_type` must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}.")
    if block_size is not None and (isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1):
        raise ValueError(
            f"`block_size` must be an integer of at least 1, or None for blocks of a fixed memory, got {block_size!r}."
        )


def _check_inputs(query_embeds: Tensor, anchor_embeds: Tensor, text_ids: Tensor | None, gather: bool) -> None:
    if query_embeds.dim() != 2 or query_embeds.shape != anchor_embeds.shape:
        raise ValueError(
            "`query_embeds` and `anchor_embeds` must both be of shape (N, D), row i of one belonging to row i of the "
            f"other, got {tuple(query_embeds.shape)} and {tuple(anchor_embeds.shape)}."
        )
    num_rows = query_embeds.shape[0]
    num_pairs = num_rows * (world_size() if gather else 1)
    if num_pairs < 2:
        raise ValueError(
            f"`query_embeds` must hold at least 2 rows, got {num_pairs}: a contrastive loss needs negatives. "
            "Raise the batch size."
        )
    if text_ids is not None and (text_ids.shape != (num_rows,) or text_ids.is_floating_point()):
        raise ValueError(
            f"`text_ids` must hold one integer per anchor, shape ({num_rows},), got shape {tuple(text_ids.shape)} "
            f"of {text_ids.dtype}."
        )


def target_anchored_contrastive_loss(
    query_embeds: Tensor,
    anchor_embeds: Tensor,
    temperature: float = 0.07,
    *,
    loss_type: str = "nt_xent",
    text_ids: Tensor | None = None,
    gather: bool = True,
    block_size: int | None = None,
) -> Tensor:
    r"""
    Pulls every query to its anchor and pushes it away from the others, by cosine similarity.

    `"nt_xent"`, the published form: the N anchors and N queries are 2N joint vectors \\(z\\), \\(p(k)\\) is the
    partner of \\(k\\), and with \\(s_{kl} = \cos(z_k, z_l) / \tau\\)

    $$L = -\frac{1}{2N} \sum_{k=1}^{2N} \Big[ s_{k,p(k)} - \log \sum_{l \ne k} e^{s_{kl}} \Big],$$

    so that queries are negatives of each other too (Byun et al., *Reducing Task Discrepancy of Text Encoders for
    Zero-Shot Composed Image Retrieval*, [arXiv:2406.09188](https://huggingface.co/papers/2406.09188); Chen et al.,
    SimCLR, [arXiv:2002.05709](https://huggingface.co/papers/2002.05709), equation 1).

    `"info_nce"`: the cross-entropy of each query over the anchors and of each anchor over the queries, averaged
    (Radford et al., CLIP, [arXiv:2103.00020](https://huggingface.co/papers/2103.00020), figure 3).

    Across processes each one takes the mean over its own rows, against the columns of all. Averaging the gradients
    over processes, as `DistributedDataParallel` does, then gives the gradient of the whole batch on one process.

    The similarities are computed in blocks of rows, and the gradient with them, in the forward pass. Alive at any
    moment are a block and its log-softmax; all else is of the size of the embeddings: rows, columns, and a gradient
    for those that need one. There is no second derivative: `backward(create_graph=True)` raises `RuntimeError`.

    Args:
        query_embeds (`torch.Tensor` of shape `(N, D)`):
            Embeddings of the encoder in training, of any floating type. They need not be normalised.
        anchor_embeds (`torch.Tensor` of shape `(N, D)`):
            Embeddings of the frozen encoder. Anchor i belongs to query i.
        temperature (`float`, *optional*, defaults to 0.07):
            What cosine similarities are divided by. Stable down to 0.001.
        loss_type (`str`, *optional*, defaults to `"nt_xent"`):
            `"nt_xent"` or `"info_nce"`.
        text_ids (`torch.Tensor` of shape `(N,)`, *optional*):
            Integers, equal for anchors of equal text. If given, false negatives are left out of the denominators: a
            query carries the id of its anchor, and a column with the id of the row is dropped unless it is the row's
            partner. This holds in all parts of the matrix: another query for the same text is not pushed away
            either. A row whose negatives are all dropped adds 0.
        gather (`bool`, *optional*, defaults to `True`):
            Whether to take the pairs of all processes as negatives. Each must then hold the same number of rows.
        block_size (`int`, *optional*):
            Rows of the similarity matrix computed at once; it has 2N columns (`"nt_xent"`) or N (`"info_nce"`), where
            N counts the pairs of all processes. Changes memory and time, not the result. By default, as many rows as
            give a block of 2^26 similarities (256 MiB).

    Returns:
        `torch.Tensor`: The loss, a float32 scalar. Its value is that of the local rows.

    Raises:
        `ValueError`: For a temperature or block size that is not positive, an unknown loss type, shapes that do not
            fit, fewer than two pairs in all, or processes with batches of different shape.
    """
    _check_options(temperature, loss_type, block_size)
    _check_inputs(query_embeds, anchor_embeds, text_ids, gather)
    if gather:
        check_same_shape(query_embeds)
    with full_precision(query_embeds.device.type):
        queries = F.normalize(query_embeds.float(), dim=-1)
        anchors = F.normalize(anchor_embeds.float(), dim=-1)
        columns = [gather_with_grad(part, check=False) if gather else part for part in (queries, anchors)]
        texts = None if text_ids is None else _with_all(text_ids.to(queries.device), gather)
        first = rank() * queries.shape[0] if gather else 0
        sides = [
            _CrossEntropy.apply(*comparison, texts, first, temperature, block_size)
            for comparison in _LOSSES[loss_type](queries, anchors, *columns)
        ]
        return torch.stack(sides).mean()


def _with_all(text_ids: Tensor, across_processes: bool) -> tuple[Tensor, Tensor]:
    """The ids of the rows, `(n,)`, and those of the columns, `(N,)`."""
    return text_ids, gather(text_ids) if across_processes else text_ids


class TargetAnchoredContrastiveLoss(nn.Module):
    """
    [`target_anchored_contrastive_loss`] with its options held. It has no parameters.

    Args:
        temperature (`float`, *optional*, defaults to 0.07):
            What cosine similarities are divided by.
        loss_type (`str`, *optional*, defaults to `"nt_xent"`):
            `"nt_xent"`, over joint vectors as published, or `"info_nce"`, over both directions.
        mask_duplicates (`bool`, *optional*, defaults to `False`):
            Whether pairs of the same anchor text are no negatives of each other. `forward` then needs `text_ids`.
        gather_across_devices (`bool`, *optional*, defaults to `True`):
            Whether the pairs of all processes are negatives, or only those of the process itself.
        block_size (`int`, *optional*):
            Rows of the similarity matrix computed at once. By default, as many as give a block of 256 MiB.

    Raises:
        `ValueError`: For a temperature or block size that is not positive, or an unknown loss type.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        loss_type: str = "nt_xent",
        *,
        mask_duplicates: bool = False,
        gather_across_devices: bool = True,
        block_size: int | None = None,
    ):
        super().__init__()
        _check_options(temperature, loss_type, block_size)
        self.temperature = temperature
        self.loss_type = loss_type
        self.mask_duplicates = mask_duplicates
        self.gather_across_devices = gather_across_devices
        self.block_size = block_size

    def forward(self, query_embeds: Tensor, anchor_embeds: Tensor, text_ids: Tensor | None = None) -> Tensor:
        """
        Args:
            query_embeds (`torch.Tensor` of shape `(N, D)`): Embeddings of the encoder in training.
            anchor_embeds (`torch.Tensor` of shape `(N, D)`): Embeddings of the frozen encoder, one per query.
            text_ids (`torch.Tensor` of shape `(N,)`, *optional*): Equal integers for equal anchor texts.

        Returns:
            `torch.Tensor`: The loss, a float32 scalar.

        Raises:
            `ValueError`: For inputs that do not fit, or if `mask_duplicates` is set and `text_ids` is missing.
        """
        if self.mask_duplicates and text_ids is None:
            raise ValueError("`text_ids` is needed with `mask_duplicates=True`, got None. Pass one id per anchor.")
        return target_anchored_contrastive_loss(
            query_embeds,
            anchor_embeds,
            self.temperature,
            loss_type=self.loss_type,
            text_ids=text_ids if self.mask_duplicates else None,
            gather=self.gather_across_devices,
            block_size=self.block_size,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, loss_type={self.loss_type!r}, mask_duplicates={self.mask_duplicates}, "
            f"gather_across_devices={self.gather_across_devices}, block_size={self.block_size}"
        )
