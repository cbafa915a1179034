"""The training objective: L = L_isac + Lambda2 L_tla + Lambda1 L_oe (PATT, section "training")."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.vmf import ClassVMF

TERMS = ("loss", "isac", "tla", "oe")  # what PATTLoss returns: the sum, then its terms


def logit_adjusted_ce(logits: Tensor, labels: Tensor, log_prior: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of z / T + log pi, averaged over the batch (TLA; T = 1 is the logit adjustment of Menon
    et al. 2021). The temperature divides the logits (B, C) only; ``log_prior`` (C,) is added afterwards."""
    return F.cross_entropy(torch.add(log_prior, logits, alpha=1 / temperature), labels)


def outlier_exposure(logits: Tensor) -> Tensor:
    """Cross-entropy to the uniform distribution: mean of [logsumexp(z) - mean_c z_c] over (M, C) logits
    (Hendrycks et al. 2019)."""
    return logits.log_softmax(dim=1).sum() / -logits.numel()


class PATTLoss(nn.Module):
    """The three terms, their weights and the class statistics that ISAC remembers.

    Args:
        class_counts: the C class sizes of the training set; pi_c = n_c / sum n. embedding_dim: p.
        oe_weight: Lambda1; None removes OE. tla_weight: Lambda2; without ISAC the classifier's term is the
            main loss and has weight 1.
        contrast_temperature: tau; None removes ISAC. logit_temperature: T; None makes TLA plain
            cross-entropy.
        schedule: of the class statistics, see :class:`utils.vmf.ClassVMF`.
        normalize: embeddings are put on the unit sphere first. False is what the authors' release does.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        embedding_dim: int,
        *,
        oe_weight: float | None,
        tla_weight: float,
        contrast_temperature: float | None = 0.1,
        logit_temperature: float | None = 0.9,
        schedule: str = "epoch",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        self.register_buffer("log_prior", torch.log(counts / counts.sum()).float(), persistent=False)
        self.statistics = ClassVMF(len(counts), embedding_dim, schedule)
        self.oe_weight = oe_weight
        self.tla_weight = 1.0 if contrast_temperature is None else tla_weight
        self.contrast_temperature = contrast_temperature
        self.logit_temperature = logit_temperature
        self.normalize = normalize

    def start_epoch(self) -> None:
        self.statistics.start_epoch()

    def forward(self, logits: Tensor, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns ``{loss, isac, tla, oe}``, scalars, for one batch, ordered [view 1 (B), view 2 (B), view 3
        (B), outliers (M)]; ``labels`` (B,) are of view 1, and so of views 2 and 3.

        Without ISAC there are no views 2 and 3, without OE no outliers; these terms are then 0. Without TLA
        ``tla`` is the plain cross-entropy. In training mode the class statistics take in the batch before
        they are used.
        """
        batch = len(labels)
        first_outlier = batch if self.contrast_temperature is None else 3 * batch
        with torch.autocast(logits.device.type, enabled=False):
            # One split: slicing three times, autograd would fill three full-size gradients.
            view1, _, outliers = logits.to(torch.promote_types(logits.dtype, torch.float32)).split(
                [batch, first_outlier - batch, len(logits) - first_outlier]
            )
            if self.logit_temperature is None:
                tla = F.cross_entropy(view1, labels)
            else:
                tla = logit_adjusted_ce(view1, labels, self.log_prior, self.logit_temperature)
            isac = oe = torch.zeros_like(tla)
            if self.contrast_temperature is not None:
                isac = self.contrast(embeddings[batch:first_outlier], labels.repeat(2))
            if self.oe_weight is not None:
                oe = outlier_exposure(outliers)
            loss = isac.add(tla, alpha=self.tla_weight).add(oe, alpha=self.oe_weight or 0)
        return dict(zip(TERMS, (loss, isac, tla, oe), strict=True))

    def contrast(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """L_isac = CE(s + log pi, y) over the (2B, p) embeddings of views 2 and 3."""
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        embeddings = F.normalize(embeddings, dim=1) if self.normalize else embeddings
        if self.training:
            self.statistics.update(embeddings, labels)
        scores = self.statistics.log_mgf(embeddings, self.contrast_temperature, unit=self.normalize)
        return F.cross_entropy(scores + self.log_prior, labels).to(embeddings.dtype)
