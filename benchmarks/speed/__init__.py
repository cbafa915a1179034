"""What is fast, measured: one command per claim, ``python -m benchmarks.speed.NAME``; files in ../results/.

train, criterion, augment: where a CIFAR training step's time goes; the contrastive term; the random views
imagenet_step, imagenet_loader: a training step with its reading; reading JPEG files
memory, precision: memory over a long run; whether bf16 and --compile give fp32's numbers
plain: the plain pipeline, which the others are measured against
common: timing, and a claim's table and file
"""
