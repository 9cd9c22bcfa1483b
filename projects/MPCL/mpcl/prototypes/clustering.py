"""From pixel embeddings to clusters: which prototype of its class each pixel belongs to.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.distributed import world_size
from .bank import FeatureBank
from .centroid import CentroidPrototypes
from .sampling import sample_per_group
from .sinkhorn import assign, balance

POOLS = ("bank", "batch")


class Assignment(NamedTuple):
    """Attributes:
    cluster: (N,) int64 = class * K + k for every labelled pixel of a started class, else C*K: the
        losses' target.
    clustered: (N,) the same where the pixel takes part in clustering, else C*K: what moves the
        prototypes.
    violation: scalar, the Sinkhorn marginals' violation (`Balance.violation`), for the log.
    """

    cluster: Tensor
    clustered: Tensor
    violation: Tensor


@torch.no_grad()
def cluster_pixels(
    prototypes: CentroidPrototypes,
    bank: FeatureBank | None,
    embeddings: Tensor,
    label: Tensor,
    takes_part: Tensor,
    *,
    pool: str = "bank",
    pool_size: int = 20_000,
    epsilon: float,
    sweeps: int = 10,
) -> Assignment:
    """Balances the prototypes of each class on a pool of pixels, then assigns every labelled pixel
    under that balance.

    The pool is either the batch's own pixels that take part (``"batch"``, the literal Eq. 13), or
    (``"bank"``) at most ``pool_size`` embeddings over all ranks, half from the bank and half from
    the batch, with the same number per class. Pixels that do not take part never influence the
    balance. Pixels that are ignored, not finite, or of a class without prototypes get no cluster.
    No host read; every rank must call it.

    Source: MPCL, Eqs. (13), (14), and Algorithm 1, lines 6-7. The pool with the bank is our reading
    of the "feature bank".

    Args:
        prototypes: centroid or Gaussian.
        bank: None, or empty for a class, leaves the batch's half alone.
        embeddings: (N, D); no gradient flows.
        label: (N,) int64 in [0, C].
        takes_part: (N,) bool, pixels that cluster: labelled, and confident where the label is a
            pseudo-label.
        pool: ``"bank"`` or ``"batch"``.
        pool_size: see above.
        epsilon: entropic weight of `balance`, in units of the similarity.
        sweeps: Sinkhorn sweeps.
    Raises:
        ValueError: ``pool`` is unknown, or ``pool_size`` does not give every class and rank a pixel
        in each half.
    """
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}, expected one of {POOLS}")
    num_classes, num_prototypes = prototypes.num_classes, prototypes.num_prototypes
    similarity = prototypes.own_similarity(embeddings, label)
    started = torch.cat([prototypes.started, prototypes.started.new_zeros(1)])
    has_cluster = started[label] & similarity.isfinite().all(1)
    takes_part = takes_part & has_cluster
    balanced_label = torch.where(takes_part, label, num_classes)
    if pool == "batch":
        table = balance(similarity, balanced_label, num_classes, epsilon=epsilon, sweeps=sweeps)
    else:
        per_class = pool_size // (2 * num_classes * world_size())
        if per_class < 1:
            raise ValueError(
                f"pool_size is {pool_size}, expected at least {2 * num_classes * world_size()}: "
                f"2 halves x {num_classes} classes x {world_size()} ranks"
            )
        pool_similarity, pool_label = _mixed_pool(
            prototypes, bank, similarity, balanced_label, per_class
        )
        table = balance(pool_similarity, pool_label, num_classes, epsilon=epsilon, sweeps=sweeps)
    cluster = label * num_prototypes + assign(similarity, label, table.potentials, epsilon)
    no_cluster = num_classes * num_prototypes
    cluster = torch.where(has_cluster, cluster, no_cluster)
    return Assignment(cluster, torch.where(takes_part, cluster, no_cluster), table.violation)


def _mixed_pool(
    prototypes: CentroidPrototypes,
    bank: FeatureBank | None,
    similarity: Tensor,
    label: Tensor,
    per_class: int,
) -> tuple[Tensor, Tensor]:
    """This rank's pool: similarities (P, K) and labels (P,), ``per_class`` places per class and
    half.
    """
    index, valid = sample_per_group(label, prototypes.num_classes, per_class)
    halves = [(similarity[index], valid)]
    if bank is not None:
        points, filled = bank.sample(per_class)
        halves.append((prototypes.class_similarity(points), filled))
    pool_similarity = torch.cat([half for half, _ in halves], dim=1)
    pool_valid = torch.cat([mask for _, mask in halves], dim=1)
    classes = torch.arange(prototypes.num_classes, device=label.device).unsqueeze(1)
    pool_label = torch.where(pool_valid, classes, prototypes.num_classes)
    return pool_similarity.flatten(0, 1), pool_label.flatten()
