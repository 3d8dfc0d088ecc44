"""Ranking as public evaluation scripts do it: sort all distances, then compare names. What counting is held to."""

import numpy as np
import torch


def sorted_names(queries: torch.Tensor, gallery: torch.Tensor, names: list[str]) -> np.ndarray:
    """The names of all images for every query, nearest first, `(Q, N)`, as a NumPy array of strings."""
    distances = 1 - queries @ gallery.T
    order = torch.argsort(distances, dim=-1)
    return np.array(names)[order.numpy()]


def plain_single_target(queries, gallery, task) -> dict[str, np.ndarray]:
    """Ranks of one target a query (FashionIQ): every name of the sorted list is compared with the target's.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Normalised.
        gallery (`torch.Tensor` of shape `(N, D)`): Normalised.
        task: Its `names`, and `targets` by name.

    Returns:
        `dict`: `ranks` `(Q,)`, 0-based.
    """
    ordered = sorted_names(queries, gallery, task.names)
    wanted = np.repeat(np.array(task.targets), len(task.names)).reshape(len(task.targets), -1)
    labels = _one_each(torch.tensor(ordered == wanted))
    return {"ranks": labels.int().argmax(dim=1).numpy()}


def plain_cirr(queries, gallery, task) -> dict[str, np.ndarray]:
    """Ranks in the gallery without the reference, and among the six of the query's group without it.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Normalised.
        gallery (`torch.Tensor` of shape `(N, D)`): Normalised.
        task: Its `names`, and `targets`, `references` and `members` by name.

    Returns:
        `dict`: `ranks` and `subset_ranks`, both `(Q,)`, 0-based.
    """
    number, size = len(task.targets), len(task.names)
    ordered = sorted_names(queries, gallery, task.names)
    references = np.repeat(np.array(task.references), size).reshape(number, size)
    ordered = ordered[ordered != references].reshape(number, size - 1)
    wanted = np.repeat(np.array(task.targets), size - 1).reshape(number, size - 1)
    labels = _one_each(torch.tensor(ordered == wanted))
    members = np.array(task.members)
    in_group = (ordered[..., None] == members[:, None, :]).sum(axis=-1).astype(bool)
    group_labels = _one_each(labels[in_group].reshape(number, members.shape[1] - 1))
    return {
        name: found.int().argmax(dim=1).numpy() for name, found in (("ranks", labels), ("subset_ranks", group_labels))
    }


def _one_each(labels: torch.Tensor) -> torch.Tensor:
    if not torch.equal(labels.sum(dim=-1), torch.ones(len(labels), dtype=torch.int64)):
        raise ValueError("A query's target must be in its list exactly once.")
    return labels


def plain_many_targets(queries, gallery, task) -> dict[str, np.ndarray]:
    """Ranks of several targets a query (CIRCO): every name of the sorted list is looked up among the targets.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Normalised.
        gallery (`torch.Tensor` of shape `(N, D)`): Normalised.
        task: Its `names`, and `many_targets` by name.

    Returns:
        `dict`: `map@K` and `recall@K` `(Q,)`, between 0 and 1, for the cut-offs of CIRCO.
    """
    ordered = sorted_names(queries, gallery, task.names)
    hits = np.stack([np.isin(line, wanted) for line, wanted in zip(ordered, task.many_targets, strict=True)])
    first = ordered == np.array([wanted[0] for wanted in task.many_targets])[:, None]
    return _circo_metrics(hits[:, :50], first[:, :50], task)


def plain_top_k(queries, gallery, task) -> dict[str, np.ndarray]:
    """The same by the 50 nearest alone, one query after the other, with the array of names made anew for each.

    Args:
        queries, gallery, task: As for [`plain_many_targets`].

    Returns:
        `dict`: As [`plain_many_targets`].
    """
    hits, first = [], []
    for query, wanted in zip(queries, task.many_targets, strict=True):
        nearest = torch.topk(gallery @ query, k=50).indices
        ordered = np.array(task.names)[nearest.numpy()]
        hits.append(np.isin(ordered, wanted))
        first.append(ordered == wanted[0])
    return _circo_metrics(np.stack(hits), np.stack(first), task)


def _circo_metrics(hits: np.ndarray, first: np.ndarray, task) -> dict[str, np.ndarray]:
    numbers = np.array([len(wanted) for wanted in task.many_targets])
    precision = np.cumsum(hits, axis=1) * hits / np.arange(1, hits.shape[1] + 1)
    metrics = {}
    for k in (5, 10, 25, 50):
        metrics[f"map@{k}"] = precision[:, :k].sum(axis=1) / np.minimum(numbers, k)
        metrics[f"recall@{k}"] = first[:, :k].any(axis=1).astype(float)
    return metrics
