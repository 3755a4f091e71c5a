from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import Folder, picture, table

from secateur.data import ImageData, batches, load_data
from secateur.errors import InputError

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg"


def labels(data: ImageData, part: str) -> list[int]:
    return [int(label) for label in getattr(data, part).labels]


def test_digits_are_the_ones_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    data = load_data("digits")
    assert data.classes == tuple("0123456789")
    assert data.shape == (1, 8, 8)
    assert (data.mean, data.std, data.skipped) == ((0.0,), (1.0,), 0)
    sizes = [len(part) for part in (data.train, data.validation, data.test, data.calibration)]
    assert sizes == [1294, 144, 359, 512]
    wanted = {(*row, label) for row, label in zip(pixels.tolist(), targets.tolist(), strict=True)}
    found = set()
    for part in (data.train, data.validation, data.test):
        for images, numbers in batches(part, 400):
            assert float(images.min()) == 0.0
            assert float(images.max()) == 1.0
            rows = (images * 16).flatten(1).tolist()
            found |= {(*row, n) for row, n in zip(rows, numbers.tolist(), strict=True)}
    assert found == wanted


def test_parts_are_disjoint_stratified_and_decided_by_the_seed() -> None:
    first, again, other = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    places = [part.places for part in (first.train, first.validation, first.test)]
    assert torch.cat(places).unique().numel() == 1797
    for part in ("train", "validation", "test", "calibration"):
        counts = np.bincount(labels(first, part), minlength=10) / len(getattr(first, part))
        assert abs(counts - 0.1).max() < 0.02
        assert torch.equal(getattr(first, part).places, getattr(again, part).places)
        assert not torch.equal(getattr(first, part).places, getattr(other, part).places)


def test_calibration_is_a_part_of_train() -> None:
    data = load_data("digits", calibration=100)
    assert len(data.calibration) == 100
    assert set(data.calibration.places.tolist()) < set(data.train.places.tolist())
    everything = load_data("digits", calibration=10**6)
    assert torch.equal(everything.calibration.places, everything.train.places)


def test_a_folder_is_loaded_and_normalised(folder: Folder) -> None:
    root = folder({"train/a": 6, "train/b": 6, "test/a": 2, "test/b": 3})
    data = load_data(str(root), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), validation=0.25)
    assert data.shape == (3, 8, 6)
    assert labels(data, "test") == [0, 0, 1, 1, 1]
    assert (len(data.train), len(data.validation)) == (9, 3)
    pixels = np.asarray(picture(3000)).transpose(2, 0, 1) / 255  # the first of test/b
    mean, std = np.reshape([0.1, 0.2, 0.3], (3, 1, 1)), np.reshape([0.5, 0.6, 0.7], (3, 1, 1))
    wanted = (pixels - mean) / std
    image, label = data.test[2]
    assert label == 1
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_parquet_is_loaded(tmp_path: Path) -> None:
    table([0, 1] * 10, ["cat", "dog"]).to_parquet(tmp_path / "train.parquet")
    table([1, 0, 1], ["cat", "dog"], 50).to_parquet(tmp_path / "test.parquet")
    data = load_data(str(tmp_path))
    assert [len(data.train), len(data.validation), len(data.test)] == [18, 2, 3]
    wanted = torch.from_numpy(np.asarray(picture(51)).transpose(2, 0, 1).copy()).float() / 255
    assert torch.equal(data.test[1][0], wanted)


def test_unreadable_images_are_named_or_counted(folder: Folder) -> None:
    root = folder({"a": 12, "b": 12})
    (root / "b" / "003.png").write_bytes(b"no picture")
    (root / "a" / "005.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a/005.png cannot be read"):
        load_data(str(root))
    data = load_data(str(root), skip_unreadable=True)
    assert data.skipped == 2
    assert len(data.train) + len(data.validation) + len(data.test) == 22
    kept = [seed for seed in (*range(12), *range(1000, 1012)) if seed not in (5, 1003)]
    for part in (data.train, data.validation, data.test):
        for (image, label), place in zip(part, part.places.tolist(), strict=True):
            seed = kept[place]
            assert label == seed // 1000
            wanted = np.asarray(picture(seed)).transpose(2, 0, 1) / np.float32(255)
            np.testing.assert_array_equal(image.numpy(), wanted)


def test_a_class_that_nobody_can_read_is_missed(folder: Folder) -> None:
    root = folder({"train/a": 5, "train/b": 5, "test/a": 1, "test/b": 1})
    (root / "test" / "b" / "000.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="'b' is in train and not in test"):
        load_data(str(root), skip_unreadable=True)


def test_sizes_that_differ_need_image_size(folder: Folder) -> None:
    root = folder({"a": 5, "b": 5})
    picture(7, (9, 9)).save(root / "b" / "001.png")
    with pytest.raises(InputError, match=r"image_size must be given .*a/000.png is 6 x 8"):
        load_data(str(root))
    assert load_data(str(root), image_size=5).shape == (3, 5, 5)
    assert load_data(str(root), image_size=(4, 6), channels=1).shape == (1, 4, 6)


def test_limit_saves_decoding(folder: Folder) -> None:
    root = folder({"train/a": 30, "train/b": 30, "test/a": 9, "test/b": 9})
    data = load_data(str(root), limit=4, validation=0.2)
    assert [len(data.train), len(data.validation), len(data.test)] == [4, 4, 4]
    assert len(data.train.store.fetch(torch.arange(12))) == 12
    assert sorted(labels(data, "test")) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3, but got 2"),
        ({"validation": 0.0}, r"validation must be in \(0, 1\), but got 0.0"),
        ({"calibration": 0}, "calibration must be at least 1, but got 0"),
        ({"limit": 0}, "limit must be at least 1, but got 0"),
        ({"seed": -1}, "seed must be at least 0, but got -1"),
        ({"mean": (0.5,)}, "mean and std must be given together"),
        ({"mean": (0.5,), "std": (0.0,)}, "std must be above 0, but got 0.0"),
        ({"mean": (0.5, 0.5), "std": (1, 1)}, "mean must have 1 values .* but got 0.5, 0.5"),
        ({"image_size": 32}, "image_size must be 8 for digits, but got 32"),
        ({"image_size": 0}, "image_size must be a whole number of pixels"),
        ({"image_size": (1, 2, 3)}, "image_size must be a whole number of pixels"),
        ({"channels": 3}, "channels must be 1 for digits, but got 3"),
        ({"test_source": "elsewhere"}, "digits takes no test_source"),
        ({"test_source": "digits"}, "test_source must differ from source"),
        ({"limit": 9}, "limit must be at least 10"),
    ],
)
def test_arguments_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data("digits", **settings)


def test_arguments_are_checked_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="channels"):
        load_data("/no/such/folder", channels=4)


def test_one_class_alone_is_refused(folder: Folder) -> None:
    with pytest.raises(InputError, match="at least two classes, but has only 'cat'"):
        load_data(str(folder({"cat": 8})))


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"no data at {CIFAR}")
def test_cifar_is_loaded_once_and_whole() -> None:
    data = load_data(str(CIFAR))
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert [len(data.train), len(data.validation), len(data.test)] == [45000, 5000, 10000]
    assert np.bincount(labels(data, "validation")).tolist() == [500] * 10
    assert np.bincount(labels(data, "calibration")).min() >= 51
    for images, _ in batches(data.test, 5000):
        assert images.shape == (5000, 3, 32, 32)
        assert 0 <= float(images.min()) < float(images.max()) <= 1
