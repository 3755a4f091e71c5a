import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from pictures import picture
from PIL import ExifTags, Image
from rich.progress import Progress

from secateur.data import images as room
from secateur.data.images import Encoded, LazyStore, MemoryStore, decode, load_pixels
from secateur.errors import InputError


def record(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def encoded(records: list[dict[str, Any]], starts: dict[str, int] | None = None) -> Encoded:
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset.from_dict({"image": records}, features=features)
    return Encoded(table, starts or {"train": 0})


def load(
    records: list[dict[str, Any]], **settings: Any
) -> tuple[room.Store, tuple[int, int, int], np.ndarray]:
    options: dict[str, Any] = {
        "size": None,
        "channels": None,
        "skip_unreadable": False,
        "progress": None,
    }
    return load_pixels(encoded(records), np.arange(len(records)), **(options | settings))


BROKEN = {"bytes": b"no picture at all", "path": None}


def test_pixels_come_out_as_they_went_in() -> None:
    image = picture(0)
    assert np.array_equal(decode(record(image), None, 3), np.asarray(image).transpose(2, 0, 1))
    grey = picture(1, mode="L")
    assert np.array_equal(decode(record(grey), None, 1), np.asarray(grey)[None])
    assert np.array_equal(decode(record(grey), None, 3), np.stack([np.asarray(grey)] * 3))


def test_a_turned_photograph_is_put_upright() -> None:
    image = picture(0, (8, 6))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be shown turned by 90 degrees clockwise
    wanted = np.rot90(np.asarray(image), -1).transpose(2, 0, 1)
    assert np.array_equal(decode(record(image, exif=exif), None, 3), wanted)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    assert np.array_equal(decode(record(Image.fromarray(values)), None, 1)[0], values >> 8)


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_every_common_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (6, 8), (255, 255, 255)).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert np.array_equal(decode(record(image, kind), None, 3), np.full((3, 8, 6), 255))


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = picture(0).quantize(4)
    pixels = decode(record(image, transparency=b"\x00\x80\xff\xff"), None, 3)
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="pixel mode F has no agreed range"):
        decode(record(Image.new("F", (4, 4)), "TIFF"), None, 3)


def test_a_size_covers_and_crops_at_the_centre() -> None:
    wide = Image.new("RGB", (40, 10))
    wide.paste((255, 0, 0), (15, 0, 25, 10))  # the middle square
    pixels = decode(record(wide), (10, 10), 3)
    assert pixels.shape == (3, 10, 10)
    assert (pixels[0] == 255).all()
    assert not pixels[1:].any()
    assert decode(record(wide), (4, 20), 3).shape == (3, 4, 20)


def test_memory_and_lazy_stores_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(picture(seed)) for seed in range(7)]
    memory, shape, readable = load(records)
    monkeypatch.setattr(room, "IN_MEMORY_BYTES", 7 * 3 * 8 * 6 - 1)
    lazy, lazy_shape, _ = load(records)
    assert isinstance(memory, MemoryStore)
    assert isinstance(lazy, LazyStore)
    assert shape == lazy_shape == (3, 8, 6)
    assert readable.all()
    places = torch.tensor([4, 0, 4, 6])
    assert torch.equal(memory.fetch(places), lazy.fetch(places))
    assert torch.equal(
        memory.fetch(places)[1], torch.from_numpy(np.asarray(picture(0)).transpose(2, 0, 1).copy())
    )


def test_one_thread_and_many_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(picture(seed)) for seed in range(20)]
    monkeypatch.setattr(room, "CHUNK", 8)
    alone, *_ = load(records)
    monkeypatch.setattr(room, "PARALLEL_BYTES", 0)
    many, *_ = load(records)
    assert torch.equal(alone.fetch(torch.arange(20)), many.fetch(torch.arange(20)))


def test_channels_are_grey_only_where_all_are() -> None:
    greys = [record(picture(seed, mode="L")) for seed in range(3)]
    assert load(greys)[1] == (1, 8, 6)
    assert load([*greys, record(picture(9))])[1] == (3, 8, 6)
    assert load(greys, channels=3)[1] == (3, 8, 6)


@pytest.mark.parametrize("lazy", [False, True])
def test_an_unreadable_image_is_named_or_skipped(
    lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lazy:
        monkeypatch.setattr(room, "IN_MEMORY_BYTES", 0)
    records = [BROKEN, record(picture(1)), {"bytes": b"", "path": "b.png"}, record(picture(3))]
    with pytest.raises(InputError, match=r"^image row 0 of split 'train' cannot be read: "):
        load(records)
    with pytest.raises(InputError, match=r"^image b.png \(row 2 of split 'train'\) cannot be"):
        load([records[1], records[1], records[2]])
    store, shape, readable = load(records, skip_unreadable=True)
    assert shape == (3, 8, 6)
    assert readable.tolist() == [False, True, False, True]
    wanted = np.stack([np.asarray(picture(seed)).transpose(2, 0, 1) for seed in (1, 3)])
    assert np.array_equal(store.fetch(torch.arange(2)).numpy(), wanted)


def test_a_truncated_image_is_unreadable() -> None:
    whole = record(picture(0, (64, 64)))
    cut = {"bytes": whole["bytes"][: len(whole["bytes"]) // 2], "path": None}
    with pytest.raises(InputError, match="row 1 of split 'train' cannot be read"):
        load([whole, cut])


def test_nothing_readable_is_an_error_even_when_skipping() -> None:
    with pytest.raises(InputError, match="none of its 2 images can be read"):
        load([BROKEN, BROKEN], skip_unreadable=True)


def test_an_image_that_breaks_later_is_named(tmp_path: Path) -> None:
    path = tmp_path / "late.png"
    picture(0).save(path)
    store = LazyStore(encoded([{"bytes": None, "path": str(path)}]), torch.arange(1), (8, 6), 3)
    assert store.fetch(torch.arange(1)).shape == (1, 3, 8, 6)
    path.write_bytes(b"gone")
    with pytest.raises(InputError, match=r"late\.png cannot be read"):
        store.fetch(torch.arange(1))


def test_sizes_that_differ_name_two_images() -> None:
    records = [record(picture(0)), record(picture(1)), record(picture(2, (5, 9)))]
    with pytest.raises(InputError) as caught:
        load(records)
    assert str(caught.value) == (
        "image_size must be given when sizes differ: row 0 of split 'train' is 6 x 8, "
        "but row 2 of split 'train' is 9 x 5 (width x height)"
    )
    assert load(records, size=(8, 8))[1] == (3, 8, 8)


def test_a_row_is_named_by_its_own_split() -> None:
    images = encoded([BROKEN] * 5, {"train": 0, "test": 3})
    assert images.name(2, BROKEN) == "row 2 of split 'train'"
    assert images.name(4, BROKEN) == "row 1 of split 'test'"
    assert images.name(4, {"bytes": None, "path": "/a/b.png"}) == "/a/b.png"


def test_progress_counts_every_image() -> None:
    class Seen(Progress):
        counted = 0

        def advance(self, *args: Any, **keywords: Any) -> None:
            Seen.counted += 1

    load([record(picture(seed)) for seed in range(5)], channels=3, progress=Seen(disable=True))
    assert Seen.counted == 5


def test_rows_outside_are_refused_so_that_iteration_ends() -> None:
    store, _, _ = load([record(picture(seed)) for seed in range(3)])
    images = room.ImageSet(store, torch.arange(3), torch.tensor([2, 0, 1]))
    assert [label for _, label in images] == [2, 0, 1]
    assert images[-1][1] == 1
    with pytest.raises(IndexError, match="row 3 of 3"):
        images[3]
