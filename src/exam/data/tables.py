"""Read the rows of tables (CSV, JSON, Parquet, `save_to_disk`), and write CSV.

A file's content decides how it is unpacked and decoded, and its ending only where content leaves
doubt. What is empty throughout (rows, columns without a name, surplus cells) is left out.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any, Self

from exam.core.errors import ExamError
from exam.data import kinds
from exam.data.headers import check_is_first_row, check_names

DELIMITED, JSON, PARQUET = (".csv", ".tsv"), (".jsonl", ".ndjson", ".json"), (".parquet",)
PACKED = {".gz", ".bz2", ".xz", ".zip"}
ROWS = ("data", "examples", "instances", "items", "questions", "records", "results", "rows")
DELIMITERS = ",;\t|"
UNPACKERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
ENCODINGS = {  # by mark; that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SEPARATOR = re.compile(r'"?sep=(.)"?[,;]*\s*', re.IGNORECASE)  # a first line for Excel
SAVED = "state.json"  # in a folder of `Dataset.save_to_disk`
UNPACKING_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile)


class SpelledFloat(float):
    """A number that keeps the spelling of its file: an option 0.10 is not 0.1."""

    def __new__(cls, text: str) -> Self:
        """Keep the text."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        """Return the file's spelling."""
        return self.text


def is_table(path: Path) -> bool:
    """Tell whether a path's name is that of a table, compressed or not, or a saved data set."""
    return (path / SAVED).is_file() or _ending(path.name) in (*DELIMITED, *JSON, *PARQUET)


def is_parquet(path: Path) -> bool:
    """Tell whether a file is Parquet that can be read without unpacking it."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1" or path.suffix.lower() in PARQUET


def read_rows(
    path: Path, header: list[str] | None = None, *, document_remedy: str = kinds.QUESTIONS
) -> Iterator[dict[str, Any]]:
    """Yield a file's rows as dictionaries, in order.

    CSV values stay strings: "None" and "NA" are legitimate option texts. `header` names the columns
    of a CSV file without a header, and `document_remedy` says how to make a table of a document.

    Raises:
        ExamError: the file is missing, empty, damaged, or not a table.
    """
    if (path / SAVED).is_file():
        yield from _without_blanks(_saved_rows(path))
        return
    if not path.is_file():
        raise ExamError(f"{path} does not exist.")
    with ExitStack() as stack:
        stack.enter_context(_translate_unpacking_errors(path))
        name, file = _open(path, stack, document_remedy)
        head = file.peek(kinds.HEAD)
        if not head:
            raise ExamError(f"{path} is empty.\nGive a file with at least one row.")
        if (kind := kinds.find_kind(path, head)) is not None:
            raise kinds.not_a_table_error(path, kind, document_remedy)
        ending = _ending(name)
        if head.startswith(b"PAR1") or ending in PARQUET:
            rows = _parquet_rows(path, file)
        else:
            text = _decode(path, file, head)
            start = _first_lines(text)
            is_json = ending not in DELIMITED and start[-1].lstrip()[:1] in ("{", "[")
            if not is_json and ending not in JSON:
                yield from _csv_rows(path, ending, start, text, header)
                return
            rows = _json_rows(path, start[-1], chain(start, text))
        if header is not None:
            raise ExamError(
                f"{path} names its columns, and data.header={header} names them too.\n"
                "Set data.header=null"
            )
        yield from _without_blanks(rows)


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """Write rows so that reading them gives the same texts.

    Python's writer does not quote a carriage return, which also ends a line. If any cell has one,
    all cells are quoted.
    """
    has_return = any("\r" in cell for row in rows for cell in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL
        )
        writer.writerows([header, *rows])


def strip_packing(name: str) -> str:
    """Return a file's name without the ending of its compression."""
    path = Path(name)
    return path.stem if path.suffix.lower() in PACKED else name


def base_name(name: str) -> str:
    """Return a file's name without the endings of its format and its compression."""
    return Path(strip_packing(name)).stem


def _ending(name: str) -> str:
    """Return a name's ending in small letters, without that of its compression."""
    return Path(strip_packing(name)).suffix.lower()


