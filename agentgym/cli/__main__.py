"""`python -m agentgym.cli`: the command line without an installed script."""

import sys

from agentgym.cli import main

sys.exit(main())
