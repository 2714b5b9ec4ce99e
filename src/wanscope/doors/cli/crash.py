"""A file for the traceback of an unexpected error."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from wanscope import __version__


def write_report(error: BaseException) -> Path | None:
    """Write the traceback to the user's log folder, else to the temporary folder.

    Returns the file, or None where neither folder can be written."""
    import platformdirs

    # The arguments are included: without them nobody can reproduce the error.
    text = (
        f"wanscope {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"{sys.argv}\n\n{''.join(traceback.format_exception(error))}"
    )
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (platformdirs.user_log_path("wanscope"), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return None
