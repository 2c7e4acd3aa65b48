"""The pictures that a stored notebook carries."""

import io
from base64 import b64decode, b64encode

from PIL import Image


def without_alpha(png: str) -> str:
    """A PNG in base64 without an alpha channel that hides nothing: the same pixels in fewer bytes.

    Anything else comes back as it was: a picture with real transparency, or one that has no alpha channel.
    """
    picture = Image.open(io.BytesIO(b64decode(png)))
    if picture.mode != "RGBA" or picture.getchannel("A").getextrema() != (255, 255):
        return png
    written = io.BytesIO()
    picture.convert("RGB").save(written, "png", optimize=True)
    return b64encode(written.getvalue()).decode()
