"""The papers the catalogue cites: `papers.toml`, a table per paper."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Paper:
    """One table of `papers.toml`; its key is what cards and BibTeX use."""

    key: str
    title: str
    authors: str
    year: int
    arxiv: str = ""
    url: str = ""

    def bibtex(self) -> str:
        """Return a BibTeX entry."""
        rows = {"title": "{" + self.title + "}", "author": self.authors, "year": str(self.year)}
        if self.arxiv:
            rows |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        if self.url:
            rows["url"] = self.url
        body = ",\n".join(f"  {key} = {{{value}}}" for key, value in rows.items())
        return f"@misc{{{self.key},\n{body}\n}}"


@cache
def papers() -> dict[str, Paper]:
    """Return every paper by key."""
    text = files("penstock.core").joinpath("papers.toml").read_text("utf-8")
    return {key: Paper(key, **row) for key, row in tomllib.loads(text).items()}
