"""Ranks and ranked lists against plain sorting, with ties, blocks, copies, and everything that must be refused."""

import itertools
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from rtd_hf.metrics import TIES, average_precision_at_k, rank_targets, recall_at_k, top_k
from rtd_hf.similarity import BlockwiseSimilarity


def padded(lists, width=None):
    width = width or max(map(len, lists))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in lists])


def random_task(num_queries=23, num_items=300, dim=16, max_targets=5, max_excluded=3):
    """Features and, for each query, different targets and excluded items."""
    queries, gallery = torch.randn(num_queries, dim), torch.randn(num_items, dim)
    targets, exclude = [], []
    for _ in range(num_queries):
        drawn = torch.randperm(num_items).tolist()
        number = int(torch.randint(1, max_targets + 1, ()))
        targets.append(drawn[:number])
        exclude.append(drawn[number : number + int(torch.randint(0, max_excluded + 1, ()))])
    return queries, gallery, padded(targets, max_targets), padded(exclude, max_excluded)


def integer_task(**sizes):
    """Small integers: dot products are exact in any order, and many are equal."""
    queries, gallery, targets, exclude = random_task(**sizes)
    return queries.mul(1.5).round(), gallery.mul(1.5).round(), targets, exclude


def ranks_by_sorting(scores, targets, exclude, candidates=None, ties="pessimistic"):
    """One query after the other, by sorting the items with Python; `scores` (Q, N)."""
    ranks, num_tied = [], []
    for query, row in enumerate(scores.tolist()):
        wanted = [item for item in targets[query].tolist() if item >= 0]
        removed = set() if exclude is None else set(exclude[query].tolist())
        items = range(len(row)) if candidates is None else candidates[query].tolist()
        items = [item for item in items if item >= 0 and item not in removed]
        side = 1 if ties == "pessimistic" else -1
        # Among equals: the targets last and the first of them the very last, or all of it the other way round.
        order = sorted(
            items,
            key=lambda item: (
                -row[item],
                side * (item in wanted),
                -side * wanted.index(item) if item in wanted else 0,
            ),
        )
        found = [order.index(item) for item in wanted]
        ranks.append(found + [-1] * (targets.shape[1] - len(found)))
        num_tied.append(sum(row[item] in {row[other] for other in wanted} for item in items if item not in wanted))
    return torch.tensor(ranks), torch.tensor(num_tied)


def cosine(queries, gallery):
    normalize = torch.nn.functional.normalize
    return normalize(queries.double(), dim=1) @ normalize(gallery.double(), dim=1).T


# ------------------------------------------------------------------------------------------------------------- ranking


@pytest.mark.parametrize("with_exclude", [False, True])
def test_ranks_are_those_of_sorting(with_exclude):
    queries, gallery, targets, exclude = random_task()
    exclude = exclude if with_exclude else None
    found = rank_targets(queries, gallery, targets, exclude=exclude)
    expected, _ = ranks_by_sorting(cosine(queries, gallery), targets, exclude)
    assert found.ranks.dtype == torch.int64 and found.ranks.equal(expected)
    assert found.num_tied.eq(0).all() and found.num_tied_queries == 0


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("num_items", [40, 300])
def test_ranks_with_ties_are_those_of_sorting(ties, num_items):
    queries, gallery, targets, exclude = integer_task(num_items=num_items, dim=4)
    found = rank_targets(queries, gallery, targets, exclude=exclude, ties=ties, normalize=False)
    ranks, num_tied = ranks_by_sorting(queries @ gallery.T, targets, exclude, ties=ties)
    assert found.ranks.equal(ranks) and found.num_tied.equal(num_tied)
    assert found.num_tied_queries == num_tied.gt(0).sum() > len(queries) / 2


def test_three_ways_with_ties():
    #                         higher  target  equal  equal  lower
    gallery = torch.tensor([[2.0], [1.0], [1.0], [1.0], [0.0]])
    query, target = torch.ones(1, 1), torch.tensor([[1]])
    found = {ties: rank_targets(query, gallery, target, ties=ties, normalize=False) for ties in TIES}
    assert {ties: ranks.ranks.item() for ties, ranks in found.items()} == {
        "pessimistic": 3,
        "optimistic": 1,
        "mean": 2.0,
    }
    assert all(ranks.num_tied.tolist() == [2] for ranks in found.values())


