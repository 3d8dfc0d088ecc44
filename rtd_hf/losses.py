"""
Target-anchored contrastive learning: the queries of the encoder in training against the anchors of the frozen one.

A loss sees embeddings, never a model. Everything is computed in float32, whatever the inputs and under autocast too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import check_same_shape, gather, gather_with_grad, rank, world_size


def _nt_xent(
    queries: Tensor, anchors: Tensor, all_queries: Tensor, all_anchors: Tensor, duplicates: Tensor | None, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (before the temperature), hidden columns and labels of the joint `(2n, 2N)` matrix."""
    total = all_queries.shape[0]
    own = torch.arange(first, first + queries.shape[0], device=queries.device)
    itself, partner = torch.cat([own, own + total]), torch.cat([own + total, own])
    logits = torch.cat([queries, anchors]) @ torch.cat([all_queries, all_anchors]).T
    hidden = torch.zeros_like(logits, dtype=torch.bool) if duplicates is None else duplicates.repeat(2, 2)
    hidden.scatter_(1, partner[:, None], False)
    hidden.scatter_(1, itself[:, None], True)
    return logits, hidden, partner


def _info_nce(
    queries: Tensor, anchors: Tensor, all_queries: Tensor, all_anchors: Tensor, duplicates: Tensor | None, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for query -> anchor stacked upon anchor -> query, `(2n, N)`: its row mean averages both directions."""
    own = torch.arange(first, first + queries.shape[0], device=queries.device)
    partner = own.repeat(2)
    logits = torch.cat([queries @ all_anchors.T, anchors @ all_queries.T])
    hidden = torch.zeros_like(logits, dtype=torch.bool) if duplicates is None else duplicates.repeat(2, 1)
    hidden.scatter_(1, partner[:, None], False)
    return logits, hidden, partner


_LOSSES = {"nt_xent": _nt_xent, "info_nce": _info_nce}

LOSS_TYPES = tuple(_LOSSES)


def _check_options(temperature: float, loss_type: str) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"`temperature` must be a number, got {type(temperature).__name__}.")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"`temperature` must be positive and finite, got {temperature}. The published value is 0.07.")
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"`loss_type` must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}.")


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
            partner. This holds in all blocks of the matrix: another query for the same text is not pushed away
            either. A row whose negatives are all dropped adds 0.
        gather (`bool`, *optional*, defaults to `True`):
            Whether to take the pairs of all processes as negatives. Each must then hold the same number of rows.

    Returns:
        `torch.Tensor`: The loss, a float32 scalar. Its value is that of the local rows.

    Raises:
        `ValueError`: For a temperature that is not positive, an unknown loss type, shapes that do not fit, fewer than
            two pairs in all, or processes with batches of different shape.
    """
    _check_options(temperature, loss_type)
    _check_inputs(query_embeds, anchor_embeds, text_ids, gather)
    if gather:
        check_same_shape(query_embeds)
    # Autocast would run the matrix product in half precision: an error of 1e-3 in a similarity, 1 at temperature 1e-3.
    with torch.autocast(query_embeds.device.type, enabled=False):
        queries = F.normalize(query_embeds.float(), dim=-1)
        anchors = F.normalize(anchor_embeds.float(), dim=-1)
        columns = [gather_with_grad(part, check=False) if gather else part for part in (queries, anchors)]
        duplicates = None if text_ids is None else _find_duplicates(text_ids.to(queries.device), gather)
        first = rank() * queries.shape[0] if gather else 0
        logits, hidden, partner = _LOSSES[loss_type](queries, anchors, *columns, duplicates, first)
        return F.cross_entropy((logits / temperature).masked_fill(hidden, -torch.inf), partner)


def _find_duplicates(text_ids: Tensor, across_processes: bool) -> Tensor:
    """The `(n, N)` pairs of rows and columns with the same text."""
    all_ids = gather(text_ids) if across_processes else text_ids
    return text_ids[:, None] == all_ids[None, :]


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

    Raises:
        `ValueError`: For a temperature that is not positive, or an unknown loss type.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        loss_type: str = "nt_xent",
        *,
        mask_duplicates: bool = False,
        gather_across_devices: bool = True,
    ):
        super().__init__()
        _check_options(temperature, loss_type)
        self.temperature = temperature
        self.loss_type = loss_type
        self.mask_duplicates = mask_duplicates
        self.gather_across_devices = gather_across_devices

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
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, loss_type={self.loss_type!r}, mask_duplicates={self.mask_duplicates}, "
            f"gather_across_devices={self.gather_across_devices}"
        )
