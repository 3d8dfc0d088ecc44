"""Run by `test_distributed.py` under `torch.distributed.run`: every rank works on its rows and saves what it got."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from processes import leave

from rtd_hf.distributed import gather, gather_with_grad, rank, world_size
from rtd_hf.losses import TargetAnchoredContrastiveLoss


NUM_PAIRS, IN_DIM, DIM = 8, 5, 6

# (loss type, whether duplicate texts are masked, whether the anchors are trained too)
CASES = [(kind, mask, both) for kind in ("nt_xent", "info_nce") for mask in (False, True) for both in (False, True)]


def problem() -> dict[str, torch.Tensor]:
    """The whole batch; the texts of pairs 0 and 5, and of 1 and 2, are the same: across ranks, and within one."""
    generator = torch.Generator().manual_seed(3)
    return {
        "queries": torch.randn(NUM_PAIRS, IN_DIM, generator=generator),
        "anchors": torch.randn(NUM_PAIRS, IN_DIM, generator=generator),
        "text_ids": torch.tensor([10, 11, 11, 13, 14, 10, 16, 2**62]),
        "query_weight": torch.randn(DIM, IN_DIM, generator=generator),
        "anchor_weight": torch.randn(DIM, IN_DIM, generator=generator),
    }


class TwoTowers(torch.nn.Module):
    """A linear encoder for each side."""

    def __init__(self, batch: dict[str, torch.Tensor], train_anchors: bool):
        super().__init__()
        self.query = torch.nn.Linear(IN_DIM, DIM, bias=False)
        self.anchor = torch.nn.Linear(IN_DIM, DIM, bias=False).requires_grad_(train_anchors)
        self.query.weight.data.copy_(batch["query_weight"])
        self.anchor.weight.data.copy_(batch["anchor_weight"])

    def forward(self, queries: torch.Tensor, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.query(queries), self.anchor(anchors)


def loss_and_gradients(case: tuple[str, bool, bool], rows: slice, wrap, **options) -> dict[str, torch.Tensor]:
    loss_type, mask, train_anchors = case
    batch = problem()
    towers = TwoTowers(batch, train_anchors)
    model = wrap(towers)  # has to outlive the backward pass: a wrapper that is gone reduces no gradients
    embeds = model(batch["queries"][rows], batch["anchors"][rows])
    contrastive_loss = TargetAnchoredContrastiveLoss(0.1, loss_type, mask_duplicates=mask, **options)
    loss = contrastive_loss(*embeds, batch["text_ids"][rows])
    loss.backward()
    gradients = {name: weight.grad for name, weight in towers.named_parameters() if weight.requires_grad}
    return {"loss": loss.detach(), **gradients}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    size = NUM_PAIRS // world_size()
    rows = slice(rank() * size, (rank() + 1) * size)
    wrap = torch.nn.parallel.DistributedDataParallel
    found = {case: loss_and_gradients(case, rows, wrap) for case in CASES}
    # Three of a rank's four rows at once, then the last.
    found["blocks"] = {case: loss_and_gradients(case, rows, wrap, block_size=3) for case in CASES}

    # Every rank sends a gradient of its own to every part: rank r weighs part p by (r + 1) * (p + 1).
    part = torch.full((2, 3), float(rank()), requires_grad=True)
    everything = gather_with_grad(part)
    weights = (rank() + 1.0) * torch.arange(1.0, world_size() + 1).repeat_interleave(2)[:, None]
    (everything * weights).sum().backward()
    found["gather"] = {"value": everything.detach(), "gradient": part.grad}
    found["ids"] = gather(torch.tensor([rank(), 2**62 + rank()]))

    try:
        embeds = torch.randn(2 + rank(), DIM)
        TargetAnchoredContrastiveLoss()(embeds, embeds)
    except ValueError as error:
        found["uneven"] = str(error)
    # One pair per rank is a batch of two.
    found["single"] = TargetAnchoredContrastiveLoss()(torch.randn(1, DIM), torch.randn(1, DIM))
    torch.save(found, folder / f"rank{rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
