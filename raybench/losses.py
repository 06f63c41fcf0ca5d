"""What training makes small: the loss of the images, and penalties on the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.errors import UserError
from raybench.settings import TrainSettings


def loss_sum(loss: str, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the loss summed over images, from logits [n, classes] and labels [n].

    ``bce`` is the mean over classes of the binary cross-entropy between each class's sigmoid and the one-hot label.
    ``smoothing`` is Keras' ``label_smoothing``: the one-hot label y becomes (1 - s) y + s / classes, and with ``bce``,
    where every class is a question of its own with two answers, (1 - s) y + s / 2.
    """
    if loss == "bce":
        # F.one_hot looks at the labels' values, and a GPU's host would wait for them.
        target = (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(logits.dtype)
        if smoothing:
            target = (1 - smoothing) * target + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / logits.shape[1]
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)


class Penalty:
    """What is added to the mean loss of a batch: a weighted sum of abs(w) and w^2 over the kernels that are trained.

    Kernels are the weights of convolutions and dense layers, not biases, norms or embeddings.
    """

    def __init__(self, train: TrainSettings, network: nn.Module) -> None:
        """Choose the kernels. Raise `UserError` if there is a penalty and no kernel that it falls on."""
        self._terms: list[tuple[Tensor, float, float]] = []
        """Kernel, factor of its sum of abs(w), factor of its sum of w^2."""
        if not train.l2 and train.elastic_net is None:
            return
        layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
        if train.l2:
            self._terms += [(layer.weight, 0.0, train.l2) for layer in layers]
        if net := train.elastic_net:  # formula 1 of report 002
            strength, chosen = getattr(net, "lambda"), layers[-1:] if net.layers == "output" else layers
            self._terms += [(layer.weight, strength * net.alpha, strength * (1 - net.alpha)) for layer in chosen]
        self._terms = [term for term in self._terms if term[0].requires_grad]
        if not self._terms:
            raise UserError("l2 and elastic_net need a convolution or a dense layer that is trained")

    def __bool__(self) -> bool:
        return bool(self._terms)

    def __call__(self) -> Tensor:
        return torch.stack([_weighted(*term) for term in self._terms]).sum()


def _weighted(kernel: Tensor, l1: float, l2: float) -> Tensor:
    total = l2 * kernel.square().sum()
    return total + l1 * kernel.abs().sum() if l1 else total
