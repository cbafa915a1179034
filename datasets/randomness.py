"""Order and randomness of training data: functions of (seed, epoch, step, rank) alone, so a run can resume at
any step."""

import hashlib

import torch


def mixed_seed(*parts):
    """A 63-bit seed from any values; different values give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def step_generator(seed, epoch, step, rank):
    """The CPU generator that draws one step's augmentation."""
    return torch.Generator().manual_seed(mixed_seed("views", seed, epoch, step, rank))


def epoch_indices(n, needed, seed, epoch, stream):
    """``needed`` indices below n in random order, int64: one permutation, and further ones where n is smaller
    than needed."""
    generator = torch.Generator().manual_seed(mixed_seed(stream, seed, epoch))
    rounds = -(-needed // n)
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])[:needed]
