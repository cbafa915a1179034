import math

import numpy as np
import pytest
import torch

from utils.losses import PATTLoss

COUNTS = [50, 20, 7, 2]
BATCH, OUTLIERS, DIM = 5, 6, 8
LABELS = torch.tensor([0, 3, 1, 0, 2])


def inputs(views=3, outliers=OUTLIERS, seed=0):
    """Logits (N, C) and embeddings (N, p) of [view 1, view 2, view 3, outliers]."""
    n, draw = views * BATCH + outliers, torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, width, dtype=torch.float64, generator=draw) for width in (len(COUNTS), DIM))


def criterion(**settings):
    torch.manual_seed(0)
    return PATTLoss(COUNTS, DIM, **(dict(oe_weight=0.3, tla_weight=0.7) | settings)).double()


def loop_ce(scores, labels):
    rows = zip(scores.tolist(), labels.tolist(), strict=True)
    return np.mean([math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in rows])


def loop_oe(logits):
    rows = logits.tolist()
    return np.mean([math.log(sum(math.exp(v) for v in row)) - sum(row) / len(row) for row in rows])


LOG_PRIOR = np.log(np.array(COUNTS) / sum(COUNTS))


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
    isac = loop_ce(scores.numpy() + LOG_PRIOR, pair_labels)
    tla = loop_ce(logits[:BATCH].numpy() / 0.8 + LOG_PRIOR, LABELS)
    oe = loop_oe(logits[3 * BATCH :])
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
    # View 1 and outliers are not contrasted.
    assert not trained[:BATCH].any() and not trained[3 * BATCH :].any()
    assert trained[BATCH : 3 * BATCH].any(dim=1).all()


@pytest.mark.parametrize("isac", [True, False])
@pytest.mark.parametrize("tla", [True, False])
@pytest.mark.parametrize("oe", [True, False])
def test_without_a_term_the_others_stay(isac, tla, oe):
    """Without ISAC there are no views 2 and 3, and the classifier's term has weight 1."""
    logits, embeddings = inputs(3 if isac else 1, OUTLIERS if oe else 0)
    removed = {"contrast_temperature": isac, "logit_temperature": tla, "oe_weight": oe}
    terms = criterion(**{name: None for name, kept in removed.items() if not kept})(
        logits, embeddings, LABELS
    )
    of_view1 = logits[:BATCH].numpy()
    classifier = loop_ce(of_view1 / 0.9 + LOG_PRIOR if tla else of_view1, LABELS)
    exposure = loop_oe(logits[-OUTLIERS:]) if oe else 0
    assert (float(terms["isac"]) > 0) == isac
    assert float(terms["tla"]) == pytest.approx(classifier, rel=1e-6)
    assert float(terms["oe"]) == pytest.approx(exposure, rel=1e-9)
    total = float(terms["isac"]) + (0.7 if isac else 1) * classifier + 0.3 * exposure
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-6)


def test_half_precision_outputs_are_computed_in_float32_under_autocast():
    logits, embeddings = inputs()
    half = logits.bfloat16().requires_grad_(), embeddings.bfloat16().requires_grad_()
    low, high = (PATTLoss(COUNTS, DIM, oe_weight=1, tla_weight=1) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        terms = low(*half, LABELS)
    expected = high(half[0].detach().float(), half[1].detach().float(), LABELS)
    for name, value in terms.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(float(expected[name]), rel=1e-6), name
    terms["loss"].backward()
    assert all(torch.isfinite(x.grad).all() for x in half)
