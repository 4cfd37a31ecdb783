"""`python -m rocmforge_jax`: the command line."""

import sys

from rocmforge_jax.cli import main

sys.exit(main())
