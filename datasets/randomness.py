"""Order and randomness of training data, from seeds made of (seed, epoch, step, rank)."""

import hashlib

import torch


def mixed_seed(*parts: object) -> int:
    """Returns a 63-bit seed from any values; different values give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def epoch_shares(
    n: int, batch_size: int, steps: int, seed: int, epoch: int, stream: str, rank: int, world_size: int
) -> torch.Tensor:
    """Returns a process's share of :func:`epoch_indices`, int64 (steps, batch_size / world_size)."""
    drawn = epoch_indices(n, steps * batch_size, seed, epoch, stream)
    return drawn.view(steps, batch_size)[:, rank::world_size]


def epoch_indices(n: int, needed: int, seed: int, epoch: int, stream: str) -> torch.Tensor:
    """Returns ``needed`` indices below n in random order, int64: a permutation, followed by further ones if n
    is smaller than ``needed``. ``stream`` names what they are drawn for."""
    generator = torch.Generator().manual_seed(mixed_seed(stream, seed, epoch))
    rounds = -(-needed // n)
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])[:needed]