@pytest.mark.parametrize("num_targets, num_others", [(1, 3), (2, 0), (2, 1), (3, 2)])
def test_mean_ties_are_the_mean_over_all_orders(num_targets, num_others):
    num_items = num_targets + num_others
    places = torch.tensor(
        [
            sorted(order.index(item) for item in range(num_targets))
            for order in itertools.permutations(range(num_items))
        ]
    )
    gallery = torch.cat([torch.ones(num_items, 2), 2 * torch.ones(1, 2), torch.zeros(1, 2)])
    found = rank_targets(
        torch.ones(1, 2), gallery, torch.arange(num_targets)[None], ties="mean", normalize=False
    ).ranks
    torch.testing.assert_close(found[0], 1 + places.float().mean(dim=0))  # one item is above them all


def test_tied_targets_do_not_push_each_other_down():
    found = rank_targets(torch.ones(1, 3), torch.ones(5, 3), torch.tensor([[0, 1, 2, 3, 4]]))
    assert sorted(found.ranks[0].tolist()) == [0, 1, 2, 3, 4] and found.num_tied.tolist() == [0]
    assert average_precision_at_k(found, 5).item() == 1


@pytest.mark.parametrize("num_items", [10, 63, 1001])
@pytest.mark.parametrize("num_queries", [1, 7])
def test_a_collapsed_model_ties_with_everything(num_items, num_queries):
    """Equal features must give equal bits, wherever they stand: else some of the copies lose to the target."""
    gallery = torch.randn(64).expand(num_items, 64)
    targets = torch.arange(num_queries)[:, None]
    found = rank_targets(torch.randn(num_queries, 64), gallery, targets)
    assert found.ranks.eq(num_items - 1).all() and found.num_tied.eq(num_items - 1).all()
    assert recall_at_k(found, num_items - 1).sum() == 0


@pytest.mark.parametrize("dim", [33, 64, 512, 768])
@pytest.mark.parametrize("num_candidates", [3, 10, 15, 63])
def test_a_collapsed_model_ties_with_every_candidate(dim, num_candidates):
    gallery, candidates = torch.randn(dim).expand(100, dim), torch.randperm(100)[None, :num_candidates]
    found = rank_targets(torch.randn(1, dim), gallery, candidates[:, :1], candidates=candidates)
    assert found.ranks.item() == found.num_tied.item() == num_candidates - 1


@pytest.mark.parametrize("query_block, gallery_block", [(1, 1), (5, 128), (23, 300), (7, 640), (256, 8192)])
def test_blocks_change_nothing(query_block, gallery_block):
    queries, gallery, targets, exclude = random_task(num_items=700, dim=48)
    # Copies of targets far away: in another block, and in the corner of the last one.
    gallery[-1], gallery[0] = gallery[targets[0, 0]].clone(), gallery[targets[1, 0]].clone()
    targets[targets == 0], targets[targets == 699] = 1, 698
    exclude[(exclude == 0) | (exclude == 699)] = -1
    options = {"exclude": exclude, "query_block": query_block, "gallery_block": gallery_block}
    found = rank_targets(queries, gallery, targets, **options)
    expected, num_tied = ranks_by_sorting(cosine(queries, gallery).float(), targets, exclude)
    assert found.num_tied.equal(num_tied) and found.num_tied_queries >= 2
    assert found.ranks.equal(expected)
    best = top_k(queries, gallery, 20, **options)
    everything = top_k(queries, gallery, 20, exclude=exclude)
    assert best.indices.equal(everything.indices)
    torch.testing.assert_close(best.scores, everything.scores)


class LargestTensor(TorchFunctionMode):
    size = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_nested:
            self.size = max(self.size, result.numel())
        return result


@pytest.mark.parametrize("task", ["ranks", "top_k", "candidates"])
def test_no_tensor_is_as_large_as_queries_times_gallery(task):
    num_queries, num_items, dim = 400, 3000, 8
    queries, gallery = torch.randn(num_queries, dim), torch.randn(num_items, dim)
    targets = torch.arange(num_queries)[:, None]
    blocks = {"query_block": 16, "gallery_block": 256}
    with LargestTensor() as largest:
        if task == "top_k":
            top_k(queries, gallery, 10, **blocks)
        elif task == "ranks":
            rank_targets(queries, gallery, targets, **blocks)
        else:
            rank_targets(queries, gallery, targets, candidates=targets + torch.arange(20), **blocks)
    # The views of the features themselves are larger than a block of scores.
    assert 16 * 256 <= largest.size <= num_items * dim


