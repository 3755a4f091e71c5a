"""What is minimised: the labels' cross entropy, and the teacher's answers beside it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from secateur.training.settings import TrainSettings


def training_loss(
    logits: Tensor, labels: Tensor, settings: TrainSettings, taught: Tensor | None = None
) -> Tensor:
    """Return the mean loss of a batch, a scalar.

    With w = ``distill_weight`` and T = ``distill_temperature``:
    (1 - w) x cross entropy + w x T^2 x KL(softmax(taught / T) || softmax(logits / T)), the
    "soft targets" of Hinton, Vinyals and Dean (2015). T^2 keeps the size of the gradient
    when T changes (their section 2).

    Args:
        logits: of the network that learns, [N, classes].
        labels: int64 [N].
        settings: how to train.
        taught: logits of the teacher, [N, classes]; None for the labels alone.
    """
    hard = functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    if taught is None:
        return hard
    heat, share = settings.distill_temperature, settings.distill_weight
    soft = functional.kl_div(
        functional.log_softmax(logits / heat, dim=1),
        functional.log_softmax(taught / heat, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    return (1 - share) * hard + share * heat**2 * soft
