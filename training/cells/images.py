"""Images of a classification task, in memory: read with `datasets`, cropped and mirrored according to the seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset
from datasets.exceptions import DatasetGenerationCastError, DatasetGenerationError
from datasets.table import CastError
from pyarrow import ArrowException  # type: ignore[import-untyped]
from torch import Tensor

from ..bars import progress_bar
from ..tables import first_line


# Per channel, for the images of CIFAR-10; the difference from other images does not matter.
_MEAN, _DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Side length in pixels; the last stage sees a quarter of it.
_SMALLEST = 8
_LABEL_COLUMNS = ("label", "labels", "fine_label")
# The largest offset of a crop as a share of the image's size, as in the benchmark's recipe: 4 of 32 pixels.
_PADDING = 1 / 8


@dataclass(frozen=True)
class ImageSet:
    """Labelled images; an item is an image with its label and index.

    Attributes:
        images: (number, 3, size, size), bytes.
        labels: (number,).
        is_augmented: whether batches are randomly cropped and mirrored.
    """

    images: Tensor
    labels: Tensor
    is_augmented: bool

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "images": self.images[index],
            "labels": self.labels[index],
            "number": index if self.is_augmented else None,
        }


@dataclass(frozen=True)
class ImageData:
    """The images that a super-net of cells is trained and judged on.

    Attributes:
        train: the training images, augmented.
        validation: images held out from the training images.
        num_classes: the number of classes of both.
        fingerprint: the source, the sizes and a hash of all bytes.
    """

    train: ImageSet
    validation: ImageSet
    num_classes: int
    fingerprint: dict[str, Any]


class ImageCollator:
    """Creates normalised batches; the crops and flips of training images depend only on the seed and their indices.

    A batch of the same images gets the same crops; shuffled batches of several images differ between epochs.
    """

    def __init__(self, seed: int):
        """Takes the seed of the crops."""
        self._seed = seed
        self._mean, self._deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns `images`, (batch, 3, size, size), and `labels`, (batch,)."""
        images = torch.stack([item["images"] for item in items])
        if items[0]["number"] is not None:
            images = self._augment(images, [item["number"] for item in items])
        images = (images.float().div_(255) - self._mean) / self._deviation
        return {
            "images": images.contiguous(memory_format=torch.channels_last),
            "labels": torch.stack([item["labels"] for item in items]),
        }

    def _augment(self, images: Tensor, numbers: Sequence[int]) -> Tensor:
        digest = blake2b(np.array([self._seed, *numbers], dtype=np.int64).tobytes(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
        (number, _, size, _), padding = images.shape, max(1, round(_PADDING * images.shape[-1]))
        tops, lefts = torch.randint(2 * padding + 1, (2, number, 1), generator=generator)
        mirrored = torch.rand((number, 1), generator=generator) < 0.5
        places = torch.arange(size)[None]
        rows, columns = tops + places, lefts + torch.where(mirrored, size - 1 - places, places)
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        chosen = padded[torch.arange(number)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return chosen.permute(0, 3, 1, 2)


def load_images(source: str, num_validation: int, image_size: int | None = None, seed: int = 0) -> ImageData:
    """Returns the images of a data set's train split, with some of them held out.

    Args:
        source: a folder with Parquet files whose names begin with "train", or a name on the Hub.
        num_validation: the number of held-out images, drawn with `seed`.
        image_size: the side length in pixels to reduce images to, by averaging over squares. Default: no reduction.
        seed: the seed of the draw.

    Raises:
        ValueError: the data set cannot be read or has no images or labels, images differ in size, the size cannot be
            halved twice, or `image_size` does not divide the size of the images.
    """
    rows = _read(source)
    image_column, label_column = _columns(rows, source)
    images, labels = _decoded(rows, image_column, label_column, source)
    whole = images.shape[-1]
    if image_size not in (None, images.shape[-1]):
        images = _smaller(images, int(image_size or 0), source)
    if whole < _SMALLEST:
        raise ValueError(f"the images of {source} have {whole} pixels per side; give images with at least {_SMALLEST}")
    if images.shape[-1] % 4:
        remedy = "give images whose size is a multiple of 4"
        if whole % 4 == 0:
            remedy = f"set image_size to a multiple of 4 that divides {whole}"
        raise ValueError(f"the images have {images.shape[-1]} pixels per side, which cannot be halved twice; {remedy}")
    if not 0 < num_validation < len(labels):
        raise ValueError(
            f"num_validation_images is {num_validation}, but {source} has {len(labels):,} images; give at least 1 and "
            f"fewer than that"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    held_out, rest = order[:num_validation].sort().values, order[num_validation:].sort().values
    fingerprint = {
        "source": Path(source).name,
        "num_images": len(labels),
        "image_size": images.shape[-1],
        "sha256": sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest(),
    }
    train, validation = (
        ImageSet(images[part], labels[part], is_augmented) for part, is_augmented in ((rest, True), (held_out, False))
    )
    return ImageData(train, validation, int(labels.max()) + 1, fingerprint)


def _read(source: str) -> Dataset:
    if find_spec("PIL") is None:
        raise ValueError("reading images needs Pillow; install it with `pip install magic-nas[images]`")
    folder = Path(source)
    try:
        if not folder.is_dir():
            data = load_dataset(source, split="train")
        else:
            files = sorted(map(str, folder.rglob("train*.parquet")))
            if not files:
                raise ValueError(f"{source} has no file train*.parquet; give the folder of a data set of images")
            data = load_dataset("parquet", data_files=files, split="train")
    except (DatasetGenerationError, ArrowException) as error:
        if isinstance(error, DatasetGenerationCastError) or isinstance(error.__cause__, CastError):
            raise ValueError(
                f"the files train*.parquet in {source} have different columns; give the folder of one data set"
            ) from None
        raise _damaged(source, error.__cause__ or error) from None
    except (OSError, RuntimeError) as error:
        if folder.is_dir():
            raise _damaged(source, error) from None
        raise ValueError(
            f"{source} is neither a folder nor a data set that can be loaded: {first_line(error)}"
        ) from None
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        # From metadata that has become another text.
        raise _damaged(source, error) from None
    assert isinstance(data, Dataset)
    return data


def _damaged(source: str, error: BaseException) -> ValueError:
    return ValueError(
        f"the images of {source} cannot be read ({first_line(error)}); a file is truncated or damaged; copy it again"
    )


def _columns(rows: Dataset, source: str) -> tuple[str, str]:
    names = rows.column_names
    images = [name for name in names if isinstance(rows.features[name], Image)]
    images += [name for name in ("image", "img") if name in names and name not in images]
    labels = [name for name in _LABEL_COLUMNS if name in names]
    for found, what in ((images, "image"), (labels, "label")):
        if not found:
            raise ValueError(
                f"{source} has no column {what!r}; its columns are {', '.join(names)}; rename one of them"
            )
    return images[0], labels[0]


def _decoded(rows: Dataset, image_column: str, label_column: str, source: str) -> tuple[Tensor, Tensor]:
    from PIL import UnidentifiedImageError

    try:
        rows = rows.cast_column(image_column, Image(mode="RGB"))
    except (ArrowException, TypeError) as error:
        raise ValueError(f"the column {image_column!r} of {source} has no images ({first_line(error)})") from None
    arrays: list[np.ndarray] = []
    try:
        for image in progress_bar(rows[image_column], desc="images", leave=False):
            if image is None:
                raise ValueError(f"row {len(arrays)} of {source} has no image; remove it")
            arrays.append(np.asarray(image))
            _check_shape(arrays[-1].shape, arrays[0].shape, f"image {len(arrays) - 1} of {source}")
    except (ArrowException, OSError, SyntaxError) as error:
        # Pillow raises a SyntaxError for some damages, and names no file for others.
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise ValueError(
            f"image {len(arrays)} of {source} cannot be read ({reason}); copy the damaged file again"
        ) from None
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(), _labels(rows, label_column, source)


def _check_shape(shape: Sequence[int], first: Sequence[int], name: str) -> None:
    (height, width), remedy = shape[:2], "all must be squares of the same size"
    if height != width:
        raise ValueError(f"{name} has {width} x {height} pixels; {remedy}")
    if shape != first:
        raise ValueError(f"{name} has {width} x {height} pixels but the first has {first[1]} x {first[0]}; {remedy}")


def _labels(rows: Dataset, column: str, source: str) -> Tensor:
    labels = list(rows[column])
    for number, label in enumerate(labels):
        if not isinstance(label, int) or label < 0:
            raise ValueError(
                f"row {number} of {source}: {column} is {label!r}; it must be the index of a class, at least 0"
            )
    if len(set(labels)) < 2:
        raise ValueError(f"all images of {source} belong to one class; give images of at least two classes")
    return torch.tensor(labels)


def _smaller(images: Tensor, size: int, source: str) -> Tensor:
    whole = images.shape[-1]
    if size < 1 or whole % size:
        raise ValueError(f"image_size is {size}, which does not divide the {whole} pixels of the images of {source}")
    parts = [torch.nn.functional.avg_pool2d(part.float(), whole // size).round() for part in images.split(4096)]
    return torch.cat(parts).to(torch.uint8)
