"""`python -m wanscope` is `wanscope`."""

import sys

from wanscope.doors.cli import main

sys.exit(main())
