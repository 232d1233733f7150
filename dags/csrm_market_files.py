"""What keeps markets from having DAGs, as an import error that Airflow shows on its first page.

A market whose file is wrong has no DAGs until it is mended; the others go on. There is no DAG here.
"""

from __future__ import annotations

from csrm_limits import examined

from csrm_tasks.errors import ConfigError

wrong = examined()[1]
if wrong:
    raise ConfigError("; ".join(wrong))
