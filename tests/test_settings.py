"""Settings: nonsense is refused by name, value and reason; what is derived fits what is given."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import SettingsError
from core.settings import PREFIX, SECRETS, Settings

DURATIONS = [
    "IDLE_TTL",
    "MAX_AGE",
    "MAX_TURN",
    "NEVER_USED_TTL",
    "HEARTBEAT",
    "SWEEP_INTERVAL",
    "CONFIRM_INTERVAL",
    "CREATE_DEADLINE",
    "CLAIM_TTL",
    "PUBLISH_LEASE",
    "RETRY_BASE",
    "RETRY_MAX",
    "QUARANTINE_RETRY",
    "RETENTION",
    "PURGE_INTERVAL",
    "RECONCILE_INTERVAL",
    "ORPHAN_GRACE",
    "LATE_AFTER",
    "LONGEST_PIN",
]
COUNTS = ["QUARANTINE_AFTER", "BATCH", "BREAKER_MIN", "IN_FLIGHT"]
OTHERS = [
    "BREAKER_RATIO",
    "BACKSTOP",
    "PROVIDER_CONCURRENCY",
    "DATABASE_URL",
    "BROKER_URL",
    "PROVIDER",
    "SPEC",
    "PRICES",
    "INSTALLATION",
    "QUEUE_PREFIX",
    "LOG_FORMAT",
    "API_TOKENS",
]
SECRET = "hunter2"  # noqa: S105


def read(**variables: str) -> Settings:
    """Settings from an environment of these variables, named without the prefix."""
    return Settings.from_env({f"{PREFIX}{name}": value for name, value in variables.items()})


def refusal(**variables: str) -> str:
    """The message with which these variables are refused."""
    with pytest.raises(SettingsError) as refused:
        read(**variables)
    return str(refused.value)


def test_the_lists_above_have_every_setting() -> None:
    """A new setting is not forgotten here."""
    assert {*DURATIONS, *COUNTS, *OTHERS} == {name.upper() for name in Settings.model_fields}


# Defaults


def test_nothing_has_to_be_set() -> None:
    """The defaults are whole, and are those that are promised."""
    settings = read()

    assert (settings.database_url, settings.provider) == ("sqlite:///sandkeeper.db", "local")
    assert (settings.installation, settings.spec, settings.max_age) == (None, {}, None)
    assert (settings.idle_ttl, settings.max_turn, settings.heartbeat) == (1800, 21600, 15)
    assert (settings.sweep_interval, settings.confirm_interval) == (60, 60)
    assert (settings.create_deadline, settings.claim_ttl, settings.quarantine_after) == (
        300,
        120,
        8,
    )


@pytest.mark.parametrize(
    ("given", "derived"),
    [
        ({}, {"confirm_interval": 60, "publish_lease": 60, "heartbeat": 15}),
        ({"SWEEP_INTERVAL": "10"}, {"confirm_interval": 10, "publish_lease": 10, "heartbeat": 5}),
        ({"IDLE_TTL": "20"}, {"confirm_interval": 20, "publish_lease": 60, "heartbeat": 10}),
        ({"CONFIRM_INTERVAL": "8"}, {"confirm_interval": 8, "publish_lease": 60, "heartbeat": 4}),
        ({"HEARTBEAT": "30"}, {"confirm_interval": 60, "heartbeat": 30}),
        ({"PUBLISH_LEASE": "5"}, {"confirm_interval": 60, "publish_lease": 5}),
        (
            {"SWEEP_INTERVAL": "300"},
            {"confirm_interval": 300, "publish_lease": 300, "heartbeat": 15, "late_after": 900},
        ),
        ({"LATE_AFTER": "61"}, {"sweep_interval": 60, "late_after": 61}),
    ],
    ids=str,
)
def test_what_is_not_set_follows_what_is(
    given: Mapping[str, str], derived: Mapping[str, float]
) -> None:
    """One changed setting never needs a second one to be allowed."""
    settings = read(**given)

    assert {name: getattr(settings, name) for name in derived} == derived


def test_a_test_may_run_the_real_thing_in_a_second() -> None:
    """No limit has a floor: all of them can be fractions of a second."""
    fitting = {"HEARTBEAT": "0.25", "RETENTION": "1", "LATE_AFTER": "1.5"}

    settings = read(**dict.fromkeys(DURATIONS, "0.5") | fitting)

    assert settings.idle_ttl == 0.5


def test_the_environment_of_others_is_ignored() -> None:
    """Names without our prefix are not ours, and a provider reads its own."""
    environ = {"PATH": "/bin", "IDLE_TTL": "x", "SANDKEEPER_LOCAL_ANYTHING": "x"}

    assert Settings.from_env(environ) == read()


# Nonsense


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize(
    "value", ["0", "-1", "-0.0", "nan", "inf", "-inf", "1e999", "", " ", "1h", "ten"]
)
def test_a_nonsense_duration_is_refused(name: str, value: str) -> None:
    """Zero is no way to say "never" or "at once"; the message has the name and the value."""
    assert f"{PREFIX}{name}={value!r}: " in refusal(**{name: value})


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "ten"])
def test_one_mistake_is_said_once(name: str, value: str) -> None:
    """Nobody is told of settings that they did not set."""
    message = refusal(**{name: value})

    assert message.count(PREFIX) == 1


@pytest.mark.parametrize("name", DURATIONS)
def test_a_duration_that_no_date_can_carry_is_refused(name: str) -> None:
    """Now plus a million years fails in the database, in the middle of a sweep."""
    assert f"{PREFIX}{name}=" in refusal(**{name: "1e15"})


@pytest.mark.parametrize("name", sorted({*DURATIONS} - {"MAX_AGE", "NEVER_USED_TTL"}))
def test_no_other_duration_may_be_none(name: str) -> None:
    """A limit that the protocol needs cannot be switched off."""
    assert f"{PREFIX}{name}='none': " in refusal(**{name: "none"})


@pytest.mark.parametrize("value", ["none", "None", "NONE", " none "])
def test_max_age_may_be_none_in_so_many_words(value: str) -> None:
    """No limit is said, not guessed from something empty."""
    assert read(MAX_AGE=value).max_age is None
    assert read(NEVER_USED_TTL=value).never_used_ttl is None


@pytest.mark.parametrize("value", ["none", "NONE", " none "])
def test_the_backstop_may_be_none_in_so_many_words(value: str) -> None:
    """Who wants no TTL at the provider says so."""
    assert read(BACKSTOP=value).backstop is None
    assert read().backstop == 4


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("local", ["local"]),
        ("new,old", ["new", "old"]),
        (" new , old ,", ["new", "old"]),
        ("pkg.mod:Class,local", ["pkg.mod:Class", "local"]),
    ],
)
def test_providers_are_a_list_of_which_the_first_makes_new_sandboxes(
    value: str, names: list[str]
) -> None:
    """The others are looked after."""
    assert read(PROVIDER=value).provider_names == names


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "inf", "", "many", "none"])
def test_a_nonsense_count_is_refused(name: str, value: str) -> None:
    """A count is a whole number from one up."""
    assert f"{PREFIX}{name}={value!r}: " in refusal(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INSTALLATION", ""),
        ("INSTALLATION", "short"),
        ("INSTALLATION", "ABCDEFGH"),
        ("INSTALLATION", "abcdefghi"),
        ("INSTALLATION", "abcd-fgh"),
        ("INSTALLATION", "abcdefgh\n"),
        ("QUEUE_PREFIX", ""),
        ("QUEUE_PREFIX", "-a"),
        ("QUEUE_PREFIX", "a.b"),
        ("QUEUE_PREFIX", "A"),
        ("QUEUE_PREFIX", "a" * 41),
        ("BATCH", "10001"),
        ("IN_FLIGHT", "100001"),
        ("PROVIDER_CONCURRENCY", "0"),
        ("PROVIDER_CONCURRENCY", "10001"),
        ("PROVIDER_CONCURRENCY", "many"),
        ("LOG_FORMAT", "xml"),
        ("LOG_FORMAT", "jsonl"),
        ("LOG_FORMAT", ""),
        ("PROVIDER", ""),
        ("PROVIDER", "  "),
        ("BREAKER_RATIO", "0"),
        ("BREAKER_RATIO", "1.01"),
        ("BREAKER_RATIO", "nan"),
        ("BREAKER_RATIO", "none"),
        ("BACKSTOP", "0"),
        ("BACKSTOP", "2.9"),
        ("BACKSTOP", "1001"),
        ("BACKSTOP", "nan"),
        ("BACKSTOP", ""),
    ],
)
def test_other_nonsense_is_refused(name: str, value: str) -> None:
    """The message has the name and the value as it was given."""
    assert f"{PREFIX}{name}={value!r}: " in refusal(**{name: value})


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_url_is_refused(name: str, value: str) -> None:
    """A variable that a template left empty is a mistake, not the default."""
    assert f"{PREFIX}{name}" in refusal(**{name: value})


@pytest.mark.parametrize("value", ["", "{", "[1]", "null", "7", '"image"', "image"])
def test_a_nonsense_spec_is_refused(value: str) -> None:
    """It is a JSON object or nothing."""
    assert f"{PREFIX}SPEC" in refusal(SPEC=value)


def test_a_spec_is_read_as_json() -> None:
    """What is nested stays as it was written."""
    settings = read(SPEC='{"image": "python:3.13", "options": {"cpus": 2}}')

    assert settings.spec == {"image": "python:3.13", "options": {"cpus": 2}}


@pytest.mark.parametrize(
    "name", ["IDEL_TTL", "idle_ttl", "IDLE_TTL_FILE", "", "_IDLE_TTL", "SPEC_FILE"]
)
def test_an_unknown_setting_is_refused(name: str) -> None:
    """A misspelt limit would be one that nobody enforces; the message lists what there is."""
    message = refusal(**{name: "60"})

    assert f"{PREFIX}{name} is not a setting" in message
    assert "IDLE_TTL" in message


def test_every_mistake_is_said_at_once() -> None:
    """Ten wrong lines in a file do not take ten starts to find."""
    message = refusal(IDLE_TTL="x", BATCH="0", LOG_FORMAT="xml")

    assert all(f"{PREFIX}{name}=" in message for name in ("IDLE_TTL", "BATCH", "LOG_FORMAT"))


# What must fit together


@pytest.mark.parametrize(
    ("given", "names", "fix"),
    [
        ({"HEARTBEAT": "31"}, ("HEARTBEAT 31", "CONFIRM_INTERVAL 60"), "30 or less"),
        ({"HEARTBEAT": "6", "SWEEP_INTERVAL": "10"}, ("HEARTBEAT 6",), "5 or less"),
        (
            {"CONFIRM_INTERVAL": "61", "IDLE_TTL": "60"},
            ("CONFIRM_INTERVAL 61", "IDLE_TTL 60"),
            "60 or less",
        ),
        ({"RETENTION": "599"}, ("RETENTION 599", "CREATE_DEADLINE 300"), "600 or more"),
        ({"LATE_AFTER": "60"}, ("LATE_AFTER 60", "SWEEP_INTERVAL 60"), "set it to 180"),
        ({"PROVIDER": " , ,"}, ("PROVIDER ', ,'",), "set it to local"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(
    given: Mapping[str, str], names: tuple[str, ...], fix: str
) -> None:
    """The message has both names, both values, and a value that would do."""
    message = refusal(**given)

    assert message.startswith(PREFIX)
    assert all(name in message for name in names)
    assert fix in message


@pytest.mark.parametrize(
    "given",
    [{"HEARTBEAT": "30"}, {"CONFIRM_INTERVAL": "60", "IDLE_TTL": "60"}, {"RETENTION": "600"}],
    ids=str,
)
def test_the_limit_itself_is_allowed(given: Mapping[str, str]) -> None:
    """What the message recommends is accepted."""
    assert isinstance(read(**given), Settings)


# Secrets


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_come_from_a_file(name: str, tmp_path: Path) -> None:
    """As container platforms hand them over; the newline at the end is not part of it."""
    secret = f"sk_ops_{'s' * 40}:operate" if name == "API_TOKENS" else "postgresql://a@b/c"
    file = tmp_path / "secret"
    file.write_text(f"{secret}\n")

    settings = read(**{f"{name}_FILE": str(file)})

    assert getattr(settings, name.lower()) == secret


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_given_twice_is_refused(name: str, tmp_path: Path) -> None:
    """Which of the two is meant is not ours to guess."""
    message = refusal(**{name: f"x://{SECRET}", f"{name}_FILE": str(tmp_path / "secret")})

    assert f"{PREFIX}{name}_FILE and {PREFIX}{name} are both set" in message
    assert SECRET not in message


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"", b" \n"], ids=repr)
def test_a_secret_file_that_is_no_secret_is_refused(content: bytes | None, tmp_path: Path) -> None:
    """Missing, binary or empty: the message has the variable and the path, not the content."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)

    assert f"{PREFIX}DATABASE_URL_FILE={file}" in refusal(DATABASE_URL_FILE=str(file))


