"""What `test_features.py` runs on two processes: an evaluation whose pictures and queries they share."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from processes import leave
from world_models import random_retriever

from rtd_hf.benchmarks import BENCHMARKS
from rtd_hf.distributed import gather_objects, rank
from rtd_hf.evaluator import CIREvaluator
from rtd_hf.features import UnreadableImagesError


def main(folder: Path, method: str) -> None:
    dist.init_process_group("gloo")
    retriever, pictures = random_retriever(method, batch_size=16, shared=True), []
    retriever.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: pictures.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    benchmark = BENCHMARKS["shapes"](num_queries=20)
    evaluator = CIREvaluator(benchmark, retriever, features=folder / "kept")
    found = {"gallery": evaluator.image_embeds, "gallery pictures": sum(pictures)}
    for composer in ("projection", "sum"):
        found[composer] = dict(evaluator.evaluate(composer=composer).per_query)
    found["search"] = evaluator.search(5)
    found["pictures"] = list(pictures)
    found["shared"] = gather_objects(sum(pictures))
    again = CIREvaluator(benchmark, retriever, features=folder / "kept")
    found["again"] = again.image_embeds

    def load(image_id: str):
        if image_id in ("00001", "00020"):  # one in a share of each process
            raise OSError(f"The picture {image_id} is gone.")
        return benchmark.load_image(image_id)

    try:
        retriever.embed_gallery(benchmark.gallery, load)
    except UnreadableImagesError as error:
        found["faults"] = list(error.faults)
    torch.save(found, folder / f"rank{rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
