"""Makes `python -m wanscope` the same as `wanscope`."""

import sys

from wanscope.doors.cli import main

sys.exit(main())
