"""The figure of an architecture."""

from PIL import Image

from training.hub.figures import draw_architecture


def test_figure_of_an_architecture(tmp_path):
    """A box of its own colour for each operator; a long chain goes on in a second column."""
    short = Image.open(draw_architecture(("MHA4", "FFN"), tmp_path / "short.png"))
    bare = Image.open(draw_architecture(("MHA4", "FFN"), tmp_path / "bare.png", head=""))
    long = Image.open(draw_architecture(("MHA12", "CONV3") * 13, tmp_path / "long.png"))
    assert bare.height < short.height < long.height < 2 * long.width
    images = {"short": short, "long": long}
    colors = {name: set(image.convert("RGB").get_flattened_data()) for name, image in images.items()}
    orange, blue, green = (0xF4, 0xA5, 0x82), (0x92, 0xC5, 0xDE), (0xA6, 0xD9, 0x6A)
    assert {orange, blue} <= colors["short"]
    assert green not in colors["short"]
    assert {orange, green} <= colors["long"]
    assert blue not in colors["long"]
