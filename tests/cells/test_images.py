"""Images in memory: read, held out, cropped and mirrored as a function of the seed alone."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from toy_cells import png, toy_images, toy_pixels, write_images

from training.cells.images import ImageCollator, load_images


def test_images_are_read_and_some_held_out(tmp_path):
    pixels, labels = toy_pixels(48)
    data = load_images(str(write_images(tmp_path)), num_validation=8)
    assert (len(data.train), len(data.validation), data.num_classes) == (40, 8, 2)
    together = torch.cat([data.train.images, data.validation.images]).permute(0, 2, 3, 1).numpy()
    assert {image.tobytes() for image in together} == {image.tobytes() for image in pixels}
    by_pixels = {image.tobytes(): label for image, label in zip(pixels, labels.tolist(), strict=True)}
    for part in (data.train, data.validation):
        found = part.images.permute(0, 2, 3, 1).contiguous().numpy()
        assert [by_pixels[image.tobytes()] for image in found] == part.labels.tolist()
    again = load_images(str(tmp_path), num_validation=8)
    assert torch.equal(again.validation.images, data.validation.images)
    assert again.fingerprint == data.fingerprint
    assert not torch.equal(load_images(str(tmp_path), 8, seed=1).validation.images, data.validation.images)


def test_smaller_images_are_means_over_squares(tmp_path):
    pixels, _ = toy_pixels(4, size=8)
    data = load_images(str(write_images(tmp_path, 4)), num_validation=1, image_size=4)
    expected = pixels.reshape(4, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    found = torch.cat([data.train.images, data.validation.images]).permute(0, 2, 3, 1).float().numpy()
    for image in found:
        assert min(np.abs(image - other).max() for other in expected) <= 0.5


def test_a_batch_is_normalised():
    data = toy_images()
    items = [data.validation[index] for index in range(3)]
    batch = ImageCollator(0)(items)
    assert batch["labels"].tolist() == [int(item["labels"]) for item in items]
    expected = (items[1]["images"][2].float() / 255 - 0.4465) / 0.2616
    torch.testing.assert_close(batch["images"][1, 2], expected)


def test_training_images_are_crops_of_padded_ones_mirrored_or_not():
    data = toy_images()
    items = [data.train[index] for index in range(32)]
    plain = ImageCollator(0)([{**item, "number": None} for item in items])["images"]
    zero = ImageCollator(0)([{**items[0], "images": torch.zeros(3, 8, 8, dtype=torch.uint8), "number": None}])[
        "images"
    ]
    batch, kinds = ImageCollator(0)(items)["images"], set()
    for image, original in zip(batch, plain, strict=True):
        padded = zero[0, :, :1, :1].expand(3, 10, 10).clone()
        padded[:, 1:-1, 1:-1] = original
        crops = {
            (top, left, mirrored): (crop.flip(-1) if mirrored else crop)
            for top in range(3)
            for left in range(3)
            for mirrored in (False, True)
            for crop in [padded[:, top : top + 8, left : left + 8]]
        }
        (kind,) = [kind for kind, crop in crops.items() if torch.allclose(crop, image, atol=1e-6)]
        kinds.add(kind)
    assert len(kinds) > 9


def test_crops_depend_on_the_seed_and_the_numbers_alone():
    data = toy_images()
    items = [data.train[index] for index in range(8)]
    first = ImageCollator(0)(items)["images"]
    torch.manual_seed(5)
    assert torch.equal(ImageCollator(0)(items)["images"], first)
    assert not torch.equal(ImageCollator(1)(items)["images"], first)


def broken_png() -> bytes:
    """An image whose second chunk has another length; Pillow raises a SyntaxError for the next one."""
    whole = bytearray(png(toy_pixels(1)[0][0]))
    whole[36] ^= 0xFF
    return bytes(whole)


def test_what_cannot_be_read_is_named(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"has no file train\*\.parquet"):
        load_images(str(folder), 1)
    write_images(folder)
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"the images of .* cannot be read .*a file is truncated or damaged") as error:
        load_images(str(folder), 1)
    assert "\n" not in str(error.value)
    pixels = [png(image) for size in (8, 4) for image in toy_pixels(2, size)[0]]
    Dataset.from_dict({"image": pixels, "label": [0] * 4}).to_parquet(folder / "train.parquet")
    with pytest.raises(
        ValueError, match=r"image 2 of .* has 4 x 4 pixels but the first has 8 x 8; all must be squares of the same"
    ):
        load_images(str(folder), 1)
    Dataset.from_dict({"image": pixels, "kind": [0] * 4}).to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match="has no column 'label'; its columns are image, kind; rename one of them"):
        load_images(str(folder), 1)
    Dataset.from_dict({"image": [b"no image"] * 4, "label": [0] * 4}).to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match=r"image 0 of .* cannot be read .*; copy the damaged file again"):
        load_images(str(folder), 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([7, 8, 9, 10], "the column 'image' of .* has no images"),
        ([None, *map(png, toy_pixels(3)[0])], "row 0 of .* has no image; remove it"),
        ([*map(png, toy_pixels(3)[0]), None], "row 3 of .* has no image; remove it"),
        ([png(image[:4]) for image in toy_pixels(4)[0]], "image 0 of .* has 8 x 4 pixels; all must be squares"),
        ([*map(png, toy_pixels(3)[0]), broken_png()], "image 3 of .* cannot be read .*broken PNG"),
        ([png(image) for image in toy_pixels(4, 4)[0]], "have 4 pixels per side; give images with at least 8"),
        (["nowhere.png"] * 4, "image 0 of .* cannot be read"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(tmp_path, images, message):
    Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message) as error:
        load_images(str(tmp_path), 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("start", [0.3, 0.7, 0.95])
def test_a_file_with_damaged_bytes_is_called_damaged_wherever_they_are(tmp_path, start):
    write_images(tmp_path, 40)
    path = tmp_path / "train.parquet"
    whole = bytearray(path.read_bytes())
    damaged = range(int(start * len(whole)), len(whole) - 8)
    for position in damaged[:300]:
        whole[position] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(
        ValueError, match=r"cannot be read .*(damaged; copy it again|copy the damaged file again)"
    ) as error:
        load_images(str(tmp_path), 1)
    assert "\n" not in str(error.value)


def test_files_of_two_data_sets_are_told_apart_from_damaged_ones(tmp_path):
    for name in ("label", "fine_label"):
        (tmp_path / name).mkdir()
        rows = {"image": [png(image) for image in toy_pixels(4)[0]], name: [0, 1, 0, 1]}
        Dataset.from_dict(rows).to_parquet(tmp_path / name / "train.parquet")
    with pytest.raises(ValueError, match="have different columns; give the folder of one data set") as error:
        load_images(str(tmp_path), 1)
    assert "\n" not in str(error.value)


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    folder = str(write_images(tmp_path, 4))
    with pytest.raises(ValueError, match="image_size is 3, which does not divide the 8 pixels"):
        load_images(folder, 1, image_size=3)
    with pytest.raises(
        ValueError, match=r"num_validation_images is 4, but .* has 4 images; give at least 1 and fewer"
    ):
        load_images(folder, 4)


def test_sizes_that_do_not_halve_twice_are_refused(tmp_path):
    folder = str(write_images(tmp_path, 4, size=20))
    with pytest.raises(ValueError, match=r"10 pixels per side, .* set image_size to a multiple of 4 that divides 20"):
        load_images(folder, 1, image_size=10)
    assert load_images(folder, 1).train.images.shape[-1] == 20
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="halved twice; give images whose size is a multiple of 4"):
        load_images(str(write_images(tmp_path / "other", 4, size=10)), 1)
    with pytest.raises(ValueError, match=r"5 pixels per side, .* give images whose size is a multiple of 4"):
        load_images(str(tmp_path / "other"), 1, image_size=5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog", "cat", "dog"], "row 0 of .*: label is 'cat'; it must be the index of a class"),
        ([0, None, 1, 1], "row 1 of .*: label is None"),
        ([0, 1, -1, 0], "row 2 of .*: label is -1"),
        ([0.5, 1.0, 0.0, 1.0], "row 0 of .*: label is 0.5"),
        ([1, 1, 1, 1], "belong to one class; give images of at least two classes"),
    ],
)
def test_labels_are_numbers_of_classes(tmp_path, labels, message):
    Dataset.from_dict({"image": list(map(png, toy_pixels(4)[0])), "label": labels}).to_parquet(
        tmp_path / "train.parquet"
    )
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path), 1)


def test_pillow_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("training.cells.images.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install magic-nas\[images\]"):
        load_images(str(tmp_path), 1)
