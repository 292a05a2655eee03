"""A hook of MkDocs: README.md is the front page, and what pages link outside of docs/ is part of the site.

Pages link files by their place in the repository (`../recipes/quickstart.yaml`), as a Git host understands it. MkDocs
knows docs/ alone. So each such file is added to the site under its path in the repository, and the link is rewritten.
A folder is no page: of a link to one the text stays. A link that leads nowhere stays as it is, and
`mkdocs build --strict` reports it.

    mkdocs build --strict        # `hooks:` in mkdocs.yml names this file
"""

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *```.*?^ *```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#:]+)(#[^)\s]*)?\)")  # text, path without a scheme, anchor


def prose(text: str) -> Iterator[tuple[bool, str]]:
    """The pieces of a page in order: whether links count in it (it is not fenced code), and the piece."""
    for index, piece in enumerate(FENCE.split(text)):
        yield index % 2 == 0, piece


def linked_files(page: Path) -> set[Path]:
    """Files of the repository that a page links."""
    pieces = [piece for links, piece in prose(page.read_text()) if links]
    found = [page.parent / link[2] for piece in pieces for link in LINK.finditer(piece)]
    return {path.resolve() for path in found if path.is_file()}


def site_path(file: Path) -> str:
    """Where a file of the repository stands in the site: docs/ at the top, the README as index, others as they are."""
    if file == ROOT / "README.md":
        return "index.md"
    return file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT).as_posix()


def repository_file(uri: str) -> Path:
    """The file of the repository that stands at a place in the site."""
    if uri == "index.md":
        return ROOT / "README.md"
    return DOCS / uri if (DOCS / uri).exists() else ROOT / uri


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and all files that pages link, pages among them with what they link in turn."""
    seen: set[Path] = set()
    pages = [ROOT / "README.md", *(Path(str(file.abs_src_path)) for file in files.documentation_pages())]
    while pages:
        page = pages.pop().resolve()
        for file in {page} | linked_files(page) - seen:
            if file.suffix == ".md" and file not in seen | {page}:
                pages.append(file)
            seen.add(file)
            if files.get_file_from_path(site_path(file)) is None:
                inclusion = InclusionLevel.UNDEFINED if site_path(file) == "index.md" else InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, site_path(file), abs_src_path=str(file), inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """A page with the links to files as the site has them."""
    file = repository_file(page.file.src_uri)

    def rewrite(link: re.Match[str]) -> str:
        target = (file.parent / link[2]).resolve()
        if target.is_dir():
            return link[1].strip("![]")
        if not target.is_file():
            return link[0]
        path = relpath(site_path(target), Path(page.file.src_uri).parent.as_posix())
        return f"{link[1]}({path}{link[3] or ''})"

    return "".join(LINK.sub(rewrite, piece) if links else piece for links, piece in prose(markdown))
