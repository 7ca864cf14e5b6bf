"""Turn samples into pandas tables, and pandas tables into samples.

The columns are those of a manifest.  Pandas is imported only when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reid.data.label_text import cell_text
from reid.data.manifest import samples_of_rows
from reid.data.manifest_columns import KNOWN_COLUMNS, name_columns
from reid.records import Sample, sample_columns

if TYPE_CHECKING:
    import pandas as pd


def samples_to_frame(samples: Sequence[Sample]) -> pd.DataFrame:
    """Return one row for each sample, in their order, with the columns of a manifest.

    Args:
        samples: The samples.

    Returns:
        A table with the columns path, identity, camera, modality, category, split, time and track.  Times are
        ``datetime`` objects or None, everything else is text.  Where crops are generated, the column generated says
        "yes" for these.

    Example:
        >>> frame = samples_to_frame([Sample(Path("0001.jpg"), identity="anna", camera="door")])
        >>> frame.loc[0, ["path", "camera", "split"]].to_list()
        ['0001.jpg', 'door', 'gallery']
    """
    import pandas as pd

    columns = sample_columns(samples)
    if any(sample.generated for sample in samples):
        columns["generated"] = ["yes" if sample.generated else "" for sample in samples]
    return pd.DataFrame(columns, dtype=object)


def samples_from_frame(frame: pd.DataFrame, folder: Path | str = ".") -> tuple[Sample, ...]:
    """Turn a table with the columns of a manifest into samples.

    Args:
        frame: The table; the columns path, identity and split are required.  Missing cells (None, NaN, NaT) count as
            empty, and other columns are ignored.
        folder: The folder that relative paths in the table belong to.

    Returns:
        The samples in the order of the rows.

    Raises:
        DataError: A required column is missing, a cell is wrong, or there is no row.  The message names the row by
            its position, from 1.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"path": ["0001.jpg"], "identity": ["anna"], "split": ["query"], "age": [31]})
        >>> samples_from_frame(frame, "crops")[0].path.as_posix()
        'crops/0001.jpg'
    """
    columns = name_columns("table", [str(name) for name in frame.columns])
    cells = frame.astype(object).where(frame.notna(), None)
    used = [position for position, name in enumerate(columns.names) if name in KNOWN_COLUMNS]
    rows = (
        (f"row {number}", {columns.names[position]: cell_text(row[position]) for position in used})
        for number, row in enumerate(cells.itertuples(index=False, name=None), start=1)
    )
    return samples_of_rows(columns, rows, Path(folder), "table").samples
