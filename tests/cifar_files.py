"""CIFAR's files, outliers and OOD sets of random pixels, which tests of the command lines read."""

import pickle

import numpy as np
from PIL import Image

from datasets.images import long_tail_counts


def write_batch(path, labels, key, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"data": images, key: labels}, protocol=2))
    return images


def write_ood_set(root, benchmark, name, labels, size=(32, 32)):
    folder = root / "data" / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    images, lines = np.random.default_rng(0).integers(0, 256, (len(labels), *size, 3), dtype=np.uint8), []
    for i, label in enumerate(labels):
        Image.fromarray(images[i]).save(folder / f"{i}.png")
        lines.append(f'{name}/{i}.png {{"label": -1, "sc_label": {label}}}\n')
    path = root / "data" / "imglist" / f"benchmark_{benchmark}" / f"test_{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return images


def write_outliers(root, images):
    path = root / "Tiny_Images_Dataset" / "300K_random_images.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images)


def write_cifar10(root, counts=None):
    labels = [c for c, n in enumerate(counts or long_tail_counts(100, 10, 0.01)) for _ in range(n)]
    for i in range(5):
        write_batch(root / "cifar-10-batches-py" / f"data_batch_{i + 1}", labels[i::5], "labels", seed=i)
    write_batch(root / "cifar-10-batches-py" / "test_batch", list(range(10)) * 3, "labels", seed=9)


def write_data(root):
    write_cifar10(root)
    many = [c for c, n in enumerate(long_tail_counts(10, 100, 0.1)) for _ in range(n)]
    write_batch(root / "cifar-100-python" / "train", many, "fine_labels")
    write_batch(root / "cifar-100-python" / "test", list(range(100)), "fine_labels", seed=1)
    write_outliers(root, np.random.default_rng(3).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8))
    for benchmark, other in (("cifar10", "cifar100"), ("cifar100", "cifar10")):
        for name in (other, "lsun", "places365", "svhn", "texture", "tin"):
            write_ood_set(root, benchmark, name, [-1, 2, -1, -1] if name == "tin" else [-1, -1, -1])
    return root
