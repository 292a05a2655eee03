"""The site builds without a warning, asks no other host for anything, and holds what the repository links.

`mkdocs build --strict` fails at a link or anchor that leads nowhere, a page that the navigation forgets, and a
docstring that names a parameter which is not there.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],  # --quiet would hide warnings
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_every_guide_is_a_page_and_the_readme_is_the_first(site: Path) -> None:
    for guide in (REPOSITORY / "docs").glob("*.md"):
        assert (site / f"{guide.stem}.html").is_file(), guide.name
    assert '<h2 id="files"' in (site / "index.html").read_text()


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    """Links may lead elsewhere; scripts, styles, fonts and pictures are the site's own."""
    pages = {page.relative_to(site): page.read_text() for page in site.rglob("*.html")}
    address = r"\b(?:src|href|srcset)=[\"']?((?:https?:)?//[^\"' >]+)"
    loads = re.compile(rf"<(?:script|img|link|iframe|source)\b[^>]*?{address}")
    assert pages and {str(page): loads.findall(text) for page, text in pages.items() if loads.findall(text)} == {}
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    assert styles and not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", styles)


def test_the_reference_has_the_classes_that_users_call(site: Path) -> None:
    for page, name in {
        "model": "modeling_multitask.MultiTaskModel.predict",
        "data": "task_sampler.TaskSamplingDataset",
        "training": "trainer_multitask.MultiTaskTrainer",
        "answers": "graph_model.GraphModel",
    }.items():
        assert f'id="{name}"' in (site / "api" / f"{page}.html").read_text(), name


def test_links_out_of_the_guides_lead_to_files_of_the_site(site: Path) -> None:
    """The README's figures name their results files; on the site a reader can open them, too."""
    links = re.findall(r'href="(benchmarks/[^"]+)"', (site / "index.html").read_text())
    assert links
    for link in links:
        assert (site / link).read_bytes() == (REPOSITORY / link).read_bytes(), link


def test_every_picture_says_what_it_shows(site: Path) -> None:
    for page in site.rglob("*.html"):
        for picture in re.findall(r"<img\b[^>]*>", page.read_text()):
            alt = re.search(r'alt="([^"]*)"', picture)
            assert alt and len(alt[1]) > 20, (page.name, picture)
