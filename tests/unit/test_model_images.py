"""Image features into the text: one to one or a clear error; tiles that repeat within a step are encoded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sophia_mcore.errors import SophiaError
from sophia_mcore.model.images import PictureCache, Pixels, check_image_tokens, fill_image_tokens
from sophia_mcore.model.vision.internvl import pixel_shuffle

IMAGE = 9


def ids(*runs: int) -> Tensor:
    """A row in which each run is that many image tokens between two words."""
    return torch.tensor([[token for run in runs for token in (1, *[IMAGE] * run, 2)]])


def check(row: Tensor, index: range, features: int, boundaries: list[int], names: tuple[str, ...] = ()) -> None:
    check_image_tokens(row, torch.tensor(index, dtype=torch.long), features, IMAGE, boundaries, names)


def test_matching_rows_pass() -> None:
    """Nothing is raised."""
    check(ids(4, 8), range(12), 12, [0, 6, 16])
    check(ids(0), range(0), 0, [0, 2])


def test_a_mismatch_names_the_sample() -> None:
    with pytest.raises(SophiaError) as error:
        check(ids(4, 3), range(8), 8, [0, 6, 11], ("train-1", "train-2"))
    assert "7 image tokens, but 8 features" in str(error.value)
    assert "train-1 has 4; train-2 has 3" in str(error.value)


def test_all_samples_with_images_are_named() -> None:
    with pytest.raises(SophiaError, match="train-1 has 4; train-3 has 8"):
        check(ids(4, 0, 8), range(8), 8, [0, 6, 8, 18], ("train-1", "train-2", "train-3"))


def test_image_tokens_without_an_image() -> None:
    with pytest.raises(SophiaError, match=r"4 image tokens, but 0 features .*sequence 0 of the row has 4"):
        check(ids(4), range(0), 0, [0, 6])


def test_a_feature_that_is_not_there() -> None:
    with pytest.raises(SophiaError, match="names feature 5, but the batch has 4"):
        check(ids(4), range(2, 6), 4, [0, 6])


def test_features_go_to_their_places_and_replaced_embeddings_get_no_gradient() -> None:
    rows = torch.cat((ids(4), torch.tensor([[3, IMAGE, IMAGE, IMAGE, IMAGE, 3]])))
    hidden = torch.randn(6, 2, 5, requires_grad=True)
    features = torch.randn(2, 4, 5, requires_grad=True)
    filled = fill_image_tokens(hidden, features.flatten(0, 1), rows, IMAGE)
    torch.testing.assert_close(filled[1:5, 0], features[0])
    torch.testing.assert_close(filled[1:5, 1], features[1])
    torch.testing.assert_close(filled[[0, 5]], hidden[[0, 5]])
    filled.sum().backward()
    assert hidden.grad is not None and features.grad is not None
    assert hidden.grad[1:5].abs().max() == 0 and (hidden.grad[[0, 5]] == 1).all() and (features.grad == 1).all()


def test_pixel_shuffle_is_row_major_over_squares() -> None:
    side = 4
    patches = torch.arange(side * side).view(1, side * side, 1)
    assert pixel_shuffle(patches, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_repeated_tiles_are_encoded_once_and_others_are_not_kept() -> None:
    cache, encoded = PictureCache(), []

    def encode(pictures: Pixels) -> Tensor:
        encoded.extend(pictures.values.flatten().tolist())
        return pictures.values.view(-1, 1, 1) * 10

    def same(rows: int) -> int:
        return rows

    def tiles(*values: float) -> Pixels:
        return Pixels.of(torch.tensor(values).view(-1, 1, 1, 1), None)

    cache.start({"a": 3, "b": 1, "c": 1})
    assert cache.encode(["a", "b"], tiles(1, 2), same, encode).flatten().tolist() == [10, 20]
    assert cache.encode(["c", "a"], tiles(3, 1), same, encode).flatten().tolist() == [30, 10]
    assert cache.encode(["a"], tiles(1), same, encode).flatten().tolist() == [10]
    assert encoded == [1, 2, 3]
    cache.encode(["a", "b"], tiles(1, 2), same, encode)
    assert encoded == [1, 2, 3, 1, 2], "nothing may be kept beyond its last row: features are large"
    cache.start({"a": 2})
    cache.encode(["a"], tiles(4), same, encode)
    cache.start({"a": 2})
    assert cache.encode(["a"], tiles(5), same, encode).item() == 50, "a new step must encode again"
