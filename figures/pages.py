"""Pages that need nothing beside themselves: images are inside them, they run no script and ask no server."""

import base64
import io
from pathlib import Path

import jinja2
from PIL import Image

TEMPLATES = Path(__file__).parent


def render(template: str, **content: object) -> str:
    """The page that a template of this folder makes of its content, all of which is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "thousands": "{:,}".format}
    return environment.get_template(template).render(content)


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def points(gain: float) -> str:
    """A gain in Recall@1 as points with their sign; what rounds to nothing has none."""
    return f"{100 * gain:+.1f}".replace("-", "−") if round(100 * gain, 1) else "0.0"


def image_address(image: Image.Image, edge: int) -> str:
    """The image as a data address, at most `edge` pixels on its longer side; `image` itself is shrunk."""
    image.thumbnail((edge, edge))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return data_address("image/jpeg", file.getvalue())


def data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
