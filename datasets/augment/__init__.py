"""Random views of image batches.

views: the views of CIFAR-LT and ImageNet-LT, as chains of stages
stages: crops, flips, colour, Cutout: what a view is made of
policies: AutoAugment and RandAugment
ops: the arithmetic on pixels, one parameter per image, equal to torchvision's
"""
