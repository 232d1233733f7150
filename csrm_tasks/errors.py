"""Errors that a user can act on. The command line prints them as one line and exits with 2."""


class CsrmError(Exception):
    """What is wrong, where (file, row, field), and what to do; one line, no secrets."""


class ConfigError(CsrmError):
    """A market file or a setting is wrong."""


class DataError(CsrmError):
    """An input file or table breaks its contract."""


class ArtifactError(CsrmError):
    """An artifact is missing, damaged, or not what the step asked for."""


class RefusedError(CsrmError):
    """A guarded action (promote, rollback) was refused; the message says by which guard."""


class AwayError(CsrmError):
    """A database, an object store or MLflow does not answer; the message says what is served now.

    Nothing is wrong with what was asked for: it is worth another try.
    """
