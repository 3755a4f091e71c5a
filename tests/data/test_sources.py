from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from pictures import Folder, picture, plain_table, table
from rich.progress import Progress

from secateur.data.images import Encoded
from secateur.data.sources import Source, read_source
from secateur.errors import InputError


def read(source: object, test_source: object = None, label: str | None = None) -> Source:
    return read_source(str(source), None if test_source is None else str(test_source), label, None)


def sizes(source: Source) -> dict[str, int]:
    return {name: len(rows) for name, rows in source.splits.items()}


def names(source: Source, split: str) -> list[str]:
    return [source.classes[label] for label in source.labels[source.splits[split]]]


def paths(source: Source) -> list[str]:
    assert isinstance(source.images, Encoded)
    records = source.images.records(range(len(source.labels)))
    return ["/".join(Path(record["path"]).parts[-2:]) for record in records]


def test_class_folders(folder: Folder) -> None:
    root = folder({"dog": 2, "cat": 3})
    source = read(root)
    assert source.classes == ("cat", "dog")
    assert paths(source) == [
        "cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png"
    ]  # fmt: skip
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert sizes(source) == {"train": 5}


def test_split_folders_by_any_of_their_names(folder: Folder) -> None:
    counts = {"train/a": 3, "train/b": 2, "valid/a": 1, "valid/b": 1, "test/a": 1, "test/b": 2}
    root = folder(counts)
    (root / "notes").mkdir()
    source = read(root)
    assert sizes(source) == {"train": 5, "validation": 2, "test": 3}
    assert names(source, "test") == ["a", "b", "b"]


def test_a_class_may_be_called_train(folder: Folder) -> None:
    source = read(folder({"car": 2, "plane": 2, "train": 2}))
    assert source.classes == ("car", "plane", "train")
    assert sizes(source) == {"train": 6}


def test_other_and_hidden_files_are_not_read(folder: Folder) -> None:
    root = folder({"a": 2, "b": 2, ".cache": 1})
    (root / "a" / "notes.txt").write_text("no picture")
    (root / "a" / "._000.png").write_bytes(b"")
    (root / "a" / "deeper").mkdir()
    picture(5).save(root / "a" / "deeper" / "x.JPG", "JPEG")
    source = read(root)
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [0, 0, 0, 1, 1]


def test_a_class_folder_missing_from_one_split_keeps_its_name(folder: Folder) -> None:
    source = read(folder({"train/a": 1, "train/b": 1, "test/b": 1, "test/c": 1}))
    assert source.classes == ("a", "b", "c")
    assert names(source, "test") == ["b", "c"]


def test_two_folders_for_one_split_are_refused(folder: Folder) -> None:
    root = folder({"train/a": 1, "val/a": 1, "valid/a": 1})
    with pytest.raises(InputError, match="has both 'val' and 'valid'"):
        read(root)


@pytest.mark.parametrize("counts", [{}, {"a": 0, "b": 0}])
def test_a_folder_without_images_is_refused(folder: Folder, counts: Mapping[str, int]) -> None:
    root = folder(counts)
    root.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=r"^source must hold images in one folder per class, but"):
        read(root)


def test_images_outside_class_folders_are_no_classes(folder: Folder) -> None:
    root = folder({"a": 0})
    picture(0).save(root / "loose.png")
    with pytest.raises(InputError, match="one folder per class"):
        read(root)


def test_a_missing_path_and_another_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^source must be .* but '/no/such' does not exist"):
        read("/no/such")
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"must be a folder or a \.parquet file"):
        read(tmp_path / "data.zip")
    with pytest.raises(InputError, match=r"^test_source must be .* does not exist"):
        read(_parquet(tmp_path), "/no/such")


def _parquet(root: Path, **splits: datasets.Dataset) -> Path:
    below = root / "parquet"
    below.mkdir()
    tables = splits or {"train": table([0, 1, 0, 1], ["cat", "dog"])}
    for name, split in tables.items():
        split.to_parquet(below / f"{name}.parquet")
    return below


def test_parquet_folder(tmp_path: Path) -> None:
    root = _parquet(
        tmp_path,
        **{
            "train-00000-of-00002": table([0, 1], ["cat", "dog"]),
            "train-00001-of-00002": table([1, 1], ["cat", "dog"], 10),
            "test": table([1, 0, 0], ["cat", "dog"], 20),
        },
    )
    source = read(root)
    assert source.classes == ("cat", "dog")
    assert sizes(source) == {"train": 4, "test": 3}
    assert source.labels.tolist() == [0, 1, 1, 1, 1, 0, 0]


def test_one_parquet_file_is_all_training(tmp_path: Path) -> None:
    root = _parquet(tmp_path, test=table([0, 1, 1], ["cat", "dog"]))
    assert sizes(read(root / "test.parquet")) == {"train": 3}


def test_a_second_source_gives_the_test_split_by_class_name(tmp_path: Path) -> None:
    root = _parquet(
        tmp_path,
        train=table([0, 1, 1], ["cat", "dog"]),
        test=table([0, 1], ["cat", "dog"]),
        other=table([0, 0, 1, 0], ["dog", "cat"]),
    )
    source = read(root, root / "other.parquet")
    assert source.classes == ("cat", "dog")
    assert sizes(source) == {"train": 3, "test": 4}
    assert names(source, "test") == ["dog", "dog", "cat", "dog"]


