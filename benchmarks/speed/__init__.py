"""Speed, one command per claim: ``python -m benchmarks.speed.NAME``; files in ../results/.

train, criterion: the time of a CIFAR training step; the contrastive term
common: timing, and a claim's table and file
"""
