"""Speed and memory, one command per claim: ``python -m benchmarks.speed.NAME``; files in ../results/.

train, criterion, augment: the time of a CIFAR training step; the contrastive term; the random views
imagenet_step, imagenet_loader: a training step that reads its files; reading JPEG files
memory, precision: memory over a long run; whether bf16 and --compile give fp32's numbers
plain: the baseline pipeline that the others are compared with
common: timing, and a claim's table and file
"""
