"""A trial's weights as a file: safetensors, which is read without running code.

    content = packed(trial_id, network.state_dict())
    network = restored(settings.model, content, shape, classes)

The file has the tensors of the state dict and says whose they are; how the network is built stands in the trial's row.
"""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raybench import backbones, models
from raybench.backbones import Shape
from raybench.errors import WeightsError
from raybench.settings import ModelSettings


def packed(trial_id: str, state: Mapping[str, Tensor]) -> bytes:
    """Return a network's state dict as the content of a file; equal tensors give equal bytes."""
    # One entry: safetensors writes several in any order.
    return safetensors.torch.save(
        {key: value.cpu().contiguous() for key, value in state.items()}, {"trial_id": trial_id}
    )


def restored(model: ModelSettings, content: bytes, shape: Shape, classes: int) -> nn.Module:
    """Return the network in eval mode, on the CPU, with the weights of a file that `packed` made.

    Neither the hub nor a file of pretrained weights is asked: all weights are in ``content``.

    Raises:
        WeightsError: if that is no such file, or the network is not built today as it was.
        UserError: if it cannot be built.
    """
    try:
        state = safetensors.torch.load(content)
    except SafetensorError as error:
        raise WeightsError(f"the weights of model {model.name!r} are damaged: {error}") from None
    network = models.build(backbones.without_weights(model), shape, classes)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).partition("\n")[2].split())[:200]
        raise WeightsError(
            f"the stored weights do not fit model {model.name!r} as it is built today: {reason}"
        ) from None
    return network.eval()
