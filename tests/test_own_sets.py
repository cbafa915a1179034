"""Folders of pictures as outliers or OOD sets of CIFAR."""

import numpy as np
import pytest
from image_files import photograph

from datasets import prepare
from datasets.outliers import load_outliers
from datasets.registry import BENCHMARKS
from datasets.scood import read_image
from utils.errors import InputError


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for number in range(6):
        (folder / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        photograph(number).save(folder / f"{number % 2}" / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"broken")
    (folder / "notes.txt").write_text("text")
    return folder


def test_outliers(pictures, tmp_path, capsys):
    prepare.main(["outliers", str(pictures), "--drp", str(tmp_path)])
    out = capsys.readouterr().out
    assert "6 outliers" in out and "1 .txt" in out and "1 unreadable" in out
    outliers = load_outliers(tmp_path).numpy().transpose(0, 2, 3, 1)
    squashed = {read_image(path).tobytes() for path in pictures.glob("*/*.jpg")}
    assert outliers.shape == (6, 32, 32, 3) and {image.tobytes() for image in outliers} == squashed
    with pytest.raises(InputError, match="300K_random_images.npy exists already"):
        prepare.main(["outliers", str(pictures), "--drp", str(tmp_path)])


@pytest.mark.parametrize("inside", [False, True])
def test_an_ood_set(pictures, tmp_path, inside, capsys):
    if inside:
        (tmp_path / "data" / "images").mkdir(parents=True)
        pictures = pictures.rename(tmp_path / "data" / "images" / "my pictures")
    prepare.main(["ood", "wild", str(pictures), "--drp", str(tmp_path)])
    assert "unreadable" in capsys.readouterr().out
    expected = [read_image(path) for path in sorted(pictures.glob("*/*.jpg"))]
    for name in ("cifar10", "cifar100"):
        found = BENCHMARKS[name].load_ood(["wild"], tmp_path)["wild"]
        assert found.labels.tolist() == [-1] * 6
        assert np.array_equal(found.images.numpy().transpose(0, 2, 3, 1), np.stack(expected))
    assert (tmp_path / "data" / "images" / "wild").exists() != inside
    with pytest.raises(InputError, match="wild.* exists already"):
        prepare.main(["ood", "wild", str(pictures), "--drp", str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "folder", "reason"),
    [("a/b", "pictures", "'a/b'"), ("a", "nowhere", "nowhere is missing"), ("a", "empty", "empty holds no")],
)
def test_what_cannot_be_an_ood_set(pictures, tmp_path, name, folder, reason):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=reason):
        prepare.main(["ood", name, str(tmp_path / folder), "--drp", str(tmp_path)])
    assert not (tmp_path / "data").exists()
