"""`python -m rfdetr_edge`, the same as `rfdetr-edge`."""

import sys

from rfdetr_edge.cli import main

sys.exit(main())
