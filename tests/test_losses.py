import math

import numpy as np
import pytest
import torch

from utils.losses import PATTLoss, logit_adjusted_ce, outlier_exposure

COUNTS = [50, 20, 7, 2]
BATCH, OUTLIERS, DIM = 5, 6, 8
LABELS = torch.tensor([0, 3, 1, 0, 2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(batch=BATCH, views=3, outliers=OUTLIERS, seed=0):
    """Logits (N, C) and embeddings (N, p) of [view 1, view 2, view 3, outliers]."""
    n = views * batch + outliers
    draw = generator(seed)
    return torch.randn(n, 4, dtype=torch.float64, generator=draw), torch.randn(
        n, DIM, dtype=torch.float64, generator=draw
    )


def criterion(**settings):
    torch.manual_seed(0)
    return PATTLoss(COUNTS, DIM, **(dict(oe_weight=0.3, tla_weight=0.7) | settings)).double()


def loop_ce(scores, labels):
    """Cross-entropy, one sample at a time."""
    total = 0.0
    for row, y in zip(scores, labels, strict=True):
        total += math.log(sum(math.exp(float(v)) for v in row)) - float(row[int(y)])
    return total / len(labels)


def log_prior():
    return np.log(np.array(COUNTS) / sum(COUNTS))


def test_the_temperature_divides_the_logits_only():
    logits, _ = inputs()
    z = logits[:BATCH]
    expected = loop_ce(z.numpy() / 0.9 + log_prior(), LABELS)
    assert float(logit_adjusted_ce(z, LABELS, torch.from_numpy(log_prior()), 0.9)) == pytest.approx(
        expected, rel=1e-12
    )
    assert float(logit_adjusted_ce(z, LABELS, torch.zeros(4))) == pytest.approx(loop_ce(z, LABELS), rel=1e-12)


def test_outlier_exposure_by_a_loop_and_its_minimum():
    logits, _ = inputs()
    rows = logits[-OUTLIERS:].numpy()
    expected = np.mean([math.log(sum(math.exp(v) for v in row)) - sum(row) / len(row) for row in rows])
    assert float(outlier_exposure(logits[-OUTLIERS:])) == pytest.approx(expected, rel=1e-12)
    assert float(outlier_exposure(torch.full((3, 4), 5.0))) == pytest.approx(math.log(4), rel=1e-6)
    # It is the cross-entropy to the uniform distribution.
    uniform = torch.full_like(logits[-OUTLIERS:], 0.25)
    assert float(outlier_exposure(logits[-OUTLIERS:])) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits[-OUTLIERS:], uniform)), rel=1e-12
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_the_terms_are_those_of_the_method(normalize):
    loss = criterion(normalize=normalize, contrast_temperature=0.2, logit_temperature=0.8)
    logits, embeddings = inputs()
    terms = loss(logits, embeddings, LABELS)
    contrasted = embeddings[BATCH : 3 * BATCH]
    if normalize:
        contrasted = contrasted / contrasted.norm(dim=1, keepdim=True)
    pair_labels = torch.cat([LABELS, LABELS])
    # The statistics took in the batch before they were used.
    for c in range(4):
        mean = contrasted[pair_labels == c].mean(dim=0)
        assert torch.allclose(loss.statistics.mean_direction[c], mean / mean.norm())
    scores = loss.statistics.log_mgf(contrasted, 0.2)
    isac = loop_ce(scores.numpy() + log_prior(), pair_labels)
    tla = loop_ce(logits[:BATCH].numpy() / 0.8 + log_prior(), LABELS)
    oe = float(outlier_exposure(logits[3 * BATCH :]))
    assert float(terms["isac"]) == pytest.approx(isac, rel=1e-6)  # the prior is kept in float32
    assert float(terms["tla"]) == pytest.approx(tla, rel=1e-6)
    assert float(terms["oe"]) == pytest.approx(oe, rel=1e-12)
    assert float(terms["loss"]) == pytest.approx(isac + 0.7 * tla + 0.3 * oe, rel=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("schedule", ["epoch", "running"])
def test_gradients_by_finite_differences(normalize, schedule):
    loss = criterion(normalize=normalize, schedule=schedule)
    logits, embeddings = inputs()
    loss(logits, embeddings * 0.2, LABELS)
    loss.start_epoch()
    loss.eval()  # the statistics stay as they are: they carry no gradient
    logits.requires_grad_()
    embeddings = (embeddings * 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, e: loss(z, e, LABELS)["loss"], (logits, embeddings), atol=1e-6)


def test_the_gradient_in_training_mode_holds_the_statistics_fixed():
    loss = criterion()
    logits, embeddings = inputs()
    embeddings.requires_grad_()
    trained = torch.autograd.grad(loss(logits, embeddings, LABELS)["loss"], embeddings)[0]
    loss.eval()
    fixed = torch.autograd.grad(loss(logits, embeddings, LABELS)["loss"], embeddings)[0]
    assert torch.allclose(trained, fixed, atol=1e-12)
    assert (
        not trained[:BATCH].any() and not trained[3 * BATCH :].any()
    )  # view 1 and outliers are not contrasted
    assert trained[BATCH : 3 * BATCH].any(dim=1).all()


def test_evaluation_leaves_the_statistics_alone():
    loss = criterion().eval()
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    loss(*inputs(), LABELS)
    assert all(torch.equal(before[k], v) for k, v in loss.state_dict().items())


def test_without_isac_the_classifiers_term_has_weight_1_and_there_are_no_views_2_and_3():
    loss = criterion(isac=False)
    logits, embeddings = inputs(views=1)
    terms = loss(logits, embeddings, LABELS)
    assert float(terms["isac"]) == 0
    assert float(terms["oe"]) == pytest.approx(float(outlier_exposure(logits[BATCH:])))
    assert float(terms["loss"]) == pytest.approx(float(terms["tla"] + 0.3 * terms["oe"]), rel=1e-7)


def test_without_a_term_the_others_stay():
    logits, embeddings = inputs()
    plain = loop_ce(logits[:BATCH], LABELS)
    assert float(criterion(tla=False)(logits, embeddings, LABELS)["tla"]) == pytest.approx(plain, rel=1e-9)
    terms = criterion(oe=False)(*inputs(outliers=0), LABELS)
    assert float(terms["oe"]) == 0
    assert float(terms["loss"]) == pytest.approx(float(terms["isac"] + 0.7 * terms["tla"]), rel=1e-7)
    logits, embeddings = inputs(views=1, outliers=0)
    terms = criterion(isac=False, tla=False, oe=False)(logits, embeddings, LABELS)
    assert float(terms["loss"]) == pytest.approx(loop_ce(logits, LABELS), rel=1e-9)


def test_half_precision_outputs_are_computed_in_float32_under_autocast():
    logits, embeddings = inputs()
    half = logits.bfloat16().requires_grad_(), embeddings.bfloat16().requires_grad_()
    low, high = (
        PATTLoss(COUNTS, DIM, oe_weight=1, tla_weight=1),
        PATTLoss(COUNTS, DIM, oe_weight=1, tla_weight=1),
    )
    with torch.autocast("cpu", torch.bfloat16):
        terms = low(*half, LABELS)
    expected = high(half[0].detach().float(), half[1].detach().float(), LABELS)
    for name, value in terms.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(float(expected[name]), rel=1e-6), name
    terms["loss"].backward()
    assert all(torch.isfinite(x.grad).all() for x in half)


def test_the_state_is_the_class_statistics():
    loss = criterion()
    loss(*inputs(), LABELS)
    other = criterion()
    other.load_state_dict(loss.state_dict())
    a, b = (m.eval()(*inputs(seed=3), LABELS)["loss"] for m in (loss, other))
    assert float(a) == float(b)
