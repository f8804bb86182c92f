"""`python -m octavo` is the `octavo` command."""

import sys

from .cli import main

sys.exit(main())
