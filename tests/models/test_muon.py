"""iota's Muon is torch's, in float32."""

from __future__ import annotations

import pytest


@pytest.mark.oracle
def test_a_step_is_that_of_torch() -> None:
    import torch

    from iota.muon import Muon

    torch.manual_seed(0)
    start = [torch.randn(24, 40), torch.randn(40, 24)]
    ours = [torch.nn.Parameter(weight.clone()) for weight in start]
    theirs = [torch.nn.Parameter(weight.clone()) for weight in start]
    optimizers = [
        Muon(ours, lr=0.02, weight_decay=0.05),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, two, before in zip(ours, theirs, start, strict=True):
        moved = (two - before).norm()
        assert (one - two).norm() < 0.02 * moved  # bfloat16 rounds theirs
