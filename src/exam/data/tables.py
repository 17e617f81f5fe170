"""Read the rows of CSV, Parquet and JSONL files, and write CSV."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exam.core.errors import ExamError


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a file's rows as dictionaries, in order.

    CSV values stay strings: "None" and "NA" are legitimate option texts.

    Raises:
        ExamError: the file is missing, empty, not UTF-8, or not in the format of its suffix.
    """
    readers = {".csv": _csv_rows, ".parquet": _parquet_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise ExamError(f"{path} is none of {', '.join(readers)}.\nConvert it to one of them.")
    if not path.is_file():
        raise ExamError(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise ExamError(f"{path} is empty.\nGive a file with a header and at least one row.")
    yield from readers[path.suffix](path)


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


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    _check_utf8(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(2**31 - 1)
        rows = csv.reader(file, strict=True, delimiter=_delimiter(path))
        try:
            header = next(rows, [])
            _check_header(path, header)
            for number, row in enumerate(filter(None, rows), 1):
                if len(row) != len(header):
                    raise ExamError(
                        f"{path}, row {number} has {len(row)} fields, the header {len(header)}.\n"
                        "Quote fields that contain commas or line breaks."
                    )
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise ExamError(
                f"{path}, line {rows.line_num} is not valid CSV: {error}.\n"
                "Quote fields that contain commas, quotes or line breaks."
            ) from None


def _delimiter(path: Path) -> str:
    """Return the delimiter: a semicolon or tab if the header has one and no comma."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    return next((delimiter for delimiter in ",;\t" if delimiter in header), ",")


def _check_header(path: Path, header: list[str]) -> None:
    for name, count in Counter(header).items():
        if count > 1:
            raise ExamError(
                f"{path} has {count} columns named '{name}'.\nRename all but one of them."
            )


def _check_utf8(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ExamError(
                    f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8.\n"
                    "Save the file as UTF-8 (in Excel: CSV UTF-8)."
                ) from None


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    _check_utf8(path)
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_make_object)
                if "\\ud" in line.lower():  # half of a surrogate pair cannot be encoded again
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ExamError(
                    f"{path}, line {number} holds half of a surrogate pair.\n"
                    "Write characters as UTF-8, or as whole pairs."
                ) from None
            except (ValueError, RecursionError) as error:
                raise ExamError(
                    f"{path}, line {number} is not JSON: {error}.\nWrite one object a line."
                ) from None
            if not isinstance(row, dict):
                raise ExamError(
                    f"{path}, line {number} is a {type(row).__name__}.\nWrite one object a line."
                )
            yield row


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object with two equal names, for which JSON has no rule."""
    row = dict(pairs)
    if len(row) < len(pairs):
        [(name, count)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} occurs {count} times")
    return row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with translate_parquet_errors(path), pq.ParquetFile(path) as file:
        _check_header(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


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