def test_a_second_source_of_many_splits_must_name_its_test(folder: Folder, tmp_path: Path) -> None:
    root = folder({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    with pytest.raises(InputError, match=r"test_source must .* has train, validation"):
        read(_parquet(tmp_path), root)


def test_names_without_a_list_of_classes(tmp_path: Path) -> None:
    source = read(_parquet(tmp_path, train=plain_table(["owl", "cat", "owl"])))
    assert source.classes == ("cat", "owl")
    assert source.labels.tolist() == [1, 0, 1]


def test_numbers_without_a_list_of_classes_keep_their_order(tmp_path: Path) -> None:
    source = read(_parquet(tmp_path, train=plain_table([10, 2, 0, 2])))
    assert source.classes == ("0", "2", "10")
    assert source.labels.tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize(
    ("change", "label", "message"),
    [
        (
            lambda t: t.remove_columns("label"),
            None,
            r"labels \('label' was looked for\).* has image",
        ),
        (lambda t: t, "breed", r"^label must name a column .*'breed' was looked for"),
        (lambda t: t.remove_columns("image"), None, "must have a column 'image'"),
        (
            lambda t: t.cast_column("label", datasets.Value("float32")),
            None,
            "'label' .* must hold class names or numbers",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(
    tmp_path: Path, change: Any, label: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(_parquet(tmp_path, train=change(table([0, 1], ["a", "b"]))), label=label)


def test_an_unlabelled_image_is_an_error(tmp_path: Path) -> None:
    root = _parquet(tmp_path, train=table([0, 1], ["a", "b"]), test=table([-1, -1], ["a", "b"]))
    with pytest.raises(InputError, match="label for every image, but split 'test'"):
        read(root)


def test_other_columns_and_another_image_name_are_fine(tmp_path: Path) -> None:
    split = table([0, 1], ["a", "b"], column="img").add_column("note", ["x", "y"])
    source = read(_parquet(tmp_path, train=split))
    assert isinstance(source.images, Encoded)
    assert source.images.images.column_names == ["image"]


def test_a_chosen_label_column(tmp_path: Path) -> None:
    split = table([0, 1], ["a", "b"]).add_column("coarse", ["x", "x"])
    assert read(_parquet(tmp_path, train=split), label="coarse").classes == ("x",)


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=r"^source '.*train.parquet' cannot be read: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_hub_name_of_a_local_parquet_folder(tmp_path: Path) -> None:
    root = _parquet(
        tmp_path, train=table([0, 1, 1], ["cat", "dog"]), test=table([0, 1], ["cat", "dog"])
    )
    source = read(f"hub:{root}")
    assert source.classes == ("cat", "dog")
    assert sizes(source) == {"train": 3, "test": 2}


def test_hub_name_of_a_local_image_folder(folder: Folder) -> None:
    root = folder({"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    source = read(f"hub:{root}")
    assert source.classes == ("cat", "dog")
    assert sizes(source) == {"train": 4, "test": 2}


def test_hub_name_and_configuration_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(*arguments: object) -> dict[str, datasets.Dataset]:
        asked.append(arguments)
        return {"train": table([0, 1], ["a", "b"]), "unsupervised": table([0], ["a", "b"])}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert sizes(read("hub:someone/pets:small")) == {"train": 2}
    assert sizes(read("hub:someone/pets")) == {"train": 2}
    assert asked == [("someone/pets", "small"), ("someone/pets", None)]


def test_a_hub_without_a_known_split_lists_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"left": table([0], ["a"]), "right": table([0], ["a"])}
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: splits)
    with pytest.raises(InputError, match="split named train, but 'hub:x' has left, right"):
        read("hub:x")


def test_a_hub_failure_is_one_line_and_bars_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: object) -> None:
        assert datasets.are_progress_bars_disabled()
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert not datasets.are_progress_bars_disabled()
    message = r"^source 'hub:x' cannot be read: ConnectionError: no route$"
    with pytest.raises(InputError, match=message):
        read("hub:x")
    assert not datasets.are_progress_bars_disabled()
    with pytest.raises(InputError, match="must be 'hub:NAME'"):
        read("hub:")


def test_reading_prints_nothing(
    folder: Folder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, parquet = folder({"a": 1, "b": 1}), _parquet(tmp_path)
    capfd.readouterr()
    read(images)
    read(parquet)
    assert capfd.readouterr() == ("", "")


def test_reading_shows_what_it_does(tmp_path: Path) -> None:
    with Progress(disable=True) as progress:
        shown: list[str] = []
        add = progress.add_task
        progress.add_task = lambda words, **rest: (shown.append(words), add(words, **rest))[1]  # type: ignore[method-assign]
        root = _parquet(tmp_path)
        read_source(str(root), None, None, progress)
        assert shown == [f"Reading {root}"]
        assert not progress.tasks
