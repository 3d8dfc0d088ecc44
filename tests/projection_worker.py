"""Run by `test_projection_training.py` on two processes: Pic2Word's gradients on each one's half of the batch."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from objective_models import frozen_clip, objective_for, projection_for
from processes import leave

from rtd_hf.distributed import rank
from rtd_hf.objectives import EncodedRows
from rtd_hf.shapes.pairs import ScenePairs


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    clip, projection = frozen_clip(), projection_for("pic2word")
    objective = objective_for("pic2word", clip, projection)
    wrapped = torch.nn.parallel.DistributedDataParallel(projection)
    rows = [{**ScenePairs(8, seed=3)[index], "key": f"0 0 {index}"} for index in range(8)]
    batch = objective.collate(rows[rank() * 4 : rank() * 4 + 4])
    objective.loss(wrapped, batch, torch.Generator())[0].backward()
    gradients = {name: weight.grad for name, weight in projection.named_parameters()}
    # Five pictures on two processes: one of them has to repeat a picture.
    patchy = objective_for("fti4cir", clip, projection_for("fti4cir"))
    encoded = EncodedRows(rows[:5], patchy, batch_size=2)
    found = {"gradients": gradients, "features": encoded.image_embeds, "captions": list(encoded.caption)}
    torch.save(found, folder / f"rank{rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
