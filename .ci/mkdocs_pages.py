"""The pages of the site that do not lie in docs/: the README and what it and docs/ link to."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#]+)|(?<=src=\")([^\"]+)")


def page_of(path: Path) -> str | None:
    """Where in the site a file of the repository lies, None for what is no page or picture of it."""
    name = path.relative_to(ROOT).as_posix()
    if name == "README.md":
        return "index.md"
    if path.suffix in (".md", ".svg", ".jpg", ".png") and path.is_file():
        return name.removeprefix("docs/").replace("/README.md", ".md")
    return None


def linked_files() -> set[Path]:
    """The files that pages link to, and what these link to in turn."""
    found, waiting = set(), [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    while waiting:
        path = waiting.pop()
        if path in found or page_of(path) is None:
            continue
        found.add(path)
        if path.suffix == ".md":
            links = (one or other for one, other in LINK.findall(path.read_text(encoding="utf-8")))
            waiting += [(path.parent / link).resolve() for link in links if ":" not in link]
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted(linked_files()):
        place = page_of(path)
        if place is not None and files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as they are in the site; what is no page of it is named, not linked."""
    source = Path(page.file.abs_src_path or "").resolve()
    up = "../" * page.file.src_uri.count("/")

    def place_of(link: str) -> str | None:
        path = (source.parent / link).resolve()
        return page_of(path) if path.is_relative_to(ROOT) else None

    def in_site(match: re.Match) -> str:
        link = match.group()
        place = None if ":" in link else place_of(link)
        return link if place is None else up + place

    def named(match: re.Match) -> str:
        words, link = match.groups()
        return match.group() if ":" in link or place_of(link) else words

    markdown = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)\)", named, markdown)
    return LINK.sub(in_site, markdown)
