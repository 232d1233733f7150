"""Messages reach a real mail server and a real webhook; one that is down holds up nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from csrm_tasks.connections import Address, address_of, parse_address
from csrm_tasks.errors import ConfigError
from csrm_tasks.notify import sending
from csrm_tasks.notify.messages import Message
from csrm_tasks.notify.sending import NotSentError, mail, send, webhook
from tests.notify.sinks import MailServer, Webhook, serving
from tests.ports import reserve_port

TOLD = Message("failed", "mini", "key", "[mini] 검색 failed", "First cause: x\nSee: there", "there")
BARE = {"from_email": "csrm@shop.example", "disable_ssl": True, "disable_tls": True}


@pytest.fixture
def post() -> Iterator[MailServer]:
    with serving(MailServer()) as server:
        yield server


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with serving(Webhook()) as server:
        yield server


def test_a_mail_is_one_letter_to_all_who_are_named(post: MailServer) -> None:
    to = ["ops@shop.example", "ann@shop.example"]
    send(mail("127.0.0.1", post.port, "user", "pass-word", BARE, to), TOLD)
    (letter,) = post.letters
    assert letter["Subject"] == TOLD.subject and letter["From"] == "csrm@shop.example"
    assert letter["To"] == ", ".join(to) and letter["Auto-Submitted"] == "auto-generated"
    assert letter.get_content().splitlines() == TOLD.text.splitlines()
    assert len(post.to) == 2 and len(post.logins) == 1


def test_a_webhook_gets_json_with_its_token(hook: Webhook) -> None:
    send(webhook(f"{hook.url}/services/x", "", "tok", {"X-Team": "search"}), TOLD)
    send(webhook(hook.url, "me", "tok", {}), TOLD)
    assert hook.bodies[0] == {
        "text": f"{TOLD.subject}\n{TOLD.text}", "event": "failed", "market": "mini",
        "subject": TOLD.subject, "link": "there",
    }  # fmt: skip
    assert hook.paths == ["/services/x", "/"]
    assert [h["Authorization"] for h in hook.headers] == ["Bearer tok", "Basic bWU6dG9r"]
    assert hook.headers[0]["X-Team"] == "search"


@pytest.mark.parametrize("code", [302, 403, 500])
def test_a_webhook_that_does_not_take_it_says_so_without_its_address(
    hook: Webhook, code: int
) -> None:
    hook.code = code
    with pytest.raises(NotSentError, match=f"^it answers {code}$"):
        send(webhook(f"{hook.url}/s3cret", "", "", {}), TOLD)
    assert len(hook.bodies) == 1  # nobody was followed


def test_a_mail_server_that_refuses_says_so_without_its_words(post: MailServer) -> None:
    post.refuses = True
    target = mail("127.0.0.1", post.port, "", "", BARE, ["a@b.c"])
    with pytest.raises(NotSentError, match=r"^SMTPDataError: it answers 554$"):
        send(target, TOLD)
    assert post.letters == []


def test_a_server_that_is_down_or_never_answers_is_given_up(
    hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"http://127.0.0.1:{reserve_port()}/s3cret"
    for target in (
        webhook(gone, "", "", {}),
        mail("127.0.0.1", reserve_port(), "", "", BARE, ["a@b.c"]),
    ):
        with pytest.raises(NotSentError, match=r"^ConnectionRefusedError$"):
            send(target, TOLD)
    monkeypatch.setattr(sending, "PATIENCE", 0.2)
    hook.silent.set()
    with pytest.raises(NotSentError, match=r"no answer within 0\.2 seconds"):
        send(webhook(hook.url, "", "", {}), TOLD)


def test_targets_show_no_secret_and_say_what_they_lack() -> None:
    for target in (
        webhook("https://hook.example/s3cret", "", "s3cret", {"X-Key": "s3cret", "X-Team": "a"}),
        mail("h.example", None, "me", "s3cret", BARE, ["a@b.c"]),
    ):
        assert "s3cret" not in repr(target)
        assert target.secrets and all("s3cret" in value for value in target.secrets)
    for given, said in (
        (("", None, "", "", BARE, ["a@b.c"]), "no host"),
        (("h", None, "me", "", {}, ["a@b.c"]), "from_email"),
        (("h", None, "me", "", BARE, []), "needs notify.to"),
    ):
        with pytest.raises(ConfigError, match=said):
            mail(*given)


@pytest.mark.parametrize(
    ("extra", "port"),
    [
        ({}, 465), ({"disable_ssl": True}, 587), ({"disable_ssl": True, "disable_tls": True}, 25),
        ({"disable_ssl": "false"}, 465), ({"disable_ssl": "true", "disable_tls": "False"}, 587),
    ],
)  # fmt: skip
def test_a_mail_connection_is_encrypted_unless_it_says_otherwise(
    extra: dict[str, object], port: int
) -> None:
    target = mail("h", None, "", "", {"from_email": "a@b.c"} | extra, ["a@b.c"])
    assert (target.port, target.security) == (port, {465: "ssl", 587: "starttls", 25: "none"}[port])


def test_a_webhooks_address_is_what_its_connection_says() -> None:
    whole = "https://hook.example/a/b@c?sig=x"
    assert address_of("http", whole, None, None) == Address(whole)
    assert address_of("https", "hook.example", "services/T0/B0", None) == Address(
        "https://hook.example/services/T0/B0"
    )
    assert address_of("http", "hook.example", "https", 8443) == Address(
        "https://hook.example:8443/"
    )


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("hook.example:8443", None, "https://hook.example:8443/x"),
        ("hook.example:8443", 99, "https://hook.example:8443/x"),
        ("::1", 8443, "https://[::1]:8443/x"), ("[::1]:8443", None, "https://[::1]:8443/x"),
        ("10.0.0.1", 80, "https://10.0.0.1:80/x"), ("hook.example/y", None, "https://hook.example/y"),
        ("ann:pass@hook.example:8443", None, "https://hook.example:8443/x"),
    ],
)  # fmt: skip
def test_a_host_may_hold_its_port(host: str, port: int | None, url: str) -> None:
    assert address_of("", host, None, port, path="x").url == url


def test_a_login_that_stands_in_a_host_is_sent_and_not_told() -> None:
    host = "https://ann:a%2Fpass@hook.example:8443/x"
    found = address_of("http", host, None, None)
    assert found == Address("https://hook.example:8443/x", "ann", "a/pass")
    assert "pass" not in repr(found)
    own = address_of("http", host, None, None, "ben", "other")
    assert own == Address("https://hook.example:8443/x", "ben", "other")


@pytest.mark.parametrize("host", ["https://ann:a/pass@h/x", "https://ann:pass@h:x/", "https://[::"])
def test_an_address_that_cannot_be_read_is_named_and_not_shown(host: str) -> None:
    for read in (lambda: address_of("", host, None, None), lambda: parse_address(host, "X")):
        with pytest.raises(ConfigError, match="is no URL: write it as https://host") as caught:
            read()
        assert "pass" not in str(caught.value)
        assert caught.value.__suppress_context__
