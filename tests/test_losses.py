"""The losses against their formulas, spelled out with loops in float64."""

import math

import pytest
import torch

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


BY_HAND = {"nt_xent": nt_xent_by_hand, "info_nce": info_nce_by_hand}
DUPLICATES = torch.tensor([7, 8, 7, 9, 7, 10, 8])


def pairs(number=7, dim=5, dtype=torch.float32):
    return torch.randn(number, dim).to(dtype), 3 * torch.randn(number, dim).to(dtype)


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


def test_scale_of_the_embeddings_does_not_matter():
    queries, anchors = pairs()
    scaled = target_anchored_contrastive_loss(queries * torch.rand(7, 1).add(0.1), 100 * anchors)
    torch.testing.assert_close(scaled, target_anchored_contrastive_loss(queries, anchors))


def test_module_holds_the_options():
    queries, anchors = pairs()
    module = TargetAnchoredContrastiveLoss(0.2, "info_nce", mask_duplicates=True, gather_across_devices=False)
    assert list(module.parameters()) == []
    assert "temperature=0.2, loss_type='info_nce', mask_duplicates=True" in repr(module)
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
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        target_anchored_contrastive_loss(queries[:1], anchors[:1])
    with pytest.raises(
        ValueError, match=r"`text_ids` must hold one integer per anchor, shape \(7,\), got shape \(6,\)"
    ):
        target_anchored_contrastive_loss(queries, anchors, text_ids=torch.arange(6))
    with pytest.raises(ValueError, match="of torch.float32"):
        target_anchored_contrastive_loss(queries, anchors, text_ids=torch.zeros(7))
