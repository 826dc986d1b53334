"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from treadle.errors import TreadleError


@contextlib.contextmanager
def replacing(
    path: Path, what: str = "", advice: str = "Give another path.", make_folder: bool = True
) -> Iterator[Path]:
    """A path beside `path` to write to: it takes the place of `path` when the block ends well, and is removed when not;
    what was there before is then as it was. Folders that are missing are made, unless `make_folder` is false.

    Raises `TreadleError` for an `OSError` within, as a sentence: `what` (such as "the figure") with the path cannot be
    written, why, and `advice`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        named = f"{what} {path}" if what else str(path)
        raise TreadleError(f"{named} cannot be written: {error.strerror or error}. {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
