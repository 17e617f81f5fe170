"""Tell files that exam does not read (documents, pictures, archives) by their first bytes."""

import re
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

from exam.core.errors import ExamError

HEAD = 2048  # bytes that tell a file's kind
EXCEL = "Save it as CSV UTF-8 (in Excel: File, Save As), and give that file."
UNPACK = "Unpack it, and give one of its files."
PICKLE = "Save it as CSV: frame.to_csv(path, index=False)"
FETCH = "Fetch the file itself again."
QUESTIONS = "Write its questions into a table (CSV, JSON Lines or Parquet), and give that file."
ARTICLES = (
    "Convert it to plain text in UTF-8, and give that: corpus=text corpus.dir=<folder> "
    "corpus.files=<file>"
)


@dataclass(frozen=True)
class Kind:
    """A kind of file, and how to make a table of it; None: it is a document, not data."""

    name: str
    remedy: str | None = None


SIGNATURES = {  # regular expressions of the first bytes
    rb"%PDF": Kind("a PDF"),
    rb"{\\rtf": Kind("an RTF document"),
    rb"%!PS": Kind("a PostScript file"),
    rb"AT&TFORM": Kind("a DjVu document"),
    rb"\x89PNG|\xff\xd8\xff|GIF8|II\*\0|MM\0\*|RIFF.{4}WEBP": Kind("a picture"),
    rb"\xd0\xcf\x11\xe0": Kind("an old Office document", EXCEL),
    rb"ARROW1|FEA1": Kind(
        "an Arrow file", "Save it as Parquet: pyarrow.parquet.write_table(table, path)"
    ),
    rb"\x89HDF|\x93NUMPY": Kind("a file of arrays", "Save its table as CSV, and give that file."),
    rb"SQLite format 3": Kind("a database", "Export its table as CSV, and give that file."),
    rb"\x80[\x02-\x05]": Kind("a Python pickle", PICKLE),
    rb"version https://git-lfs": Kind(
        "a pointer of Git LFS", "Fetch the file itself: git lfs pull"
    ),
    rb"PK\x03\x04|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd|.{257}ustar": Kind("an archive", UNPACK),
    rb"(?i)(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype )?html": Kind("a web page", FETCH),
    rb"<\?xml": Kind("XML"),
}
MEMBERS = {  # regular expressions of names in a zip archive
    r"xl/workbook": Kind("an Excel workbook", EXCEL),
    r"word/document": Kind("a Word document"),
    r"ppt/presentation": Kind("a presentation"),
    r"META-INF/container\.xml": Kind("an EPUB"),
    r"content\.xml": Kind("an OpenDocument file", EXCEL),
}


def find_kind(path: Path, head: bytes) -> Kind | None:
    """Return the kind of a file that starts so, if it is neither a table nor a text."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"PK") and is_zipfile(path):
        try:
            with ZipFile(path) as archive:
                names = archive.namelist()
        except BadZipFile:
            names = []
        return find_document(names) or Kind(f"an archive of {len(names)} files", UNPACK)
    if path.suffix.lower() in (".html", ".htm", ".xhtml") and start.startswith(b"<"):
        return Kind("a web page", FETCH)
    return next((k for s, k in SIGNATURES.items() if re.match(s, start, re.DOTALL)), None)


def find_document(names: list[str]) -> Kind | None:
    """Return the kind of a document that consists of these files in a zip archive."""
    matches = (kind for part, kind in MEMBERS.items() if any(re.match(part, n) for n in names))
    return next(matches, None)


def not_a_table_error(path: Path, kind: Kind, document_remedy: str) -> ExamError:
    """Return the refusal of a file of a kind that is not read as a table."""
    return ExamError(f"{path} is {kind.name}, not a table.\n{kind.remedy or document_remedy}")
