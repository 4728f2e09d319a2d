"""The figure of an architecture."""

from PIL import Image

from training.displays import KIND_COLORS
from training.hub.figures import draw_architecture


def test_figure_of_an_architecture(tmp_path):
    """A box of its own colour for each operator; a long chain goes on in a second column."""
    short = Image.open(draw_architecture(("MHA4", "FFN"), tmp_path / "short.png"))
    bare = Image.open(draw_architecture(("MHA4", "FFN"), tmp_path / "bare.png", head=""))
    long = Image.open(draw_architecture(("MHA12", "CONV3") * 13, tmp_path / "long.png"))
    assert bare.height < short.height < long.height < 2 * long.width
    images = {"short": short, "long": long}
    colors = {name: set(image.convert("RGB").get_flattened_data()) for name, image in images.items()}
    attention, feed_forward, convolution = (
        tuple(bytes.fromhex(KIND_COLORS[kind][1:])) for kind in ("MHA", "FFN", "CONV")
    )
    assert {attention, feed_forward} <= colors["short"]
    assert convolution not in colors["short"]
    assert {attention, convolution} <= colors["long"]
    assert feed_forward not in colors["long"]
