"""Master weights: parameters in half precision, which the optimizer updates in float32.

Flow: a gradient in half precision -> in float32 -> the optimizer's step on the master weight -> the
parameter, rounded.
Memory: four bytes a parameter, and one gradient in float32 at a time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tidegate import training
from tidegate.errors import ConfigError
from tidegate.torch.fused import Update, alone, steps_alone

__all__ = ["MasterWeights"]

HALF = (torch.bfloat16, torch.float16)
# Where the state of an optimizer has the weight itself.
KEY = "master_weight"


class MasterWeights:
    """The float32 weights of parameters in half precision, which take their places in an optimizer.

    The state of the optimizer has them too, so that its `state_dict` is complete; it has to be
    loaded once they are there. Source: P. Micikevicius et al., arXiv:1710.03740.

    Attributes:
        bytes: of all of them.
        largest_bytes: of the largest.

    Raises:
        ConfigError: for an optimizer that does not treat parameters one by one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        groups = optimizer.param_groups
        halves = [p for group in groups for p in group["params"] if p.dtype in HALF and p.requires_grad]
        if not halves:
            raise ConfigError("master_weights=True: no parameter is in bfloat16 or float16")
        if any(len(optimizer.state[p]) for p in halves if p in optimizer.state):
            raise ConfigError("master_weights=True: the optimizer has stepped already, in half precision")
        if not steps_alone(optimizer):
            kind = type(optimizer).__name__
            raise ConfigError(f"master_weights=True: {kind} does not treat parameters one by one, or has hooks")
        self._of = {p: nn.Parameter(p.detach().float()) for p in halves}
        for group in groups:
            group["params"] = [self._of.get(p, p) for p in group["params"]]
        self.bytes = sum(4 * p.numel() for p in halves)
        self.largest_bytes = max(4 * p.numel() for p in halves)

    def added_to(self, profile: training.Profile, extra: int) -> training.Profile:
        """Return the profile of a step that has these, and takes `extra` bytes at each update."""
        held = [*profile.held, training.Held("master weights", self.bytes)]
        return replace(profile, held=held, optimizer_extra_bytes=extra)

    def updating(self) -> Update:
        """Return the optimizer's step on the master weight of one parameter."""
        groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}

        def update(parameter: torch.Tensor) -> None:
            master = self._of.get(parameter, parameter)
            if master is not parameter:
                self._take_over(master)
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            with alone(self._optimizer, groups[master], master):
                self._optimizer.step()
            master.grad = None
            if master is not parameter:
                with torch.no_grad():
                    parameter.copy_(master)
                self._optimizer.state[master][KEY] = master.detach()

        return update

    def _take_over(self, master: torch.Tensor) -> None:
        """Take the weight of a state that was loaded."""
        loaded = self._optimizer.state[master].get(KEY) if master in self._optimizer.state else None
        if loaded is not None and loaded.data_ptr() != master.data_ptr():
            with torch.no_grad():
                master.copy_(loaded)
            self._optimizer.state[master][KEY] = master.detach()
