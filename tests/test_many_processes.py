"""One process with a batch of 8 against two with 4 and four with 2: the same training, in every form of the step."""

import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers import tiny_projection, tiny_text_model, tiny_tokenizer, tiny_triplets
from processes import leave, run_on_processes
from transformers import TrainerCallback

from rtd_hf.anchors import precompute_anchors
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.trainer import RTDTrainer
from rtd_hf.training_args import RTDTrainingArguments


WHOLE_BATCH, STEPS = 8, 20
# 27 rows: three batches an epoch, and three rows left over that are other ones in every epoch.
ROWS = 27
FORMS = ("plain", "checkpointing", "mini-batches", "anchors")
CASES = [f"{kind} {loss} {form}" for kind, loss, form in product(("full", "lora"), ("nt_xent", "info_nce"), FORMS)]


class Gradients(TrainerCallback):
    """The gradients of the first step."""

    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.found:
            weights = {name.removeprefix("module."): weight for name, weight in model.named_parameters()}
            self.found = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}


def train(case: str, folder: Path, batch_size: int, **options) -> dict:
    """Twenty AdamW steps in the shuffled order; first gradients, losses, and weights before and after."""
    kind, loss_type, form = case.split()
    torch.manual_seed(7)
    triplets = Dataset.from_list(tiny_triplets(ROWS))
    model, peft_config, anchors = tiny_text_model(CLIPTextModelForRTD), None, None
    if kind == "lora":
        from peft import LoraConfig

        names = list(CLIPTextModelForRTD.lora_target_modules)
        peft_config = LoraConfig(r=2, lora_alpha=4, target_modules=names)
    if form == "checkpointing":
        options["gradient_checkpointing"] = True
    if form == "mini-batches":
        options["mini_batch_size"] = batch_size // 2
    if form == "anchors":
        anchors = precompute_anchors(triplets, model, tiny_tokenizer(), folder / "anchors")
    gradients = Gradients()
    trainer = RTDTrainer(
        model,
        RTDTrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-3,
            loss_type=loss_type,
            noise_type="none",  # that of a process is its own
            max_grad_norm=0.0,  # clipping would hide gradients that are too long
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **options,
        ),
        projection=tiny_projection(),
        processing_class=tiny_tokenizer(),
        train_dataset=triplets,
        peft_config=peft_config,
        anchors=anchors,
        callbacks=[gradients],
    )
    start = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    return {
        "gradients": gradients.found,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "negatives": [row["negatives"] for row in trainer.state.log_history if "negatives" in row],
        "start": start,
        "end": {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()},
    }


def main(folder: str, *cases: str) -> None:
    """What each process of the tests below runs."""
    from accelerate import PartialState

    state = PartialState(cpu=True)
    number, rank = state.num_processes, state.process_index
    found = {case: train(case, Path(folder) / case.replace(" ", "-"), WHOLE_BATCH // number) for case in cases}
    found["local"] = train(CASES[0], Path(folder) / "local", WHOLE_BATCH // number, gather_across_devices=False)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    leave()


def run_cases(number: int, folder: Path, cases: list[str]) -> list[dict]:
    run_on_processes(number, Path(__file__), str(folder), *cases)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(number)]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=lambda n: f"{n} processes")
def ranks(request, tmp_path_factory):
    return run_cases(request.param, tmp_path_factory.mktemp("ranks"), CASES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process with the whole batch does; made once for each case."""
    made: dict[str, dict] = {}

    def of(case: str) -> dict:
        if case not in made:
            made[case] = train(case, tmp_path_factory.mktemp("whole"), WHOLE_BATCH)
        return made[case]

    return of


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].reshape(-1).double() for name in sorted(tensors)])


@pytest.mark.parametrize("case", CASES)
def test_many_processes_are_one_with_the_whole_batch(ranks, whole, case):
    check_equal(ranks, whole, case)


def test_four_processes_are_one_with_the_whole_batch(tmp_path, whole):
    case = "full nt_xent plain"
    check_equal(run_cases(4, tmp_path, [case]), whole, case)


def check_equal(ranks, whole, case):
    expected = whole(case)
    for rank in ranks:
        found = rank[case]
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        assert len(found["losses"]) == STEPS
        assert found["gradients"].keys() == expected["gradients"].keys()
        left, right = flat(found["gradients"]), flat(expected["gradients"])
        assert right.norm() > 0.1
        assert torch.cosine_similarity(left, right, dim=0) > 0.99999
        assert left.norm() / right.norm() == pytest.approx(1, abs=1e-4)
        moved = flat(expected["end"]) - flat(expected["start"])
        assert moved.norm() > 0.1
        # A key's bias has no true gradient (softmax does not see it): Adam makes steps out of rounding errors.
        names = [name for name in expected["end"] if "k_proj.bias" not in name]
        left, right = (flat({name: values["end"][name] for name in names}) for values in (found, expected))
        assert (left - right).norm() < 1e-3 * moved.norm()
        assert all(torch.equal(found["end"][name], ranks[0][case]["end"][name]) for name in names)


def test_negatives_of_a_process_alone_are_another_problem(ranks, whole):
    """Without gathering, as the published code means to work, losses are lower: there are fewer negatives."""
    gathered, local = whole(CASES[0])["losses"], ranks[0]["local"]["losses"]
    assert all(one < other - 0.1 for one, other in zip(local, gathered, strict=True))
    # All processes still hold the same weights.
    assert all(torch.equal(flat(rank["local"]["end"]), flat(ranks[0]["local"]["end"])) for rank in ranks)


def test_log_states_the_negatives(ranks, whole):
    rows, own = 2 * WHOLE_BATCH, 2 * WHOLE_BATCH // len(ranks)  # the refined batch doubles them
    assert set(whole("full nt_xent plain")["negatives"]) == {2 * rows - 2}
    assert set(whole("full info_nce plain")["negatives"]) == {rows - 1}
    for rank in ranks:
        assert set(rank["full nt_xent plain"]["negatives"]) == {2 * rows - 2}
        assert set(rank["local"]["negatives"]) == {2 * own - 2}


if __name__ == "__main__":
    main(*sys.argv[1:])
