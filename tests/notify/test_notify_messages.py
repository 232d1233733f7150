"""What people are told: the first cause, what to do, once; bounded, and without a secret."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from csrm_tasks.blobs import LocalBlobs
from csrm_tasks.notify import messages
from csrm_tasks.notify.masking import MASK, one_line, secrets_of
from csrm_tasks.notify.messages import Cause, Message, Run
from csrm_tasks.notify.once import STALE, deliver
from csrm_tasks.notify.sending import NotSentError
from csrm_tasks.sections import Notify

RUN = Run("mini", "csrm_retrain__mini", "scheduled__2026-01-05", link="https://airflow/dags/x")
SECRET = "hunter2Secret"
FORMS = [
    f"postgresql+psycopg2://csrm:{SECRET}@db.example/csrm",
    f"cannot connect to https://:{SECRET}@llm.example/v1: refused",
    f"mysql://u:p@{SECRET}@host/x",
    f"password={SECRET}",
    f"Password : '{SECRET} {SECRET}'",
    f'{{"api_key": "{SECRET}"}}',
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"CSRM_SERVING_TOKEN={SECRET}; exit",
    f"Authorization: Bearer {SECRET}",
    f"authorization=Basic {SECRET}",
    f"sent Bearer {SECRET} to it",
    f"GET https://bucket.example/key?X-Amz-Signature={SECRET}&x=1",
    f"https://hooks.slack.com/services/T0/B0/{SECRET}",
    f"Cookie: session={SECRET}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    f"-----BEGIN PRIVATE KEY----- {SECRET}",
    f"hf_{SECRET}",
    f"eyJ{SECRET}.{SECRET}.{SECRET}",
]


@pytest.mark.parametrize("text", FORMS)
def test_what_looks_like_a_secret_is_masked_wherever_it_stands(text: str) -> None:
    for around in (text, f"step x: {text}, row 3", f"a\n{text}\nb"):
        found = one_line(around, 500)
        assert SECRET not in found and MASK in found, found


@pytest.mark.parametrize(
    "text",
    [
        "labels.csv, row 3: grade 'x' is none of 0, 1, 2",
        "mini 2026-01-05 is not published: run csrm_ingest for it",
        "no space left to write /data/work; free some space and run it again",
        "csrm release approve --market mini --actor NAME --reason WHY r1",
        "https://docs.example/page says so",
    ],
)
def test_what_is_no_secret_is_left_as_it_is(text: str) -> None:
    assert one_line(text, 500) == text


PIECE = st.text(st.characters(codec="utf-8"), max_size=60)
LETTERS = st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"))
VALUES = st.text(LETTERS, min_size=6, max_size=40).map(lambda s: " ".join(s.split()))
VALUES = VALUES.filter(lambda s: len(s) >= 6)


@settings(max_examples=400)
@given(PIECE, VALUES, PIECE, st.integers(20, 300), st.booleans())
def test_a_known_secret_is_in_no_line_however_it_is_spelt(
    before: str, secret: str, after: str, most: int, quoted: bool
) -> None:
    planted = quote(secret, safe="") if quoted else secret
    line = one_line(f"{before}{planted}{after}", most, [secret])
    assert len(line) <= most and "\n" not in line
    if secret not in MASK and planted not in one_line(before, 500) + one_line(after, 500):
        assert planted not in line


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 9), PIECE), max_size=9),
    PIECE, st.sampled_from(FORMS),
)  # fmt: skip
def test_a_message_is_bounded_names_the_first_cause_and_holds_no_secret(
    tasks: list[tuple[str, int, str]], advice: str, form: str
) -> None:
    made = [
        Cause(f"t_{name}", f"2026-01-05T0{at}:00", f"{said} {form}") for name, at, said in tasks
    ]
    message = messages.failed(RUN, made, advice)
    everything = f"{message.subject} {message.text} {message.as_json()}"
    assert SECRET not in everything
    assert len(message.text) < 2500 and len(message.subject) <= messages.SUBJECT
    assert "\n" not in message.subject
    if made:
        first = min(made, key=lambda c: (c.at, c.task))
        assert message.text.startswith(f"First cause: task {first.task} at {first.at}")
        assert first.task in message.subject


def test_a_failure_says_what_to_do_where_and_who_failed_after_it() -> None:
    made = [
        Cause("score_gold[2]"),  # killed: it could not say when, or why
        Cause("train_ebr", "2026-01-05T04:10:00+00:00", "row 3: no such grade"),
        *(Cause(f"other_{n}", f"2026-01-05T05:0{n}:00+00:00", "boom") for n in range(6)),
    ]
    text = messages.failed(RUN, made, "mend the file").text.splitlines()
    assert text == [
        "First cause: task train_ebr at 2026-01-05T04:10:00+00:00: row 3: no such grade",
        "Failed after it: other_0, other_1, other_2, other_3, other_4 and 2 more",
        "What to do: mend the file",
        "See: https://airflow/dags/x",
    ]
    killed = messages.failed(Run("mini", "d", "r"), [Cause("a")], "x").text
    assert "task a: its log says why" in killed and "See: run r of d, in Airflow" in killed
    assert "No task of it failed by itself" in messages.failed(RUN, [], "x").text


def test_every_dags_page_says_what_to_do() -> None:
    root = Path(__file__).resolve().parents[2]
    names = ("ingest", "retrain", "cold_start", "refresh", "rollout", "replay", "rollback", "drill")
    said = {
        name: messages.advice((root / f"dags/csrm_{name}.py").read_text(encoding="utf-8"))
        for name in names
    }
    assert said["ingest"].startswith("Its log ends with one line that names file, row and remedy.")
    assert said["retrain"].startswith("Clear it: finished steps are found by their fingerprint")
    assert all(len(s) > 60 and "read the task's log" not in s for s in said.values()), said


def message(key: str = "failed mini d r 0") -> Message:
    return Message("failed", "mini", key, "subject", "text", "")


class Sent(list[str]):
    """A server that takes messages, or does not."""

    down = False

    def __call__(self, one: Message) -> None:
        if self.down:
            raise NotSentError("ConnectionRefusedError")
        self.append(one.key)


def test_of_two_callbacks_of_a_run_one_tells_and_a_cleared_run_tells_again(tmp_path: Path) -> None:
    blobs, sent = LocalBlobs(tmp_path), Sent()
    first = messages.failed(RUN, [Cause("a")], "x")
    assert [deliver(blobs, first, sent) for _ in range(3)] == [True, False, False]
    other = messages.failed(RUN, [Cause("b")], "y")  # found by another callback a second later
    assert not deliver(LocalBlobs(tmp_path), other, sent)
    again = Run(RUN.market, RUN.dag, RUN.run, attempt=1)
    assert deliver(blobs, messages.failed(again, [Cause("a")], "x"), sent)
    assert deliver(blobs, messages.late(RUN, 4, "running"), sent)  # late is another thing
    assert len(sent) == 3


def test_what_could_not_be_sent_is_sent_on_the_next_occasion(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blobs, sent = LocalBlobs(tmp_path), Sent()
    sent.down = True
    assert not deliver(blobs, message(), sent)
    assert [r.getMessage() for r in caplog.records] == [
        "notify: failed could not be told: ConnectionRefusedError"
    ]
    sent.down = False
    assert deliver(blobs, message(), sent) and not deliver(blobs, message(), sent)


def test_a_sender_that_was_killed_is_taken_over_once(tmp_path: Path) -> None:
    blobs, sent, now = LocalBlobs(tmp_path), Sent(), datetime(2026, 1, 5, tzinfo=UTC)

    def killed(_: Message) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(blobs, message(), killed, now)
    assert not deliver(blobs, message(), sent, now + STALE / 2)  # it may still be sending
    late = now + STALE + timedelta(seconds=1)
    assert [deliver(blobs, message(), sent, late) for _ in range(2)] == [True, False]
    assert not deliver(blobs, message(), sent, late + 9 * STALE)  # it was sent


def test_without_its_store_a_message_is_sent_all_the_same(tmp_path: Path) -> None:
    class Away(LocalBlobs):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            raise OSError("away")

    sent = Sent()
    assert deliver(Away(tmp_path), message(), sent)
    assert len(sent) == 1


def test_secrets_of_an_environment_are_those_that_are_called_so_and_of_urls() -> None:
    env = {
        "CSRM_SERVING_TOKEN": "tok-en-1", "AWS_SECRET_ACCESS_KEY": "aws-1", "MONKEY": "banana",
        "CSRM_DB_URL": "postgresql+psycopg2://u:p%40ss1@h/db", "PGPASSWORD": "abc",
        "HOME": "/root", "KEYBOARD": "german", "BROKEN": "http://[::1",
    }  # fmt: skip
    assert secrets_of(env) == {"tok-en-1", "aws-1", "p%40ss1", "p@ss1"}


def test_no_promotion_is_told_once_for_every_such_span() -> None:
    keys = [messages.no_promotion(RUN, "r1", days, 21).key for days in (21, 22, 41, 42)]
    assert len({*keys}) == 2 and keys[0] == keys[2] != keys[3]
    other = Run("mini", "csrm_refresh__mini", "next_night")
    assert messages.no_promotion(other, "r1", 22, 21).key == keys[0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"to": ["a@b.c"]}, "nobody is told without connection"),
        ({"connection": "c", "to": ["a@b.c\nBcc: d@e.f"]}, "is no address"),
        ({"connection": "a b"}, "should match pattern"),
        ({"connection": "c", "events": []}, "name at least one"),
        ({"connection": "c", "events": ["late", "late"]}, "each once"),
        ({"connection": "c", "events": ["broken"]}, "'failed', 'late', 'approval'"),
        ({"connection": "c", "night_hours": 0}, "greater than 0"),
    ],
)
def test_a_section_that_tells_nobody_is_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Notify.model_validate({k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()})
    full = Notify().model_dump()
    assert Notify.model_validate(full) == Notify()  # every key said, at its default
