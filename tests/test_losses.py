"""The losses against their formulas, spelled out with loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from rtd_hf import losses
from rtd_hf.losses import LOSS_TYPES, TargetAnchoredContrastiveLoss, target_anchored_contrastive_loss


def nt_xent_by_hand(queries, anchors, temperature, text_ids=None):
    """-(1/2N) sum_k [s_kp - log sum_{l != k} exp s_kl], one term after the other, in the inputs' type."""
    vectors = [vector / vector.norm() for vector in [*anchors, *queries]]
    number = len(anchors)
    texts = list(range(number)) if text_ids is None else text_ids.tolist()
    total = 0.0
    for k in range(2 * number):
        partner = (k + number) % (2 * number)
        denominator = 0.0
        for other in range(2 * number):
            same_text = texts[k % number] == texts[other % number]
            if other == k or (same_text and other != partner):
                continue
            denominator = denominator + torch.exp(vectors[k] @ vectors[other] / temperature)
        total = total - torch.log(torch.exp(vectors[k] @ vectors[partner] / temperature) / denominator)
    return total / (2 * number)


def info_nce_by_hand(queries, anchors, temperature, text_ids=None):
    queries, anchors = ([vector / vector.norm() for vector in side] for side in (queries, anchors))
    number = len(anchors)
    texts = list(range(number)) if text_ids is None else text_ids.tolist()
    total = 0.0
    for rows, columns in ((queries, anchors), (anchors, queries)):
        for i in range(number):
            denominator = 0.0
            for j in range(number):
                if i == j or texts[i] != texts[j]:
                    denominator = denominator + torch.exp(rows[i] @ columns[j] / temperature)
            total = total - torch.log(torch.exp(rows[i] @ columns[i] / temperature) / denominator)
    return total / (2 * number)


def whole_matrix(queries, anchors, temperature, loss_type="nt_xent", text_ids=None):
    """The same in float32 with PyTorch's own cross-entropy and gradient, all rows and columns at once."""
    number = len(queries)
    queries, anchors = (F.normalize(side.float(), dim=1) for side in (queries, anchors))
    texts = torch.arange(number) if text_ids is None else text_ids
    same, diagonal = texts[:, None] == texts, torch.eye(number, dtype=bool)
    if loss_type == "nt_xent":
        logits = torch.cat([queries, anchors]) @ torch.cat([queries, anchors]).T
        hidden = torch.cat([torch.cat([same, same ^ diagonal], 1), torch.cat([same ^ diagonal, same], 1)])
        partners = torch.arange(2 * number).roll(number)
    else:
        logits = torch.cat([queries @ anchors.T, anchors @ queries.T])
        hidden = (same ^ diagonal).repeat(2, 1)
        partners = torch.arange(number).repeat(2)
    return F.cross_entropy((logits / temperature).masked_fill(hidden, -torch.inf), partners)


BY_HAND = {"nt_xent": nt_xent_by_hand, "info_nce": info_nce_by_hand}
DUPLICATES = torch.tensor([7, 8, 7, 9, 7, 10, 8])


def pairs(number=7, dim=5, dtype=torch.float32):
    return torch.randn(number, dim).to(dtype), 3 * torch.randn(number, dim).to(dtype)


def exact_pairs(number=7, dim=64, dtype=torch.float32):
    """Entries of -1 and 1 in 64 dimensions: norms and cosines are exact in float32, whatever the order of sums."""
    return [torch.randn(number, dim).sign().to(dtype).requires_grad_() for _ in range(2)]


def assert_relatively_close(actual, expected, tolerance):
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


