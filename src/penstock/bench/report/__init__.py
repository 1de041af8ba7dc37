"""The report of a comparison: one offline HTML file, drawn from the records alone."""

from pathlib import Path

from penstock.core import DataError

__all__ = ["write"]


def write(out: Path) -> Path:
    """Write `report.html` into a study's folder and return its path; the same records give the same file.

    Args:
        out: the folder of a comparison, finished or not.

    Raises:
        DataError: the folder holds no comparison, or cannot be written to.
    """
    from penstock.bench.report.page import render
    from penstock.bench.report.records import read

    page = render(read(out))
    path, beside = out / "report.html", out / ".report.html.partial"
    try:
        beside.write_text(page, "utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(f"report: {path}: {error.strerror or error}") from error
    return path
