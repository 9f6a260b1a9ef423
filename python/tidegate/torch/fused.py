"""The optimizer's step within backward: a gradient is used and freed as soon as it is there.

Flow: a parameter's gradient -> the optimizer's step on this parameter alone -> no gradient.
Memory: the gradients of one stage instead of all.

J. Lv et al., arXiv:2306.09782. The result is that of one step over all parameters, bit for bit, for
an optimizer that treats them one by one, which is tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from tidegate import training
from tidegate.torch.graph import Stages
from tidegate.torch.live import storage_bytes

__all__ = [
    "Update",
    "alone",
    "fused_profile",
    "has_step_hooks",
    "own_parameters",
    "stepping",
    "steps_alone",
    "updating",
]

# Updates a parameter that has its gradient, and frees that.
Update = Callable[[torch.Tensor], None]


@contextlib.contextmanager
def alone(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.Tensor) -> Iterator[None]:
    """Let the optimizer have one parameter, with its options and its state."""
    groups = optimizer.param_groups
    optimizer.param_groups = [{**group, "params": [parameter]}]
    try:
        yield
    finally:
        optimizer.param_groups = groups


def updating(optimizer: torch.optim.Optimizer) -> Update:
    """Return the optimizer's step on one parameter."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}

    def update(parameter: torch.Tensor) -> None:
        with alone(optimizer, groups[parameter], parameter):
            optimizer.step()
        parameter.grad = None

    return update


@contextlib.contextmanager
def stepping(update: Update, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Update each parameter once a backward within has its gradient, and free the gradient."""
    # The method has no types.
    handles = [cast(Any, parameter).register_post_accumulate_grad_hook(update) for parameter in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether something runs at each step of an optimizer: it would at each parameter."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def steps_alone(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether steps on one parameter at a time are the same as on all; it tries it."""
    if has_step_hooks(optimizer):
        return False
    try:
        return all(_same_alone(type(optimizer), group) for group in optimizer.param_groups if group["params"])
    except Exception:
        # It cannot be made of other parameters, as one over several ranks.
        return False


def _same_alone(kind: Any, group: dict[str, Any]) -> bool:
    like = group["params"][0]
    options = {name: value for name, value in group.items() if name != "params"}
    start = torch.linspace(-1, 1, 128, device=like.device).to(like.dtype).view(2, 8, 8)
    pairs = [[nn.Parameter(value.clone()) for value in start] for _ in range(2)]
    together, apart = (kind([{**options, "params": pair}]) for pair in pairs)
    for number in range(1, 4):
        for pair in pairs:
            for at, parameter in enumerate(pair, 1):
                parameter.grad = (start[at - 1] * number).cos() * at
        together.step()
        for parameter in pairs[1]:
            with alone(apart, apart.param_groups[0], parameter):
                apart.step()
            parameter.grad = None
        # What has no gradient stays as it is: so the last step over all of them changes nothing.
        apart.step()
    return all(torch.equal(one, other) for one, other in zip(*pairs, strict=True))


def own_parameters(profile: training.Profile, stages: Stages) -> list[list[nn.Parameter]]:
    """Return the parameters of each stage whose gradients come there and nowhere else.

    Others must stay until backward is over: a stage before may run forward again with them.
    """
    used = [stages.parameters(stage) for stage in stages.stages]
    counts: dict[nn.Parameter, int] = {}
    for parameter in (p for stage in used for p in stage):
        counts[parameter] = counts.get(parameter, 0) + 1
    own = [[p for p in stage if counts[p] == 1] for stage in used]
    # Where the profile has fewer bytes, the loss uses some of them too.
    pairs = zip(own, profile.chain.stages, strict=True)
    return [found if _bytes(found) <= planned.gradient_bytes else [] for found, planned in pairs]


def _bytes(parameters: Sequence[nn.Parameter]) -> int:
    return sum(storage_bytes(p) for p in parameters)


def fused_profile(profile: training.Profile, stages: Stages, extra: int) -> training.Profile:
    """Return the profile of a step whose optimizer takes its steps, and `extra` bytes, in backward.

    Gradients of parameters that several stages use are held all the time.
    """
    sizes = [_bytes(own) for own in own_parameters(profile, stages)]
    planned = [
        replace(stage, gradient_bytes=size, backward_extra_bytes=stage.backward_extra_bytes + (extra if size else 0))
        for stage, size in zip(profile.chain.stages, sizes, strict=True)
    ]
    shared = sum(stage.gradient_bytes for stage in profile.chain.stages) - sum(sizes)
    held = [*profile.held, *([training.Held("shared gradients", shared)] if shared else [])]
    return replace(profile, chain=replace(profile.chain, stages=planned), held=held)
