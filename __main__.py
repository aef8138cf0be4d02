"""`python -m edgeall`: the same as the program `edgeall`."""

import sys

from .cli import main

sys.exit(main())
