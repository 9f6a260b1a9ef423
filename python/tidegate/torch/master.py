"""Master weights: parameters in half precision, which the optimizer updates in float32.

Flow: a gradient in half precision -> in float32 -> the optimizer's step on the master weight -> the
parameter, rounded.
Memory: four bytes a parameter, and one gradient in float32 at a time.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tidegate import training
from tidegate.errors import ConfigError
from tidegate.torch.fused import Update, alone, steps_alone

__all__ = ["KEY", "MasterWeights", "parameters_of"]

HALF = (torch.bfloat16, torch.float16)
# Where the state of an optimizer has the weight itself.
KEY = "master_weight"

Masters = dict[torch.Tensor, nn.Parameter]
# The master weights that optimizers have got, by the parameters whose places these take.
_OF: MutableMapping[torch.optim.Optimizer, Masters] = WeakKeyDictionary()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the parameters of a model that an optimizer updates, not their master weights."""
    parameters = {id(master): parameter for parameter, master in _OF.get(optimizer, {}).items()}
    return [parameters.get(id(p), p) for group in optimizer.param_groups for p in group["params"]]


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
        if optimizer not in _OF:
            _OF[optimizer] = self._made()
        self._of = _OF[optimizer]
        self._versions = {parameter: parameter._version for parameter in self._of}
        self.bytes = sum(4 * p.numel() for p in self._of)
        self.largest_bytes = max(4 * p.numel() for p in self._of)

    def _made(self) -> Masters:
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        halves = [p for group in groups for p in group["params"] if p.dtype in HALF and p.requires_grad]
        if not halves:
            raise ConfigError("master_weights=True: no parameter is in bfloat16 or float16")
        if any(float(optimizer.state[p].get("step", 1)) > 0 for p in halves if optimizer.state.get(p)):
            raise ConfigError("master_weights=True: the optimizer has stepped already, in half precision")
        if not steps_alone(optimizer):
            kind = type(optimizer).__name__
            raise ConfigError(f"master_weights=True: {kind} does not treat parameters one by one, or has hooks")
        masters: Masters = {p: nn.Parameter(p.detach().float()) for p in halves}
        for group in groups:
            group["params"] = [masters.get(p, p) for p in group["params"]]
        for parameter, master in masters.items():
            if state := optimizer.state.pop(parameter, None):
                # Some optimizers have a state before their first step.
                optimizer.state[master] = {name: _widened(value) for name, value in state.items()}
        return masters

    def added_to(self, profile: training.Profile, extra: int) -> training.Profile:
        """Return the profile of a step that has these, and takes `extra` bytes at each update."""
        held = [*profile.held, training.Held("master weights", self.bytes)]
        return replace(profile, held=held, optimizer_extra_bytes=extra)

    def follow(self) -> None:
        """Take over weights that were loaded: those of the optimizer's state, or the model's."""
        for parameter, master in self._of.items():
            state = self._optimizer.state.get(master, {})
            loaded = state.get(KEY)
            with torch.no_grad():
                if loaded is not None and loaded.data_ptr() != master.data_ptr():
                    master.copy_(loaded)
                    state[KEY] = master.detach()
                elif parameter._version == self._versions[parameter]:
                    continue
                if not torch.equal(master.to(parameter.dtype), parameter):
                    master.copy_(parameter)
            self._versions[parameter] = parameter._version

    def updating(self) -> Update:
        """Return the optimizer's step on the master weight of one parameter."""
        groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}

        def update(parameter: torch.Tensor) -> None:
            master = self._of.get(parameter, parameter)
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            with alone(self._optimizer, groups[master], master):
                self._optimizer.step()
            master.grad = None
            if master is not parameter:
                with torch.no_grad():
                    parameter.copy_(master)
                self._versions[parameter] = parameter._version
                self._optimizer.state[master][KEY] = master.detach()

        return update


def _widened(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.dtype in HALF
    return value.float() if is_half else value