def test_cirr_removes_the_reference_and_ranks_the_subset():
    # Scores by position: the reference (0) is most like the query, the target (3) comes third of the others.
    gallery = torch.tensor([[9.0], [8.0], [7.0], [6.0], [5.0], [4.0]])
    query, target, reference = torch.ones(1, 1), torch.tensor([[3]]), torch.tensor([[0]])
    members = torch.tensor([[3, 0, 1, 4, 5, -1]])

    def rank(**options):
        return rank_targets(query, gallery, target, normalize=False, **options).ranks.item()

    assert rank() == 3
    assert rank(exclude=reference) == 2
    assert rank(candidates=members) == 2
    assert rank(candidates=members, exclude=reference) == 1
    assert rank(candidates=members, exclude=torch.tensor([[0, 1]])) == 0


def test_subset_is_the_full_ranking_restricted():
    queries, gallery, targets, exclude = integer_task(dim=4)
    others = torch.stack([torch.randperm(300)[:40] for _ in queries])
    others[(others[:, :, None] == targets[:, None, :]).any(2)] = -1
    candidates = torch.cat([others, targets], dim=1)[:, torch.randperm(45)]
    for ties in ("pessimistic", "optimistic"):
        options = {"candidates": candidates, "exclude": exclude, "ties": ties, "normalize": False}
        found = rank_targets(queries, gallery, targets, **options)
        ranks, num_tied = ranks_by_sorting(queries @ gallery.T, targets, exclude, candidates, ties)
        assert found.ranks.equal(ranks) and found.num_tied.equal(num_tied)
        # Fewer rows of candidates fit into a smaller block.
        assert rank_targets(queries, gallery, targets, gallery_block=1, **options).ranks.equal(ranks)


def test_a_candidate_that_is_listed_twice_ties_with_the_target():
    gallery, target = torch.eye(4), torch.tensor([[2]])
    found = rank_targets(gallery[2:3], gallery, target, candidates=torch.tensor([[2, 0, 1, 2]]))
    assert found.ranks.item() == 1 and found.num_tied.tolist() == [1]


def test_half_precision_features_are_compared_in_float32():
    direction = torch.randn(64)
    queries, gallery = (direction + 0.2 * torch.randn(50, 64)).half(), (direction + 0.2 * torch.randn(500, 64)).half()
    targets = torch.arange(50)[:, None]
    found = rank_targets(queries, gallery, targets)
    assert found.ranks.equal(rank_targets(queries.float(), gallery.float(), targets).ranks)
    # In so narrow a cone even float32 puts a neighbour or two on the other side.
    expected, _ = ranks_by_sorting(cosine(queries, gallery), targets, None)
    assert (found.ranks - expected).abs().max() <= 1 and found.num_tied_queries <= 3
    # What this guards against: the same comparison in half precision.
    half = queries @ gallery.T
    assert ((half == half.gather(1, targets)).sum(1) > 1).sum() > 10


