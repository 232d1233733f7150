"""``python -m csrm_tasks`` is ``csrm``."""

import sys

from csrm_tasks.cli.main import main

sys.exit(main())
