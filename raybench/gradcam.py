"""Grad-CAM (Selvaraju et al. 2017) by captum: where the maps of a layer speak for a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from raybench.data import Part
from raybench.errors import UserError
from raybench.trained import Trained, module_called

AT_ONCE = 32
"""Images whose gradients are held together."""


def layer(network: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Return the module called ``name``, or the convolution that the network registers last, and its name.

    In a ResNet whose last block has a shortcut with a convolution, that is the last: there a name says more.

    Raises:
        UserError: if there is none.
    """
    if name is not None:
        return name, module_called(network, name)
    convolutions = [(key, module) for key, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise UserError("the network has no convolution: name a layer whose output is maps with --layer")
    return convolutions[-1]


def maps(trained: Trained, part: Part, classes: NDArray[Any], module: nn.Module) -> NDArray[np.float32]:
    """Return the Grad-CAM [n,H,W] of each image of ``part`` for its class, brought to the size of the images.

    The gradients of the class's logit are averaged over each map of ``module``'s output, the maps added up with these
    as weights, and what speaks against the class set to 0. Bilinear, align_corners off. Networks are in eval mode.

    Args:
        classes: [n], the class of each image whose logit is looked at.

    Raises:
        UserError: if captum is not installed, or the module's output are no maps.
    """
    captum = _captum()
    found = []
    size = trained.data.shape[1:]
    at = 0
    for batch in trained.inputs(part):
        for images in torch.split(batch, AT_ONCE):
            chosen = torch.as_tensor(classes[at : at + len(images)].astype(np.int64), device=trained.device)
            at += len(images)
            cam = captum(trained.network, module).attribute(images, target=chosen, relu_attributions=True)
            if not isinstance(cam, torch.Tensor) or cam.ndim != 4:
                raise UserError(
                    f"the output of {type(module).__name__} are no maps [n, channels, height, width]: choose another"
                    " --layer"
                )
            found.append(functional.interpolate(cam.detach().float(), size, mode="bilinear")[:, 0].cpu())
    return torch.cat(found).numpy()


def _captum() -> Any:
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise UserError("Grad-CAM needs captum: pip install 'raybench[explain]'") from None
    return LayerGradCam