@pytest.mark.parametrize(
    "mistake",
    [
        {"IDLE_TTL": "0"},
        {"HEARTBEAT": "31"},
        {"NONSENSE": "1"},
        {"SPEC": f'{{"env": {{"API_KEY": "{SECRET}"}}'},  # a brace is missing
        {"SPEC": f'["{SECRET}"]'},
        {"SPEC": f'"{SECRET}"'},
    ],
    ids=str,
)
def test_no_secret_is_in_an_error(mistake: Mapping[str, str]) -> None:
    """Neither in the message nor in the causes that a traceback prints below it."""
    url = f"postgresql://u:{SECRET}@h/d"

    with pytest.raises(SettingsError) as refused:
        read(DATABASE_URL=url, BROKER_URL=f"amqp://u:{SECRET}@h//", **mistake)

    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_settings_do_not_print_their_secrets() -> None:
    """A log line or a debugger that shows the object shows no password."""
    settings = read(
        DATABASE_URL=f"postgresql://u:{SECRET}@h/d",
        BROKER_URL=f"amqp://u:{SECRET}@h//",
        SPEC=f'{{"env": {{"API_KEY": "{SECRET}"}}}}',
    )

    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)


# The object


def test_settings_do_not_change() -> None:
    """They are read once: whoever holds them holds what was checked."""
    settings: Any = read()

    with pytest.raises(ValidationError, match="frozen"):
        settings.idle_ttl = 1.0


