"""Credentials that are missing, wrong, expired or not enough: one line that says what to set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest
import requests
import sqlalchemy as sa
from botocore.exceptions import ClientError, NoCredentialsError
from mlflow.exceptions import MlflowException, RestException

from csrm_tasks.blobs import S3Blobs, open_blobs
from csrm_tasks.cli.main import main
from csrm_tasks.errors import DeniedError
from csrm_tasks.release import away, denied, ledger
from csrm_tasks.release.views import RETRIES
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.conftest import administer, drop_database, new_database
from tests.release_fixtures import MARKET
from tests.release_world import AUTO, World

SECRET = "secret-of-the-test"
WHO = ["--market", MARKET, "--actor", "ann", "--reason", "bad"]
XML = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{}</Message></Error>'


@contextmanager
def answering(status: int, body: str, kind: str = "text/plain") -> Iterator[str]:
    """A server that answers whatever it is asked in the same way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def one_line(said: str, who: str, *also: str) -> str:
    """Return the one line that a command ended with; it names what to set and tells no secret."""
    lines = [text for text in said.splitlines() if text.startswith("csrm: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    assert f"{who} does not let us in" in lines[0] and denied.CURES[who] in lines[0]
    assert SECRET not in said and "127.0.0.1" not in lines[0]
    assert [text for text in also if text not in lines[0]] == []
    return lines[0]


MLFLOW = {
    "no account": (401, f"You are not authenticated. {SECRET}"),
    "wrong account": (403, f"Permission denied {SECRET}"),
    "in MLflow's words": (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}'),
    "expired": (401, '{"error_code": "UNAUTHENTICATED", "message": "no"}'),
    "a proxy's page": (401, "<html>who are you</html>"),
    "a proxy's words": (401, f'{{"message": "Unauthorized", "token": "{SECRET}"}}'),
}


@pytest.mark.parametrize("case", MLFLOW)
def test_an_mlflow_that_lets_nobody_in_is_one_line_and_stops_no_way_back(
    case: str, settings: Settings, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A real client against a server that answers 401 or 403."""
    world = World(settings)
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.promote(two)
    three = world.release("three", registered=False)
    world.at_the_command_line(AUTO, monkeypatch)
    monkeypatch.setenv(RETRIES, "0")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    refs = ["--bundle", three.bundle.ref, "--gate", three.gate.ref]
    with answering(*MLFLOW[case]) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for command in (
            ["register", "--market", MARKET, *refs],
            ["drill", "--market", MARKET, "--run", "r"],
            ["release", "reconcile", "--market", MARKET],
        ):
            assert main(command) == 2
            one_line(capsys.readouterr().err, "MLflow", f"served now: {two.id} to 100 %")
        with pytest.raises(DeniedError, match="MLFLOW_TRACKING_TOKEN"):
            given = {"bundle": three.bundle.ref, "gate": three.gate.ref}
            run_step("register", AUTO, given, settings=replace(settings, mlflow_uri=address))
        assert main(["release", "rollback", *WHO]) == 0
    assert world.doc()["stable"] == one.id
    assert denied.CURES["MLflow"] in caplog.text and SECRET not in caplog.text


S3 = {
    "may not": (403, "AccessDenied"),
    "no such key": (403, "InvalidAccessKeyId"),
    "expired": (400, "ExpiredToken"),
}


def keys(patch: pytest.MonkeyPatch, url: str, secret: str = SECRET) -> None:
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.mark.s3
@pytest.mark.parametrize("case", S3)
def test_an_object_store_that_lets_nobody_in_is_one_line(
    case: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    status, code = S3[case]
    world = World(settings)
    made = world.release("one")
    world.promote(made)
    world.at_the_command_line(AUTO, monkeypatch)
    with answering(status, XML.format(code, SECRET), "application/xml") as url:
        keys(monkeypatch, url)
        everywhere_refused(made, settings, monkeypatch, capsys, code)
        (tmp_path / "f").write_bytes(b"file")
        blobs = open_blobs("s3://bucket/made")
        does: list[Callable[[], Any]] = [
            lambda: blobs.upload("f", tmp_path / "f"),  # the transfer manager wraps the error
            lambda: blobs.download("f", tmp_path / "g"),  # asks by HEAD, whose answer has no body
            lambda: blobs.keys(""),
            lambda: blobs.delete("f"),
            lambda: blobs.put_if_absent("f", b""),
        ]
        for do in does:
            with pytest.raises(Exception) as e:
                do()
            # Without a body a 400 says nothing; 403 does.
            headless = status == 400 and do is does[1]
            assert away.which(e.value) == "the object store"
            assert (denied.by(e.value) is None) == headless
            assert SECRET not in away.trouble("the object store", e.value)


def everywhere_refused(
    made: Any, settings: Settings, patch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], *also: str,
) -> None:  # fmt: skip
    """Assert that commands and steps say it in one line, where artifacts or routing lie there."""
    refs = {"bundle": made.bundle.ref, "gate": made.gate.ref, "register": made.gate.ref}
    given = [text for name, ref in refs.items() for text in (f"--{name}", ref)]
    for variable, commands in {
        "CSRM_ARTIFACTS": (["show", made.bundle.ref], ["promote", "--market", MARKET, *given]),
        "CSRM_ROUTING": (["release", "reconcile", "--market", MARKET],),
    }.items():
        with pytest.MonkeyPatch.context() as here:
            here.setenv(variable, "s3://bucket/place")
            for command in commands:
                assert main(command) == 2
                one_line(capsys.readouterr().err, "the object store", *also)
    with pytest.raises(DeniedError, match="AWS_SESSION_TOKEN"):
        run_step("promote", AUTO, refs, settings=replace(settings, artifacts="s3://bucket/place"))


@pytest.mark.s3
def test_no_keys_or_wrong_ones_of_a_real_object_store_are_one_line(
    rclone: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    world = World(settings)
    made = world.release("one")
    world.promote(made)
    world.at_the_command_line(AUTO, monkeypatch)
    monkeypatch.setattr(S3Blobs, "honoured", set())
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the first keys that it found
    keys(monkeypatch, rclone, secret="another")
    everywhere_refused(made, settings, monkeypatch, capsys, "SignatureDoesNotMatch")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    everywhere_refused(made, settings, monkeypatch, capsys, "NoCredentialsError")


@pytest.mark.postgres
def test_a_database_that_lets_nobody_in_is_one_line(
    server: str, template: str, settings: Settings, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A role that does not exist, one that may not log in, and one that may not read."""
    world = World(settings)
    world.promote(world.release("one"))
    world.at_the_command_line(AUTO, monkeypatch)
    names = {"csrm_nobody": "", "csrm_shut": "NOLOGIN", "csrm_blind": "LOGIN"}
    made = [f"CREATE ROLE {name} {how}" for name, how in names.items() if how]
    administer(server, *made)
    own = new_database(server, template)  # connections to it are kept, and nobody can copy it then
    try:
        for name in names:
            url = sa.make_url(own).set(username=name, password=SECRET)
            monkeypatch.setenv("CSRM_DB_URL", url.render_as_string(hide_password=False))
            for command in (["release", "history", "--market", MARKET],
                            ["release", "rollback", *WHO]):  # fmt: skip
                assert main(command) == 2
                line = one_line(capsys.readouterr().err, "the database")
                assert "release history" in " ".join(command) or "served now: " in line
    finally:
        drop_database(server, own)
        administer(server, *(f"DROP ROLE {name}" for name, how in names.items() if how))
    assert [e.action for e in ledger.verified(settings, MARKET)] == ["registered", "promoted"]


def of_database(text: str) -> Exception:
    return sa.exc.OperationalError("SELECT 1", {}, psycopg2.OperationalError(text))


def answered(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


def wrapped() -> Exception:
    try:
        try:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject")
        except ClientError:
            raise RuntimeError("could not be written")  # noqa: B904 as clients do
    except RuntimeError as e:
        return e


@pytest.mark.parametrize(
    ("error", "who"),
    [
        (of_database('FATAL:  password authentication failed for user "ann"'), "the database"),
        (of_database("fe_sendauth: no password supplied"), "the database"),
        (of_database('FATAL:  no pg_hba.conf entry for host "h"'), "the database"),
        (of_database("could not connect to server: Connection refused"), None),
        (NoCredentialsError(), "the object store"),
        (ClientError({"Error": {"Code": "SlowDown"}}, "PutObject"), None),
        (ClientError({"Error": {"Code": "RequestTimeTooSkewed"}}, "PutObject"), None),
        (wrapped(), "the object store"),
        (answered(403), "MLflow"),
        (answered(500), None),
        (MlflowException("forbidden"), None),  # nobody was asked
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "forbidden"}), None),
        (PermissionError(13, "Permission denied"), None),
        (ValueError("forbidden"), None),
    ],
)
def test_who_does_not_let_us_in_is_told_from_who_does_not_answer(
    error: Exception, who: str | None
) -> None:
    assert denied.by(error) == who
