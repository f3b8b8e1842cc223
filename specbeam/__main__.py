"""`python -m specbeam` is the command `specbeam`."""

import sys

from specbeam.command import main

sys.exit(main())
