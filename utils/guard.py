"""Applies the optimiser steps that are finite, and no others, without asking the device each time."""

import sys

import torch
from torch import Tensor

from utils.distributed import in_process_group, sum_over_processes
from utils.errors import InputError, say

CHECK_EVERY = {"cuda": 32, "cpu": 1}  # steps between checks of the flags, which synchronise with the device


class StepGuard:
    """Guards a fused optimiser.

    A step is sound where the loss terms, the gradients and the floating-point buffers of the modules
    (BatchNorm's and the class statistics, which the forward pass has changed) are finite. The device decides:
    the fused optimisers skip a step that is flagged in ``found_inf`` (the protocol of gradient scaling), and
    the buffers go back to what they were. ``max_bad_steps`` in a row stop the run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, modules: list[torch.nn.Module], max_bad_steps: int):
        self.optimizer = optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.modules = modules
        self.max_bad_steps = max_bad_steps
        self.bad_in_row = 0
        self.pending = []  # (flags on the device, their names, step, batch indices), not yet checked
        optimizer.grad_scale = None
        # Fused SGD leaves its buffers uninitialised where the first step is skipped.
        for group in optimizer.param_groups:
            if group.get("momentum"):
                for p in group["params"]:
                    optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))

    def remember(self) -> None:
        """Remembers the buffers; to be called before the first step and after other changes of them."""
        by_dtype = {}
        for buffer in (b for module in self.modules for b in module.buffers() if b.is_floating_point()):
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self.buffers = list(by_dtype.values())
        self.good = [torch.cat([b.flatten() for b in group]) for group in self.buffers]

    def step(self, terms: dict[str, Tensor], indices: Tensor, step: int) -> Tensor:
        """Applies step number ``step`` if it is sound, and returns whether it did: a boolean scalar on the
        device. ``terms``: the criterion's, after ``backward``. ``indices``: of the batch's images, for the
        report. Raises InputError, naming the term, after ``max_bad_steps`` bad steps in a row."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        values = {name: value.detach() for name, value in terms.items() if name != "loss"}
        values["gradient"] = torch.stack(torch._foreach_norm(gradients)).norm()
        buffers = [torch.cat([b.flatten() for b in group]) for group in self.buffers]
        largest = [torch.linalg.vector_norm(b, float("inf")).float() for b in buffers]
        names = [*values, *["running statistics"] * len(largest)]
        flags = torch.stack([*values.values(), *largest]).mul_(0) != 0  # 0 times a finite number alone is 0
        if in_process_group():  # all processes skip, count and stop alike
            flags = sum_over_processes(flags.float()) > 0
        bad = flags.any()
        self.optimizer.found_inf = bad.float()
        self.optimizer.step()
        for index, (group, now) in enumerate(zip(self.buffers, buffers, strict=True)):
            self.good[index] = torch.where(bad, self.good[index], now)
            parts = self.good[index].split([b.numel() for b in group])
            torch._foreach_copy_(group, [part.view_as(b) for part, b in zip(parts, group, strict=True)])
        self.pending.append((flags, names, step, indices))
        if len(self.pending) >= CHECK_EVERY[flags.device.type]:
            self.check()
        return ~bad

    def check(self) -> None:
        """Reports the bad steps since the last check."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        all_flags = torch.stack([flags for flags, *_ in pending]).tolist()
        for flags, (_, names, step, indices) in zip(all_flags, pending, strict=True):
            wrong = dict.fromkeys(name for name, flag in zip(names, flags, strict=True) if flag)
            self.bad_in_row = self.bad_in_row + 1 if wrong else 0
            if not wrong:
                continue
            what = f"step {step}: {', '.join(wrong)} not finite"
            say(f"warning: {what}, step not applied; images {indices.tolist()}", sys.stderr)
            if self.bad_in_row >= self.max_bad_steps:
                raise InputError(f"{what}; the run stops after {self.bad_in_row} bad steps in a row")
