"""The engines by the names that the command line knows them by."""

from __future__ import annotations

from collections.abc import Mapping

from csrm_tasks.engines.formats.bulk import ELASTICSEARCH, OPENSEARCH
from csrm_tasks.engines.formats.records import Engine
from csrm_tasks.engines.formats.solr import SOLR
from csrm_tasks.engines.formats.vespa import VESPA

ENGINES: Mapping[str, Engine] = {
    "opensearch": OPENSEARCH,
    "elasticsearch": ELASTICSEARCH,
    "solr": SOLR,
    "vespa": VESPA,
}
