"""``python -m polymmu``."""

import sys

from polymmu.cli.main import main

sys.exit(main())
