"""Running the service under uvicorn."""

from __future__ import annotations

import logging
import re
import socket

from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import load_market
from csrm_tasks.settings import Settings

STOPPING = 20  # seconds that requests under way get to end


def serve(settings: Settings, market: str, host: str, port: int, instance: str | None) -> None:
    """Serve ``market`` until SIGTERM; raises :class:`ConfigError` for what keeps it from starting.

    ``instance`` names this service in its log files; default host name and port.
    """
    import uvicorn

    from csrm_tasks.serving.app import Service, create_app
    from csrm_tasks.serving.guard import read_token

    name = instance or re.sub(r"\W", "_", f"{socket.gethostname()}_{port}")
    if not re.fullmatch(r"\w{1,64}", name, re.ASCII):
        raise ConfigError(f"--instance {name!r}: use letters, digits and _, at most 64")
    token = read_token()
    service = Service(settings, load_market(market, settings.markets), name)
    logging.getLogger("csrm").warning("serving: %s on %s:%d as %s", market, host, port, name)
    uvicorn.run(
        create_app(service, token), host=host, port=port, log_level="warning", access_log=False,
        timeout_graceful_shutdown=STOPPING,
    )  # fmt: skip
