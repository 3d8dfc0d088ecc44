"""Image features computed once before a training, because the image tower is frozen."""

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..distributed import gather, rank, world_size


if TYPE_CHECKING:
    from .base import ProjectionObjective


class EncodedRows(Dataset):
    """
    Rows whose pictures are embeddings: every picture is opened and encoded once, here.

    Random crops are left out, so there is one embedding a picture. Several processes share the work.

    Args:
        dataset (`Dataset`): Rows with an `"image"`, and a `"caption"` where the objective needs it.
        objective ([`ProjectionObjective`]): Says what is needed, how pictures are prepared, and holds the CLIP.
        batch_size (`int`, *optional*, defaults to 256): Pictures at once.
        num_workers (`int`, *optional*, defaults to 0): Processes that open pictures.

    Attributes:
        image_embeds (`torch.Tensor` of shape `(N, D)`): Float32, on the CPU, not normalised.
        patch_embeds (`torch.Tensor` of shape `(N, 1 + patches, W)`): The vision tokens, where they are needed.

    Raises:
        ValueError: the objective crops at random, so that pictures have no one embedding.
        OSError: a picture is missing, damaged or none; the message names it.
    """

    def __init__(
        self, dataset: Dataset, objective: "ProjectionObjective", *, batch_size: int = 256, num_workers: int = 0
    ):
        if getattr(objective.options, "crop_scale", 1.0) < 1:
            raise ValueError(
                f"`crop_scale` {objective.options.crop_scale} crops every picture anew, which features that are "
                f"computed once cannot follow. Set `crop_scale` to 1, or do not cache features."
            )
        self.columns: dict[str, Any] = {}
        number, device = len(dataset), objective.clip.device
        share = -(-number // world_size())
        # The last process may have to repeat a row, because what is gathered has one shape.
        own = [min(rank() * share + place, number - 1) for place in range(share)]
        loader = DataLoader(
            Subset(dataset, own),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=lambda rows: (objective.image_batch(rows), [row.get("caption") for row in rows]),
        )
        captions: list[str | None] = []
        features: dict[str, torch.Tensor] = {}
        filled = 0
        for batch, texts in tqdm(loader, desc="Encoding pictures", unit="batch", disable=len(loader) < 4):
            embeds, patches = objective.clip.encode_image(**{name: part.to(device) for name, part in batch.items()})
            found = {"image_embeds": embeds} | ({"patch_embeds": patches} if objective.needs_patches else {})
            for name, part in found.items():
                if name not in features:  # in place, so that no second copy is ever in memory
                    features[name] = torch.empty(share * world_size(), *part.shape[1:])
                whole = gather(part).cpu().view(world_size(), len(part), *part.shape[1:])
                for process, rows in enumerate(whole):
                    start = process * share + filled
                    features[name][start : start + len(rows)] = rows
            captions += texts
            filled += len(texts)
        self.columns |= {name: values[:number] for name, values in features.items()}
        if objective.needs_captions:
            self.columns["caption"] = _gathered(captions)[:number]

    def __getattr__(self, name: str) -> Any:
        columns = self.__dict__.get("columns", {})
        if name not in columns:
            raise AttributeError(f"`{type(self).__name__}` has no `{name}`; its columns are {', '.join(columns)}.")
        return columns[name]

    def with_columns(self, **columns: Any) -> "EncodedRows":
        """The same rows with more columns, each as long as they are many."""
        more = object.__new__(type(self))
        more.columns = {**self.columns, **columns}
        return more

    def __len__(self) -> int:
        return len(self.columns["image_embeds"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}


def _gathered(texts: list) -> list:
    if world_size() == 1:
        return texts
    parts: list[list] = [[] for _ in range(world_size())]
    torch.distributed.all_gather_object(parts, texts)
    return [text for part in parts for text in part]