SET_PRECISION = {
    "older": lambda: torch.set_float32_matmul_precision("medium"),
    "newer": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "newest": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has the older interface only")
@pytest.mark.parametrize("interface", SET_PRECISION)
def test_reduced_matmul_precision_is_off_inside_and_back_after(interface):
    owners = [torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    queries, gallery, targets, _ = random_task(num_queries=64, num_items=4000, dim=64)
    expected = rank_targets(queries, gallery, targets)
    before = [owner.fp32_precision for owner in owners]
    inside = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in ("matmul", "__matmul__"):
                inside.append([owner.fp32_precision for owner in owners] + [torch.is_autocast_enabled("cpu")])
            return func(*args, **(kwargs or {}))

    try:
        SET_PRECISION[interface]()
        reduced = [owner.fp32_precision for owner in owners]
        assert reduced != before
        with Spy(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = rank_targets(queries, gallery, targets)
        assert [owner.fp32_precision for owner in owners] == reduced
    finally:
        if interface == "older":
            torch.set_float32_matmul_precision("highest")
        for owner, precision in zip(owners, before, strict=True):
            owner.fp32_precision = precision
    assert inside and all(set(values) <= {"none", "ieee", False} for values in inside)
    assert found.ranks.equal(expected.ranks)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["queries", "gallery"])
@pytest.mark.parametrize("function", ["rank_targets", "top_k"])
def test_features_that_are_not_finite_are_refused(side, value, function):
    features = {"queries": torch.randn(5, 4), "gallery": torch.randn(9, 4)}
    features[side][[1, 3], 2] = value
    with pytest.raises(
        ValueError, match=rf"`{side}` must be finite, .* in 2 of {len(features[side])} rows .* row 1\)"
    ):
        if function == "top_k":
            top_k(*features.values(), 2, gallery_block=2)
        else:
            rank_targets(*features.values(), torch.zeros(5, 1, dtype=int), gallery_block=2)


def test_overflow_is_refused():
    large = torch.full((2, 4), 3e38)
    with pytest.raises(ValueError, match="norm of some features overflows"):
        rank_targets(torch.ones(1, 4), large, torch.tensor([[0]]))
    with pytest.raises(ValueError, match="products of `queries` and `gallery` overflow"):
        rank_targets(torch.ones(1, 4), large, torch.tensor([[0]]), normalize=False)
    with pytest.raises(ValueError, match="products of `queries` and `gallery` overflow"):
        rank_targets(torch.ones(1, 4), large, torch.tensor([[0]]), candidates=torch.tensor([[0]]), normalize=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": [[0], [-1]]}, r"1 of 2 queries have no target \(the first is query 1\)"),
        ({"targets": [[0, 1], [2, 2]]}, r"have a target twice \(the first is query 1\)"),
        ({"targets": [[0], [1]], "exclude": [[0], [0]]}, r"have a target in `exclude` \(the first is query 0\)"),
        ({"targets": [[0], [3]]}, r"`targets` must hold gallery positions from 0 to 2, .* got 3 and 0 more"),
        ({"targets": [[0], [-2]]}, "got -2"),
        ({"targets": [[0.0], [1.0]]}, "`targets` must hold integer gallery positions, got torch.float32"),
        ({"targets": [[0]]}, r"`targets` must be of shape \(2, any\), .* got \(1, 1\)"),
        ({"targets": [0, 1]}, r"got \(2,\)"),
        ({"exclude": [[3], [-1]]}, "`exclude` must hold gallery positions"),
        ({"candidates": [[0, 1], [0, 2]]}, "`candidates` must hold every query's targets, but lacks one of query 1"),
        ({"ties": "random"}, "`ties` must be one of pessimistic, optimistic, mean, got 'random'"),
        ({"query_block": 0}, "`query_block` must be at least 1, got 0"),
        ({"queries": [[1.0], [2.0]]}, r"with the same D, got \(2, 1\) and \(3, 2\)"),
        ({"queries": [[1, 1], [1, 1]]}, "`queries` must hold floating point features, got torch.int64"),
        ({"gallery": [[], [], []], "queries": [[], []]}, "`queries` must not be empty"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"queries": [[1.0, 0.0]] * 2, "gallery": [[1.0, 0.0]] * 3, "targets": [[0], [1]], **change}
    arguments = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        rank_targets(arguments.pop("queries"), arguments.pop("gallery"), arguments.pop("targets"), **arguments)


# --------------------------------------------------------------------------------------------------------------- top-k


@pytest.mark.parametrize("gallery_block", [128, 8192])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_top_k_is_a_stable_sort(k, gallery_block):
    queries, gallery, _, exclude = integer_task(dim=4)
    scores = queries @ gallery.T
    for query, row in enumerate(exclude.tolist()):
        scores[query, [item for item in row if item >= 0]] = -torch.inf
    expected, order = scores.sort(dim=1, descending=True, stable=True)
    assert (expected[:, k - 1] == expected[:, k]).any()  # something does tie across the end of the list
    found = top_k(queries, gallery, k, exclude=exclude, normalize=False, gallery_block=gallery_block)
    assert found.indices.equal(order[:, :k]) and found.scores.equal(expected[:, :k])


def test_top_k_of_equal_items_is_the_order_of_the_gallery():
    gallery = torch.randn(33).expand(1001, 33)
    assert top_k(torch.randn(3, 33), gallery, 50, gallery_block=128).indices.equal(torch.arange(50).expand(3, 50))


def test_top_k_of_candidates():
    gallery = torch.tensor([[1.0], [5.0], [3.0], [5.0], [4.0]])
    candidates = torch.tensor([[4, 3, 1, -1, 3, 0]])
    found = top_k(torch.ones(1, 1), gallery, 3, candidates=candidates, exclude=torch.tensor([[4]]), normalize=False)
    assert found.indices.tolist() == [[1, 3, 0]] and found.scores.tolist() == [[5.0, 5.0, 1.0]]


def test_top_k_never_hands_out_less_than_asked_for():
    queries, gallery = torch.randn(3, 4), torch.randn(10, 4)
    exclude = torch.tensor([[-1, -1], [4, -1], [5, 6]])
    assert top_k(queries, gallery, 8, exclude=exclude).indices.sort().values[2].tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    with pytest.raises(ValueError, match="`k` must not exceed the items to choose from, got 9, but query 2 has 8"):
        top_k(queries, gallery, 9, exclude=exclude)
    with pytest.raises(ValueError, match="got 200, but query 0 has 10"):
        top_k(queries, gallery, 200)
    with pytest.raises(ValueError, match="got 3, but query 0 has 2"):
        top_k(queries, gallery, 3, candidates=torch.tensor([[1, 2, 2]] * 3))
    for k in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="`k` must be an integer of at least 1"):
            top_k(queries, gallery, k)


# ----------------------------------------------------------------------------------------- what the blocks are made of


@pytest.mark.parametrize("gallery_block", [128, 512, 4096])
@pytest.mark.parametrize("num_items", [100, 700, 1500])
def test_scores_of_single_items_are_those_of_their_blocks_bit_for_bit(num_items, gallery_block):
    queries, gallery = torch.randn(300, 96), torch.randn(num_items, 96)
    positions = torch.randint(num_items, (300, 3))
    positions[::5, 1:] = -1
    similarity = BlockwiseSimilarity(queries, gallery, query_block=64, gallery_block=gallery_block)
    whole = torch.full((300, num_items), torch.nan)
    for rows, first, scores in similarity.scores():
        whole[rows, first : first + scores.shape[1]] = scores
    torch.testing.assert_close(whole.double(), cosine(queries, gallery), rtol=0, atol=1e-6)
    found = similarity.scores_of(positions)
    assert found.isnan().equal(positions < 0)
    assert found[positions >= 0].equal(whole.gather(1, positions.clamp(min=0))[positions >= 0])


@pytest.mark.parametrize("kind", ["slice", "half", "strided"])
def test_galleries_that_lie_differently_in_memory_rank_the_same(kind):
    queries, targets = torch.randn(40, 24), torch.randint(900, (40, 1))
    memory = torch.randn(901, 48).half().float()
    gallery = {"slice": memory[1:, :24].contiguous(), "half": memory[1:, :24], "strided": memory[1:, ::2]}[kind]
    expected = rank_targets(queries, gallery.clone(memory_format=torch.contiguous_format), targets)
    if kind == "half":
        gallery = gallery.half()
    elif kind == "slice":
        gallery = torch.cat([torch.zeros(1, 24), gallery])[1:]
    assert rank_targets(queries, gallery, targets).ranks.equal(expected.ranks)
    assert top_k(queries, gallery, 9).indices.equal(top_k(queries, gallery.float().contiguous(), 9).indices)


def test_nothing_is_as_large_as_the_gallery():
    queries, gallery = torch.randn(30, 64), torch.randn(20000, 64)
    views = {gallery.data_ptr()}

    class Copies(TorchFunctionMode):
        size = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.data_ptr() not in views and result._base is None:
                self.size = max(self.size, result.numel())
            return result

    with Copies() as copies:
        rank_targets(queries, gallery, torch.arange(30)[:, None], gallery_block=1024)
    # A block of scores, a tile that is filled up, the lengths of the items: none grows as N times D.
    assert 0 < copies.size <= 512 * 64
