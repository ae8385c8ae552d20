"""`python -m cnnkernels`: the command line of cnnkernels.cli."""

import sys

from cnnkernels.cli import main

sys.exit(main())
