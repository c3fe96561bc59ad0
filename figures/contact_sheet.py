"""What a search found, as a page or an image to look at."""

import base64
import html
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from ..data.whole_files import check_place, write_text
from ..search.hits import SearchHit

logger = logging.getLogger(__name__)

Answers = Sequence[tuple[str, Sequence[SearchHit]]]
PAGES = (".html", ".htm")
IMAGE_SIZE = 320  # pixels, of the longest side
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>tpas search</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .75rem; max-width: 60rem; overflow-wrap: anywhere; }}
ol {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; }}
ol {{ list-style: none; margin: 0; padding: 0; }}
figure {{ margin: 0; }}
img, .absent {{ width: 100%; aspect-ratio: 3 / 4; object-fit: contain; background: #8882; }}
.absent {{ display: grid; place-items: center; }}
figcaption {{ font-size: .85rem; overflow-wrap: anywhere; }}
</style>
{answers}
</html>
"""
ANSWER = "<section><h2>{text}</h2>\n<ol>\n{hits}\n</ol></section>"
HIT = "<li><figure>{image}<figcaption><b>{rank}</b> · {score:.3f}<br>{name}</figcaption></figure></li>"


def check_sheet(path: Path) -> None:
    """Refuses, before anything is searched, what could not be written afterwards.

    Raises:
        ValueError: the suffix is none that a sheet can have.
        OSError: its folder cannot be made or written to.
        ImportError: only matplotlib is missing.
    """
    if path.suffix.lower() not in PAGES:
        from .saving import FORMATS

        if path.suffix.lower().lstrip(".") not in FORMATS:
            raise ValueError(f"{path}: a sheet ends in .html, .{', .'.join(FORMATS)}, got {path.suffix!r}")
    check_place(path)


def write_contact_sheet(path: Path, answers: Answers) -> None:
    """Writes a page that holds its images itself (.html), or a figure (.png, .jpg, .webp, .svg, .pdf).

    Raises:
        ValueError: a figure of nothing.
    """
    if path.suffix.lower() in PAGES:
        write_text(path, PAGE.format(answers="\n".join(_answer(text, hits) for text, hits in answers)))
        return
    from .results import ResultRow, plot_result_rows
    from .saving import save_figure

    save_figure(plot_result_rows([ResultRow.of_hits(text, hits) for text, hits in answers]), path)


def _answer(text: str, hits: Sequence[SearchHit]) -> str:
    items = (
        HIT.format(image=_image(hit), rank=hit.rank, score=hit.score, name=html.escape(hit.id))
        for hit in hits
    )
    return ANSWER.format(text=html.escape(text), hits="\n".join(items))


def _image(hit: SearchHit) -> str:
    """The image, small, inside the page; it may be gone since it was encoded."""
    try:
        image = hit.image()
    except (OSError, ValueError) as error:
        logger.warning("%s; a placeholder stands in its place", error)
        return '<div class="absent">no image</div>'
    image.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(hit.id)}" src="data:image/jpeg;base64,{content}">'