def _open(
    path: Path, stack: ExitStack, document_remedy: str = kinds.QUESTIONS
) -> tuple[str, io.BufferedReader]:
    """Open a file, unpacked if it is packed; return also the name that its ending comes from."""
    file = stack.enter_context(path.open("rb"))
    magic = file.peek(kinds.HEAD)
    if unpack := next((UNPACKERS[mark] for mark in UNPACKERS if magic.startswith(mark)), None):
        return path.name, io.BufferedReader(stack.enter_context(unpack(file)))
    if zipfile.is_zipfile(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
        names = [n for n in archive.namelist() if not n.endswith("/") and "__MACOSX" not in n]
        if (kind := kinds.find_document(names)) is not None or len(names) != 1:
            kind = kind or kinds.Kind(f"an archive of {len(names)} files", kinds.UNPACK)
            raise kinds.not_a_table_error(path, kind, document_remedy)
        member: Any = stack.enter_context(archive.open(names[0]))
        return names[0], io.BufferedReader(member)
    return path.name, file


def _decode(path: Path, file: io.BufferedReader, head: bytes) -> Iterator[str]:
    """Yield a file's lines: of UTF-8, or as the mark at its start says."""
    encoding = next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and head.count(0) > len(head) // 3:
        raise ExamError(f"{path} is UTF-16 without a byte-order mark.\nSave it as UTF-8.")
    try:
        yield from io.TextIOWrapper(file, encoding, newline="")
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            _check_utf8(path)
        raise ExamError(
            f"{path} is not whole {encoding.upper()}: {error.reason}.\nSave it as UTF-8."
        ) from None


def _check_utf8(path: Path) -> None:
    """Name the line of the first byte that is not UTF-8."""
    with ExitStack() as stack:
        _, file = _open(path, stack)
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ExamError(
                    f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8.\n"
                    "Save the file as UTF-8 (in Excel: CSV UTF-8)."
                ) from None


def _first_lines(lines: Iterator[str]) -> list[str]:
    """Return the lines up to the first that holds more than blanks and delimiters."""
    start = []
    for line in lines:
        start.append(line)
        if line.strip(f'{DELIMITERS}"\r\n\t \xa0'):
            break
    return start or [""]


def _csv_rows(
    path: Path, ending: str, start: list[str], lines: Iterator[str], header: list[str] | None
) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    before = len(start) - 1
    if separator := SEPARATOR.fullmatch(start[-1]):
        start = _first_lines(lines)
        before += len(start)
    delimiter = separator[1] if separator else _find_delimiter(start[-1], ending)
    cells = _split(start[-1], delimiter)[1:]
    reader = csv.reader(
        chain(start[-1:], lines),
        strict=True,
        delimiter=delimiter,
        skipinitialspace=bool(cells) and all(cell.startswith(" ") for cell in cells if cell),
    )
    try:
        if header is None:
            names = [name.strip() for name in next(reader, [])]
            while names and not names[-1]:
                names.pop()
            check_names(path, names)
        else:
            names = header
        number = 0
        for row in reader:
            if not any(map(str.strip, row)):
                continue
            number += 1
            location = f"{path}, line {before + reader.line_num}: row {number}"
            if number == 1 and header is not None:
                check_is_first_row(path, header, row)
            _check_width(location, row, names, delimiter)
            yield {name: cell for name, cell in zip(names, row, strict=False) if name}
    except csv.Error as error:
        raise ExamError(
            f"{path}, line {before + reader.line_num} is not valid CSV: {error}.\n"
            f"Quote fields that contain {delimiter!r}, quotes or line breaks."
        ) from None


def _find_delimiter(line: str, ending: str) -> str:
    """Return the delimiter that splits a line into the most filled fields; a comma if none does."""
    if ending == ".tsv" and "\t" in line:
        return "\t"
    return max(DELIMITERS, key=lambda d: sum(bool(cell.strip()) for cell in _split(line, d)))


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _check_width(location: str, row: list[str], names: list[str], delimiter: str) -> None:
    """Refuse a row with too few fields, or with text where the header has no name.

    Only the first column may lack a name: it is the index that pandas writes.
    """
    if len(row) < len(names) or any(map(str.strip, row[len(names) :])):
        raise ExamError(
            f"{location} has {len(row)} fields, the header {len(names)}.\n"
            f"Quote fields that contain {delimiter!r} or line breaks, and write every field."
        )
    for column, (name, cell) in enumerate(zip(names, row, strict=False), 1):
        if not name and column > 1 and cell.strip():
            raise ExamError(
                f"{location} holds {cell.strip()[:40]!r} in column {column}, which has no name.\n"
                "Name the column in the header, or empty it."
            )


def _json_rows(path: Path, first: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON array, or of lines with one each."""
    if not first.strip():
        return
    if first.lstrip().startswith("[") or not first.rstrip().endswith("}"):
        parsed = _parse_json(path, "".join(lines), 1)
        for number, item in enumerate(parsed if isinstance(parsed, list) else [parsed], 1):
            yield from _unwrap(item, f"{path}, item {number}")
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield from _unwrap(_parse_json(path, line, number), f"{path}, line {number}")


def _parse_json(path: Path, text: str, number: int) -> Any:
    """Parse a text that begins in the line of that number."""
    try:
        value = json.loads(text, object_pairs_hook=_make_object, parse_float=SpelledFloat)
        if re.search(r"\\ud", text, re.IGNORECASE):  # half a surrogate pair cannot be encoded again
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ExamError(
            f"{path}, line {number} holds half of a surrogate pair.\n"
            "Write characters as UTF-8, or as whole pairs."
        ) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            number += error.lineno - 1
        raise ExamError(
            f"{path}, line {number} is not JSON: {error}.\n"
            "Write one object a line, or one array of objects."
        ) from None
    return value


def _unwrap(item: Any, location: str) -> Iterator[dict[str, Any]]:
    """Yield an object, or the objects of the one list that it holds."""
    if not isinstance(item, dict):
        raise ExamError(f"{location} is a {type(item).__name__}.\nWrite one object for each row.")
    tables = [key for key, value in item.items() if _is_table(value)]
    rest = [value for key, value in item.items() if key not in tables]
    is_named = bool(tables) and tables[0].casefold() in ROWS and not any(map(_is_list, rest))
    if len(tables) == 1 and (not rest or is_named):
        yield from item[tables[0]]
    elif _is_frame(item):
        number = len(next(iter(item.values())))
        yield from ({name: column[str(i)] for name, column in item.items()} for i in range(number))
    else:
        yield item


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(row, dict) for row in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_frame(item: dict[str, Any]) -> bool:
    """Tell whether an object holds the columns of a data frame, as pandas writes one."""
    columns = list(item.values())
    if len(columns) < 2 or not all(isinstance(column, dict) and column for column in columns):
        return False
    rows = [*map(str, range(len(columns[0])))]
    return all(list(column) == rows for column in columns)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object with two equal names, for which JSON has no rule."""
    row = dict(pairs)
    if len(row) < len(pairs):
        [(name, count)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} occurs {count} times")
    return row


def _parquet_rows(path: Path, file: io.BufferedReader) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    source = path if isinstance(file.raw, io.FileIO) else io.BytesIO(file.read())
    with translate_parquet_errors(path), pq.ParquetFile(source) as parquet:
        check_names(path, parquet.schema_arrow.names)
        for batch in parquet.iter_batches(batch_size=1024):
            yield from _spell_singles(batch).to_pylist()


def _spell_singles(batch: Any) -> Any:
    """Return a batch whose single-precision columns read as they print: 0.1, not 0.1000000015."""
    import pyarrow as pa

    for i, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type):
            column = batch.column(i).cast(pa.string()).cast(pa.float64())
            batch = batch.set_column(i, field.name, column)
    return batch


def _saved_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a folder that `datasets` wrote with `save_to_disk`."""
    import pyarrow as pa
    from datasets import load_from_disk

    try:
        yield from load_from_disk(str(folder))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ExamError(
            f"{folder} is not a whole folder of save_to_disk: {str(error).splitlines()[0]}\n"
            "Save it again: dataset.save_to_disk(folder)"
        ) from None


def _without_blanks(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out rows without a value, and a column without a name."""
    for row in rows:
        row.pop("", None)
        if not all(map(_is_blank, row.values())):
            yield row


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and isnan(value))


@contextmanager
def translate_parquet_errors(path: Path) -> Iterator[None]:
    """Raise an ExamError for a Parquet file that cannot be read.

    Python also fails on some valid cells: undecodable texts, times out of range.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExamError(f"{path} is not a whole Parquet file: {reason}\nFetch it again.") from None


@contextmanager
def _translate_unpacking_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UNPACKING_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ExamError(f"{path} is damaged: {reason}\nFetch it again.") from None
