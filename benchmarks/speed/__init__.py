"""Speed, one command per claim: ``python -m benchmarks.speed.NAME``; files in ../results/.

train, criterion, augment: the time of a CIFAR training step; the contrastive term; the random views
imagenet_step, imagenet_loader: a training step that reads its files; reading JPEG files
plain: the transcribed contrastive term, for comparison
common: timing, and a claim's table and file
"""
