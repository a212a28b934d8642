"""Log of a run: one JSON line for each step and each evaluation, and a table of them at the end."""

import json
from pathlib import Path
from typing import Any

from tempme_export.errors import ExportError
from tempme_export.files import write_file

Row = dict[str, Any]


class MetricsLog:
    """A file of JSON lines that a killed process leaves readable: at worst its last line is cut.

    steps  lines of later steps, and a cut line, are taken off before anything is added
    Raises ExportError when it cannot be written.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        kept = [row for row in read_rows(path) if row["step"] <= steps]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_file(path, text.encode())

    def add(self, row: Row) -> None:
        """Append one line; it is in the file when this returns."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise ExportError(
                f"{self.path} could not be written ({error.strerror}). Make room, then --resume."
            ) from error

    def write_table(self, path: Path) -> None:
        """All lines as Parquet; a column that a line does not have is null there."""
        import polars as pl

        frame = pl.DataFrame(read_rows(self.path), infer_schema_length=None)
        write_file(path, frame.write_parquet)


def read_rows(path: Path) -> list[Row]:
    """The whole lines of a log, in order; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]
