"""What is said when a database, an object store or MLflow answers, but does not let us in.

Credentials that are missing, wrong or expired, or that may not do what was asked: trying again is
of no use until somebody sets the variables that are named. An error's own text is looked at, never
shown: it may hold addresses, statements and what a server echoes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

CURES = {
    "MLflow": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, to an account that may read and write there",
    "the object store": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (of temporary keys "
    "AWS_SESSION_TOKEN, too), or the role or AWS_PROFILE that stands for them, to valid ones that "
    "may list, read, write and delete there",
    "the database": "set user and password in CSRM_DB_URL (or PGPASSWORD) to a role that may log "
    "in, read and write there",
}
HTTP = (401, 403)
# Words of a body that is not MLflow's own: a proxy before it says no, and its status is lost.
PROXY = re.compile(
    r"unauthori[sz]ed|unauthenticated|not authenticated|forbidden|access denied", re.I
)
S3_CODES = {
    "401", "403", "AccessDenied", "AccessDeniedException", "AllAccessDisabled", "ExpiredToken",
    "ExpiredTokenException", "Forbidden", "InvalidAccessKeyId", "InvalidClientTokenId",
    "InvalidSecurity", "InvalidToken", "NotSignedUp", "SignatureDoesNotMatch",
    "TokenRefreshRequired", "Unauthorized", "UnauthorizedAccess", "UnrecognizedClientException",
}  # fmt: skip
BOTOCORE = {
    "CredentialRetrievalError", "InvalidConfigError", "NoAuthTokenError", "NoCredentialsError",
    "PartialCredentialsError", "ProfileNotFound", "SSOTokenLoadError", "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}  # fmt: skip
PRIVILEGE = "42501"  # of PostgreSQL; class 28 is authorisation, but psycopg2 has no code on connect
LOGIN = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role .* does not exist"
    r"|is not permitted to log in|permission denied for database"
)


def by(error: BaseException) -> str | None:
    """Name what did not let us in: a key of :data:`CURES`; None for errors of another kind."""
    for one in causes(error):
        if _of_mlflow(one):
            return "MLflow"
        if code(one) in S3_CODES or type(one).__name__ in BOTOCORE:
            return "the object store"
        if _of_database(one):
            return "the database"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from: some clients wrap theirs."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def code(error: BaseException) -> str | None:
    """Return the code of an S3 error (botocore's ``ClientError.response["Error"]["Code"]``)."""
    found: Any = getattr(error, "response", None)
    return found.get("Error", {}).get("Code") if isinstance(found, dict) else None


def _of_mlflow(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    if package == "requests":  # MLflow's artifacts come and go by it
        return getattr(getattr(error, "response", None), "status_code", None) in HTTP
    if package != "mlflow":
        return False
    if getattr(error, "get_http_status_code", int)() in HTTP:
        return True
    body: Any = getattr(error, "json", None)
    return isinstance(body, dict) and "error_code" not in body and bool(PROXY.search(str(body)))


def _of_database(error: BaseException) -> bool:
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    state = str(getattr(error.orig, "pgcode", None) or "")
    return state.startswith("28") or state == PRIVILEGE or bool(LOGIN.search(str(error.orig)))
