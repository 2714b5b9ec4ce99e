"""The command line. `main` is what `wanscope` and `python -m wanscope` run.

Nothing heavy is imported before a command is known: `wanscope --help` loads neither torch nor pydantic.
"""

from wanscope.doors.cli.main import main

__all__ = ["main"]
