"""The optimizer's step within backward: a gradient is used and freed as soon as it is there.

Flow: a parameter's gradient -> the optimizer's step on this parameter alone -> no gradient.
Memory: the gradients of one stage instead of all.

J. Lv et al., arXiv:2306.09782. The result is that of one step over all parameters, bit for bit, for
an optimizer that treats them one by one, which is tried.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.optim.optimizer as optim
from torch import nn

from tidegate import training
from tidegate.torch.graph import Stages
from tidegate.torch.kept import undrawn
from tidegate.torch.live import storage_bytes, storage_key

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
    """Return whether something runs at each step of an optimizer: it would at each parameter.

    A scheduler of learning rates counts steps, and may.
    """
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    of_all = optim._global_optimizer_pre_hooks or optim._global_optimizer_post_hooks
    step = vars(optimizer).get("step")
    return bool(own or of_all) or (step is not None and not getattr(step, "_wrapped_by_lr_sched", False))


def steps_alone(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether steps on one parameter at a time are the same as on all; it tries it."""
    if has_step_hooks(optimizer):
        return False
    try:
        with undrawn():
            return all(_same_alone(optimizer, group) for group in optimizer.param_groups if group["params"])
    except Exception:
        # It cannot be made of other parameters, as one over several ranks.
        return False


def _attributes(optimizer: torch.optim.Optimizer, base: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what an optimizer has besides what all of them have, and what schedulers add."""
    known = {*vars(base), "step", "_opt_called", "_step_count"}
    return {name: value for name, value in vars(optimizer).items() if name not in known}


def _same_alone(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    like, kind = group["params"][0], cast(Any, type(optimizer))
    options = {name: value for name, value in group.items() if name != "params"}
    start = torch.linspace(-1, 1, 128, device=like.device).to(like.dtype).view(2, 8, 8)
    pairs = [[nn.Parameter(value.clone()) for value in start] for _ in range(2)]
    together, apart = (kind([{**options, "params": pair}]) for pair in pairs)
    base = torch.optim.SGD(pairs[0], lr=0.0)
    if _attributes(optimizer, base) != _attributes(together, base):
        # What it was made with is not in its groups, and the trial would be of another one.
        return False
    for number in range(1, 4):
        for pair in pairs:
            for at, parameter in enumerate(pair, 1):
                parameter.grad = (start[at - 1] * number).cos() * at
        together.step()
        if {name: value for name, value in together.param_groups[0].items() if name != "params"} != options:
            # It counts steps in its groups.
            return False
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
    # Two parameters may be of one storage.
    counts = Counter(storage_key(p) for stage in used for p in stage)
    own = [[p for p in stage if counts[storage_key(p)] == 1] for stage in used]
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
