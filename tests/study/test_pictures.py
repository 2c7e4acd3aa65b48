"""Pictures of stored notebooks: smaller, and every pixel as it was."""

import io
from base64 import b64decode, b64encode

import numpy as np
import pytest
from PIL import Image

from quantlib.study.pictures import without_alpha


def encoded(pixels: np.ndarray) -> str:
    """An array of bytes as a PNG in base64."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "png")
    return b64encode(written.getvalue()).decode()


def decoded(png: str) -> np.ndarray:
    """The array behind it."""
    return np.asarray(Image.open(io.BytesIO(b64decode(png))))


def pixels(alpha: int) -> np.ndarray:
    """Random colours of one opacity."""
    rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    rgba[5, 5, 3] = alpha
    return rgba


def test_an_opaque_picture_keeps_every_pixel_and_loses_bytes() -> None:
    before = encoded(pixels(255))
    after = without_alpha(before)
    assert np.array_equal(decoded(after), pixels(255)[..., :3])
    assert len(after) < len(before)
    assert without_alpha(after) == after


@pytest.mark.parametrize("picture", [pixels(254), pixels(255)[..., :3], pixels(255)[..., 0]])
def test_any_other_picture_stays_as_it_is(picture: np.ndarray) -> None:
    assert without_alpha(encoded(picture)) == encoded(picture)
