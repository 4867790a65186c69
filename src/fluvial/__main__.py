"""``python -m fluvial`` is the command line."""

import sys

from fluvial.cli import main

sys.exit(main())
