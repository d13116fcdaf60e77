"""Log of a run as a CSV file: one row for each logged dictionary, a column for each name.

The file mirrors `state.log_history`, which a checkpoint carries. So a resumed run's file has no rows from after the
checkpoint, none twice, and equals that of a run that was never interrupted.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..core.files import read_utf8, write_whole, writing

Value = int | float | str
FIRST_COLUMNS = ("step", "epoch")


class MetricsCSVCallback(TrainerCallback):
    """Writes each logged dictionary as a row, on the first process. The file is complete after every row.

    Columns are "step", "epoch" and the logged names in the order in which they came. Where a new one comes, and where
    training starts or is resumed, the file is written anew.

    Args:
        path: The file; its folder is made. A file of an earlier run is replaced.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._columns: list[str] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Write what the run has logged so far: nothing, or what its checkpoint knows."""
        if state.is_world_process_zero:
            self._write_anew(state.log_history)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Value] | None = None,
        **kwargs,
    ) -> None:
        """Append a row, which the Trainer has put at the end of `state.log_history` by now."""
        if not state.is_world_process_zero or not state.log_history:
            return
        row = state.log_history[-1]
        if self._columns is None or not row.keys() <= set(self._columns):
            self._write_anew(state.log_history)
            return
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(_format_rows([row], self._columns))

    def _write_anew(self, history: Iterable[Mapping[str, Value]]) -> None:
        rows = list(history)
        names = dict.fromkeys(name for row in rows for name in row)
        self._columns = [*FIRST_COLUMNS, *(name for name in names if name not in FIRST_COLUMNS)]
        header = dict(zip(self._columns, self._columns, strict=True))
        write_whole(self.path, _format_rows([header, *rows], self._columns))


def _format_rows(rows: Iterable[Mapping[str, Value]], columns: list[str]) -> str:
    """CSV lines; numbers as Python writes them, so that reading gives the same number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writerows(rows)
    return text.getvalue()


def read_metrics(path: str | Path) -> list[dict[str, Value]]:
    """The rows of a file of `MetricsCSVCallback`, as they were logged.

    A row that a kill has cut off, the last one without its line's end, is left out.

    Args:
        path: The file.

    Returns:
        For each row its values under their names, whole numbers as `int`, others as `float` (nan and inf too), and
        what is no number as `str`; a name that was not logged is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text, has no column "step", or a row with more values than columns.
    """
    text = read_utf8(path)
    complete = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(complete))
    names = reader.fieldnames or ()
    if "step" not in names:
        raise ValueError(
            f"{path} has the columns {', '.join(names) or '(none)'}, but a file of logged metrics has 'step' among "
            "them; give the file that MetricsCSVCallback wrote"
        )
    rows = []
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num} of {path} has more values than columns: delete the line")
        rows.append({name: _parse(value) for name, value in row.items() if value})
    return rows


def _parse(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
