"""One process with the whole batch against two with half of it each."""

from pathlib import Path

import pytest
import torch
from distributed_worker import CASES, NUM_PAIRS, loss_and_gradients
from processes import run_on_processes

from rtd_hf.distributed import check_same_shape, gather, gather_with_grad, rank, world_size


WORKER = Path(__file__).with_name("distributed_worker.py")
NUM_PROCESSES = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_on_processes(NUM_PROCESSES, WORKER, str(folder))
    return [torch.load(folder / f"rank{number}.pt") for number in range(NUM_PROCESSES)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_give_the_gradient_of_one(ranks, case):
    whole = loss_and_gradients(case, slice(0, NUM_PAIRS), lambda towers: towers)
    halves = [found[case] for found in ranks]
    assert halves[0].keys() == whole.keys() and len(whole) == 2 + case[2]
    # The loss of a rank is that of its rows: different, and equal to the whole in the mean.
    torch.testing.assert_close(torch.stack([half["loss"] for half in halves]).mean(), whole.pop("loss"))
    assert halves[0]["loss"] != halves[1]["loss"]
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0.01
        for half in halves:
            torch.testing.assert_close(half[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_blocks_change_nothing_on_two_processes(ranks, case):
    for found in ranks:
        in_blocks = found["blocks"][case]
        assert in_blocks.keys() == found[case].keys()
        for name, expected in found[case].items():
            assert (in_blocks[name] - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_masking_and_training_both_sides_are_different_problems():
    losses = {case: loss_and_gradients(case, slice(0, NUM_PAIRS), lambda towers: towers)["loss"] for case in CASES}
    for kind in ("nt_xent", "info_nce"):
        assert losses[kind, True, False] < losses[kind, False, False] - 1e-3


def test_gather_with_grad_adds_up_what_all_ranks_send(ranks):
    for number, found in enumerate(ranks):
        value, gradient = found["gather"]["value"], found["gather"]["gradient"]
        assert value.tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
        assert gradient.tolist() == [[(1 + 2) * (number + 1.0)] * 3] * 2


def test_gather_keeps_64_bit_ids(ranks):
    assert all(found["ids"].tolist() == [0, 2**62, 1, 2**62 + 1] for found in ranks)


def test_uneven_batches_are_refused_on_every_rank(ranks):
    for found in ranks:
        assert "same shape" in found["uneven"] and "dataloader_drop_last" in found["uneven"]
        assert "rank 0: (2, 6), rank 1: (3, 6)" in found["uneven"]


def test_one_pair_per_rank_has_negatives(ranks):
    assert all(found["single"] > 0 for found in ranks)


def test_identity_on_one_process():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather_with_grad(tensor) is tensor and gather(tensor) is tensor
    assert (rank(), world_size()) == (0, 1)


def test_scalar_is_refused():
    with pytest.raises(ValueError, match="`tensor` must have at least one dimension"):
        check_same_shape(torch.tensor(1.0))