def test_a_misspelt_name_in_code_is_refused_too() -> None:
    """The constructor is as strict as the environment."""
    with pytest.raises(ValidationError, match="idel_ttl"):
        Settings.model_validate({"idel_ttl": 5})


# Prices


def test_prices_are_a_table_or_a_file_with_one(tmp_path: Path) -> None:
    """By provider, with a default; nothing is invented for who has none."""
    table = '{"currency": "EUR", "default": 0.1, "providers": {"e2b": 0.08, "docker": 0}}'
    path = tmp_path / "prices.json"
    path.write_text(table)

    prices = read(PRICES=table).prices

    assert prices is not None
    assert [prices.of(name) for name in ("e2b", "docker", "modal")] == [0.08, 0, 0.1]
    assert read(PRICES_FILE=str(path)).prices == prices
    assert read().prices is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('{"currency": "EUR"}', "it has no price: give `default`, or one of `providers`"),
        ('{"default": 1}', f"{PREFIX}PRICES.currency="),
        ('{"currency": "euro", "default": 1}', f"{PREFIX}PRICES.currency='euro': "),
        ('{"currency": "EUR", "default": -1}', f"{PREFIX}PRICES.default=-1: "),
        ('{"currency": "EUR", "default": "1"}', f"{PREFIX}PRICES.default='1': "),
        ('{"currency": "EUR", "providers": {"e2b": -1}}', f"{PREFIX}PRICES.providers.e2b=-1: "),
        ('{"currency": "EUR", "defualt": 1}', f"{PREFIX}PRICES.defualt=1: "),
        ("cheap", f"{PREFIX}PRICES='cheap': "),
    ],
)
def test_nonsense_for_prices_is_refused_by_field(table: str, said: str) -> None:
    """The field, its value, and what is wrong."""
    assert said in refusal(PRICES=table)
