"""Files and links that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir())


def quoted(text: str) -> list[str]:
    """What stands in backticks, code blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def paths_in(document: Path) -> set[str]:
    """Paths of this repository, from its root, that a document names in backticks."""
    first = "|".join(re.escape(folder) for folder in FOLDERS)
    return {
        name.rstrip("/")
        for name in quoted(document.read_text())
        if re.fullmatch(rf"(?:{first})/[\w./-]*", name) and not name.startswith("runs/")
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(document: Path) -> None:
    missing = sorted(path for path in paths_in(document) if not (ROOT / path).exists())
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", document.read_text())
    assert not [target for target in targets if not (document.parent / target).exists()]


def test_documents_name_paths_at_all() -> None:
    found = paths_in(ROOT / "docs" / "architecture.md")
    assert {"kernels/options.py", "passk_fast/advantage/registry.py"} <= found


def test_the_picture_of_layers_is_the_contract() -> None:
    """docs/architecture.md repeats the contract's layers, in its order."""
    contract = (ROOT / "pyproject.toml").read_text().partition("layers = [")[2].partition("]")[0]
    layers = [layer for layer in re.findall(r'"([^"]+)"', contract) if layer != "__main__"]
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert "\n".join(layers) in text


def test_every_page_can_be_found_from_the_readme_or_the_architecture() -> None:
    known = (ROOT / "README.md").read_text() + (ROOT / "docs" / "architecture.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"architecture.md"}
    assert not [page for page in sorted(pages) if page not in known]