class Watch(TorchDispatchMode):
    """Operations as they come to the kernels: their names, the matrix products, the memory of all results alive."""

    def __init__(self):
        super().__init__()
        self.names, self.alive, self.peak = set(), {}, 0
        self.multiplications, self.precisions = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.add(name)
        if name in ("mm", "addmm", "addmm_", "bmm"):
            left, right = [arg for arg in args if isinstance(arg, torch.Tensor)][-2:]
            self.multiplications += left.numel() * right.shape[-1]
            self.precisions.append(matmul_precisions())
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor):
                storage = result.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: found for key, found in self.alive.items() if not found[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return results


def test_every_type_has_an_oracle():
    assert set(LOSS_TYPES) == set(BY_HAND)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
@pytest.mark.parametrize("number, dim", [(2, 3), (7, 5), (7, 64)])
def test_loss_is_the_formula(loss_type, temperature, number, dim):
    queries, anchors = pairs(number, dim)
    loss = target_anchored_contrastive_loss(queries, anchors, temperature, loss_type=loss_type)
    expected = BY_HAND[loss_type](queries.double(), anchors.double(), temperature)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_masks_duplicate_texts(loss_type):
    queries, anchors = pairs()
    # As in a batch: equal texts have equal anchors.
    anchors[2], anchors[4], anchors[6] = anchors[0], anchors[0], anchors[1]
    loss = target_anchored_contrastive_loss(queries, anchors, 0.1, loss_type=loss_type, text_ids=DUPLICATES)
    expected = BY_HAND[loss_type](queries.double(), anchors.double(), 0.1, DUPLICATES)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = target_anchored_contrastive_loss(queries, anchors, 0.1, loss_type=loss_type)
    assert loss < plain - 0.01
    distinct = target_anchored_contrastive_loss(
        queries, anchors, 0.1, loss_type=loss_type, text_ids=torch.arange(7) + 2**62
    )
    assert distinct == plain


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_of_one_text_costs_nothing(loss_type):
    queries, anchors = pairs()
    queries.requires_grad_()
    loss = target_anchored_contrastive_loss(queries, anchors, loss_type=loss_type, text_ids=torch.zeros(7, dtype=int))
    loss.backward()
    assert loss == 0 and queries.grad.abs().max() == 0


def test_nt_xent_is_the_published_form_of_sums():
    """The published code: exp of everything, the diagonal subtracted from the sum, log at the end."""
    queries, anchors = pairs(16, 32)
    vectors = torch.nn.functional.normalize(torch.cat([anchors, queries]).double(), dim=1)
    exponentials = (vectors @ vectors.T / 0.07).exp()
    positives = (vectors[:16] * vectors[16:]).sum(1).div(0.07).exp().repeat(2)
    expected = -(positives / (exponentials.sum(1) - exponentials.diagonal())).log().mean()
    assert target_anchored_contrastive_loss(queries, anchors).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("number", [2, 5, 33])
def test_zero_embeddings_leave_chance(number):
    zeros = torch.zeros(number, 8)
    assert target_anchored_contrastive_loss(zeros, zeros).item() == pytest.approx(math.log(2 * number - 1), rel=1e-6)
    info_nce = target_anchored_contrastive_loss(zeros, zeros, loss_type="info_nce")
    assert info_nce.item() == pytest.approx(math.log(number), rel=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("text_ids", [None, DUPLICATES], ids=["plain", "masked"])
def test_gradient_is_that_of_the_formula(loss_type, text_ids):
    sides = [side.requires_grad_() for side in pairs()]
    doubles = [side.detach().double().requires_grad_() for side in sides]
    target_anchored_contrastive_loss(*sides, 0.1, loss_type=loss_type, text_ids=text_ids).backward()
    BY_HAND[loss_type](*doubles, 0.1, text_ids).backward()
    for side, double in zip(sides, doubles, strict=True):
        assert double.grad.abs().max() > 0.01
        torch.testing.assert_close(side.grad.double(), double.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_temperature_stays_finite(loss_type, dtype):
    queries, anchors = pairs(dtype=dtype)
    queries[0] = anchors[0]  # cosine 1: exp(1000) has no place in any of these types
    queries[1] = -anchors[1]
    queries.requires_grad_()
    loss = target_anchored_contrastive_loss(queries, anchors, 0.001, loss_type=loss_type)
    loss.backward()
    assert loss.isfinite() and loss > 100
    assert queries.grad.isfinite().all() and queries.grad.abs().max() > 1


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_half_precision_inputs_are_computed_in_float32(loss_type):
    queries, anchors = pairs(32, 64, dtype=torch.bfloat16)
    loss = target_anchored_contrastive_loss(queries, anchors, 0.02, loss_type=loss_type)
    in_float = target_anchored_contrastive_loss(queries.float(), anchors.float(), 0.02, loss_type=loss_type)
    assert loss.dtype == torch.float32 and loss == in_float


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_autocast_does_not_reach_the_loss(loss_type):
    queries, anchors = pairs(32, 64)
    outside = target_anchored_contrastive_loss(queries, anchors, 0.02, loss_type=loss_type)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (queries @ anchors.T).dtype == torch.bfloat16
        inside = target_anchored_contrastive_loss(queries, anchors, 0.02, loss_type=loss_type)
    assert inside == outside


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("text_ids", [None, DUPLICATES], ids=["plain", "masked"])
@pytest.mark.parametrize("temperature", [0.07, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_size", [1, 3, 7, 8, None])
def test_blocks_equal_the_whole_matrix(loss_type, text_ids, temperature, dtype, block_size):
    sides = exact_pairs(dtype=dtype)
    options = {"loss_type": loss_type, "text_ids": text_ids}
    loss = target_anchored_contrastive_loss(*sides, temperature, block_size=block_size, **options)
    expected = whole_matrix(*sides, temperature, **options)
    assert_relatively_close(loss, expected, 1e-6)
    # Gradients come in the type of the embeddings, rounded.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    found, wanted = (torch.autograd.grad(3 * value, sides) for value in (loss, expected))
    for gradient, want in zip(found, wanted, strict=True):
        assert gradient.dtype == dtype
        assert_relatively_close(gradient, want, tolerance)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_of_either_side_alone(loss_type):
    sides = exact_pairs()
    both = torch.autograd.grad(whole_matrix(*sides, 0.1, loss_type), sides)
    for trained in range(2):
        mixed = [side if number == trained else side.detach() for number, side in enumerate(sides)]
        loss = target_anchored_contrastive_loss(*mixed, 0.1, loss_type=loss_type, block_size=3)
        assert_relatively_close(torch.autograd.grad(loss, sides[trained])[0], both[trained], 1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_large_matrix_is_cut_by_itself(loss_type, monkeypatch):
    sides = exact_pairs(16)
    expected = whole_matrix(*sides, 0.1, loss_type)
    columns = {"nt_xent": 32, "info_nce": 16}[loss_type]
    # Four rows at a time, and one where not even a single row fits.
    for limit, blocks in ((16 * columns, 2), (4 * columns + 3, 8), (columns - 1, 32)):
        monkeypatch.setattr(losses, "_MAX_BLOCK_ELEMENTS", limit)
        with Watch() as watch, torch.no_grad():
            loss = target_anchored_contrastive_loss(*sides, 0.1, loss_type=loss_type)
        assert len(watch.precisions) == blocks
        assert_relatively_close(loss, expected, 1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_two_blocks_are_alive_at_a_time(loss_type, masked):
    number = 512
    text_ids = torch.arange(number) // 2 if masked else None

    def peak(block_size):
        sides = [side.requires_grad_() for side in pairs(number, 4)]
        with Watch() as watch:
            options = {"loss_type": loss_type, "text_ids": text_ids, "block_size": block_size}
            target_anchored_contrastive_loss(*sides, 0.1, **options).backward()
        assert sides[0].grad.abs().max() > 0
        return watch.peak

    row, embeds = {"nt_xent": 2, "info_nce": 1}[loss_type] * number * 4, number * 4 * 4
    # Logits and their log-softmax; what else is alive then does not depend on the block.
    assert peak(32) - peak(16) == pytest.approx(2 * 16 * row, rel=0.01)
    assert peak(16) < 2 * 16 * row + 16 * embeds


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_nothing_is_computed_for_gradients_that_nobody_needs(loss_type):
    matrix = {"nt_xent": 2 * 9 * 2 * 9, "info_nce": 2 * 9 * 9}[loss_type] * 64
    for trained, factor in (((True, True), 3), ((True, False), 2), ((False, True), 2), ((False, False), 1)):
        sides = [side.requires_grad_(train) for side, train in zip(exact_pairs(9), trained, strict=True)]
        with Watch() as watch:
            loss = target_anchored_contrastive_loss(*sides, loss_type=loss_type, block_size=4)
        assert loss.requires_grad == any(trained) == ("exp_" in watch.names)
        assert watch.multiplications == factor * matrix
    with Watch() as watch, torch.no_grad():
        target_anchored_contrastive_loss(*exact_pairs(9), loss_type=loss_type)
    assert watch.multiplications == matrix


def test_gradient_is_given_twice_and_has_no_gradient():
    queries, anchors = exact_pairs()
    loss = target_anchored_contrastive_loss(queries, anchors.detach())
    first, again = (torch.autograd.grad(loss, queries, retain_graph=True)[0] for _ in range(2))
    assert first.equal(again) and first.abs().max() > 0
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, queries, create_graph=True)


# ------------------------------------------------------------------------------------------------- TF32 and bfloat16
def precision_settings():
    if not hasattr(torch.backends, "fp32_precision"):
        return []
    return [torch.backends, torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]


def older_precision():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "disagrees"


def matmul_precisions():
    """What matrix products are allowed now, through each interface that this PyTorch has."""
    newer = [setting.fp32_precision for setting in precision_settings()[2:]]
    return older_precision(), *newer, torch.is_autocast_enabled("cpu")


def unwind_precision():
    """Takes back one setting after the other, and tells what each step uncovers: two equal states give equal lists."""
    uncovered = []
    for setting in precision_settings():
        uncovered.append((setting.fp32_precision, *matmul_precisions()))
        setting.fp32_precision = "none"
    uncovered.append(older_precision())
    torch.set_float32_matmul_precision("highest")
    for setting in precision_settings():
        setting.fp32_precision = "none"
    return uncovered


def older(precision):
    torch.set_float32_matmul_precision(precision)


def newer(*names, precision="tf32"):
    for name in names:
        precision_settings()[name].fp32_precision = precision


WHOLE, CUDNN, CUDA, MKLDNN = range(4)
ALLOW = {
    "high": lambda: older("high"),
    "medium": lambda: older("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "whole": lambda: newer(WHOLE),
    "cudnn": lambda: newer(CUDNN),
    "cuda": lambda: newer(CUDA),
    "bf16": lambda: newer(MKLDNN, precision="bf16"),
    "whole and cuda": lambda: newer(WHOLE, CUDA),
    "mixed": lambda: (older("high"), newer(MKLDNN, precision="bf16")),
    "taken back": lambda: (older("high"), newer(CUDA, MKLDNN, precision="ieee")),
}


@pytest.fixture
def restored_precision():
    yield
    unwind_precision()


@pytest.mark.skipif(not precision_settings(), reason="this torch has the older interface only")
@pytest.mark.parametrize("case", ALLOW)
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_products_are_in_full_float32_and_the_setting_is_back_after(case, fails, restored_precision, monkeypatch):
    sides = exact_pairs()
    before = torch.autograd.grad(target_anchored_contrastive_loss(*sides, 0.01, block_size=4), sides)
    unwind_precision()
    ALLOW[case]()
    assert matmul_precisions() != ("highest", "none", "none", False)
    expected = unwind_precision()

    ALLOW[case]()
    if fails:
        monkeypatch.setattr(torch.Tensor, "log_softmax", lambda *args, **kwargs: 1 / 0)
    with Watch() as watch, torch.autocast("cpu", dtype=torch.bfloat16):
        if fails:
            with pytest.raises(ZeroDivisionError):
                target_anchored_contrastive_loss(*sides)
        else:
            after = torch.autograd.grad(target_anchored_contrastive_loss(*sides, 0.01, block_size=4), sides)
            assert all(one.equal(other) for one, other in zip(before, after, strict=True))
        assert torch.is_autocast_enabled("cpu")
    assert set(watch.precisions) == {("highest", "ieee", "ieee", False)}
    assert unwind_precision() == expected


def test_the_older_interface_is_enough(restored_precision, monkeypatch):
    """As PyTorch was before 2.9."""
    monkeypatch.delattr(type(torch.backends), "fp32_precision", raising=False)
    torch.set_float32_matmul_precision("medium")
    with Watch() as watch:
        target_anchored_contrastive_loss(*exact_pairs()).backward()
    assert set(watch.precisions) == {("highest", False)}
    assert torch.get_float32_matmul_precision() == "medium"


def test_nothing_is_set_where_nothing_is_allowed(monkeypatch):
    def refuse(*args):
        raise RuntimeError("set")

    monkeypatch.setattr(torch, "set_float32_matmul_precision", refuse)
    monkeypatch.setattr(torch._C, "_set_fp32_precision_setter", refuse, raising=False)
    assert target_anchored_contrastive_loss(*pairs()).isfinite()


def test_scale_of_the_embeddings_does_not_matter():
    queries, anchors = pairs()
    scaled = target_anchored_contrastive_loss(queries * torch.rand(7, 1).add(0.1), 100 * anchors)
    torch.testing.assert_close(scaled, target_anchored_contrastive_loss(queries, anchors))


def test_module_holds_the_options():
    queries, anchors = pairs()
    module = TargetAnchoredContrastiveLoss(0.2, "info_nce", mask_duplicates=True, gather_across_devices=False)
    assert list(module.parameters()) == []
    assert "temperature=0.2, loss_type='info_nce', mask_duplicates=True" in repr(module)
    assert "block_size=None" in repr(module) and "block_size=3" in repr(TargetAnchoredContrastiveLoss(block_size=3))
    with Watch() as watch:
        TargetAnchoredContrastiveLoss(block_size=3)(queries, anchors)
    assert len(watch.precisions) == 2 * 3
    options = {"loss_type": "info_nce", "text_ids": DUPLICATES}
    assert module(queries, anchors, DUPLICATES) == target_anchored_contrastive_loss(queries, anchors, 0.2, **options)
    # Without the option the ids, which the collator always sends, change nothing.
    plain = TargetAnchoredContrastiveLoss()
    assert plain(queries, anchors, DUPLICATES) == target_anchored_contrastive_loss(queries, anchors)
    with pytest.raises(ValueError, match="`text_ids` is needed with `mask_duplicates=True`"):
        module(queries, anchors)


@pytest.mark.parametrize("temperature", [0, -0.07, math.nan, math.inf])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        target_anchored_contrastive_loss(*pairs(), temperature)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        TargetAnchoredContrastiveLoss(temperature)


def test_bad_inputs_are_refused():
    queries, anchors = pairs()
    with pytest.raises(TypeError, match="`temperature` must be a number, got str"):
        TargetAnchoredContrastiveLoss("0.07")
    with pytest.raises(ValueError, match="`loss_type` must be one of nt_xent, info_nce, got 'triplet'"):
        target_anchored_contrastive_loss(queries, anchors, loss_type="triplet")
    with pytest.raises(ValueError, match=r"got \(7, 5\) and \(6, 5\)"):
        target_anchored_contrastive_loss(queries, anchors[:6])
    with pytest.raises(ValueError, match=r"got \(7,\) and \(7,\)"):
        target_anchored_contrastive_loss(queries[:, 0], anchors[:, 0])
    for block_size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"`block_size` must be an integer of at least 1, .* got {block_size}"):
            TargetAnchoredContrastiveLoss(block_size=block_size)
        with pytest.raises(ValueError, match="`block_size` must be"):
            target_anchored_contrastive_loss(queries, anchors, block_size=block_size)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        target_anchored_contrastive_loss(queries[:1], anchors[:1])
    with pytest.raises(
        ValueError, match=r"`text_ids` must hold one integer per anchor, shape \(7,\), got shape \(6,\)"
    ):
        target_anchored_contrastive_loss(queries, anchors, text_ids=torch.arange(6))
    with pytest.raises(ValueError, match="of torch.float32"):
        target_anchored_contrastive_loss(queries, anchors, text_ids=torch.zeros(7))
