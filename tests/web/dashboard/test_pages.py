"""The dashboard without a browser: who sees and may do what, and what the pages say."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from core.access import Scope
from core.events import EventKind
from core.lifecycle import Keeper
from core.prices import Prices
from core.store import quarantine as quarantine_store
from core.store.guard import HoldReason
from core.store.quarantine import Among
from core.store.tokens import Tokens
from core.web import create_app
from core.web.dashboard import savings
from core.web.dashboard.app import PARTS
from core.web.dashboard.live import news
from tests.fakes import FrozenClock
from tests.web.callers import Desk

STATIC = Path(__file__).parents[3] / "core" / "web" / "static"
SCRIPT = "<script>alert(1)</script>"
FORM = re.compile(r'name="form" value="([0-9a-f]{64})"')
EVERY = Among()
OF_ALL = ("/orphans", "/sweeps", "/providers", "/audit")
PAGES = ("/", "/sessions", "/sessions/conv", "/quarantine", "/savings", *OF_ALL)
POSTS = {
    "/sessions/preview": {"verb": "end", "pick": "conv/1"},
    "/sessions/act": {"verb": "end", "pick": "conv/1", "reason": "why"},
    "/sessions/conv/end": {"reason": "why", "generation": "1"},
    "/sessions/conv/extend": {"reason": "why", "minutes": "5"},
    "/sessions/conv/pin": {"reason": "why", "minutes": "5"},
    "/sessions/conv/unpin": {"reason": "why"},
    "/sessions/conv/retry": {"reason": "why"},
    "/quarantine/preview": {"every": "1"},
    "/quarantine/retry": {"reason": "why", "every": "1"},
    "/sweeps": {"reason": "why"},
    "/holds/operator": {"reason": "why", "verdict": "approve"},
}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One kind is enough here; the browser's tests have the other."""
    return sqlite_url


class Viewer:
    """A browser without scripts: it keeps cookies and sends forms."""

    def __init__(self, keeper: Keeper, *, app: FastAPI | None = None, base: str = "") -> None:
        self.app = app or create_app(keeper)
        self.base = base
        self.cookies: dict[str, str] = {}
        self.form = ""

    def get(self, path: str, **headers: str) -> httpx2.Response:
        """Look at a page."""
        return self._send("GET", path, None, headers)

    def post(self, path: str, form: str | None = None, **fields: str) -> httpx2.Response:
        """Send the form of the page that was looked at last, or another one."""
        sent = {"form": self.form if form is None else form, **fields}
        return self._send("POST", path, sent, {})

    def login(self, token: str) -> httpx2.Response:
        """As a person does it."""
        self.get("/login")
        answer = self.post("/login", token=token, next="/sessions")
        self.get("/")
        return answer

    def _send(
        self, method: str, path: str, data: dict[str, str] | None, headers: dict[str, str]
    ) -> httpx2.Response:
        async def send() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.app, client=("127.0.0.1", 5))
            async with httpx2.AsyncClient(
                transport=transport,
                base_url="http://localhost",
                cookies=self.cookies,
                trust_env=False,
            ) as client:
                answer = await client.request(method, self.base + path, data=data, headers=headers)
                self.cookies = {one.name: one.value or "" for one in client.cookies.jar}
                return answer

        answer = asyncio.run(send())
        found = FORM.search(answer.text)
        self.form = found[1] if found else self.form
        return answer


@pytest.fixture
def viewer(keeper: Keeper) -> Viewer:
    """Somebody at this machine, before there is a token, who has a page with a form."""
    viewer = Viewer(keeper)
    viewer.get("/sweeps")
    return viewer


@pytest.fixture
def desk(keeper: Keeper) -> Desk:
    """Where tokens are made."""
    return Desk(Tokens(keeper.store.database))


def quarantine(keeper: Keeper, name: str, error: str = "AuthFailed: 401") -> None:
    """End a session whose teardown failed too often."""
    keeper.end(name, reason="over")
    claim = keeper.store.teardowns.claim(name, 1, "w")
    assert claim is not None
    keeper.store.teardowns.release(claim, error, 900, actor="w", quarantine=True)


def told(keeper: Keeper, kind: EventKind) -> list[tuple[str, dict[str, object]]]:
    """Who did it and what was said."""
    found = keeper.store.records.entries(kind=kind, limit=20).lines
    return [(line.actor, dict(line.detail)) for line in found]


def test_every_post_is_tried_below() -> None:
    """One that is added without a line here would be tried by none of the tests of who may act."""
    routes = {
        route.path.replace("{session_id}", "conv").replace("{hold}", "operator")
        for part in PARTS
        for route in part.router.routes
        if "POST" in route.methods
    }

    assert routes == {*POSTS, "/login", "/logout"}


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_served_with_its_policy(keeper: Keeper, viewer: Viewer, path: str) -> None:
    """Nothing from elsewhere, nothing inline, in nobody's frame, and in no cache."""
    keeper.open("conv")

    answer = viewer.get(path)

    policy = answer.headers["Content-Security-Policy"]
    assert answer.status_code == 200
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", answer.text)
    assert not re.search(r'(?:src|href|action)="(?!/|#)', answer.text)


@pytest.mark.parametrize("path", PAGES)
def test_a_mounted_dashboard_links_to_itself(keeper: Keeper, path: str) -> None:
    """Every address begins with where it is mounted, and so does its cookie's path."""
    keeper.open("conv")
    outer = FastAPI()
    outer.mount("/ops/sk", create_app(keeper))
    viewer = Viewer(keeper, app=outer, base="/ops/sk")

    answer = viewer.get(path)

    links = re.findall(r'(?:src|href|action)="(/[^"]*)"', answer.text)
    assert answer.status_code == 200
    assert all(link.startswith("/ops/sk/") for link in links), links
    assert "Path=/ops/sk" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("path", POSTS)
def test_who_may_read_changes_nothing(keeper: Keeper, desk: Desk, path: str) -> None:
    """No button is offered, and what is sent all the same is refused."""
    keeper.open("conv")
    viewer = Viewer(keeper)
    viewer.login(desk.token(Scope.READ))

    shown = [viewer.get(page) for page in PAGES]
    answer = viewer.post(path, **POSTS[path])

    actions = set(re.findall(r'method="post" action="([^"]+)"', "".join(p.text for p in shown)))
    assert {page.status_code for page in shown} == {200}
    assert actions <= {"/logout", "/sessions/preview", "/quarantine/preview"}
    assert "<button name=" not in "".join(page.text for page in shown)
    assert answer.status_code == 403
    assert keeper.get("conv").end_reason is None


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("form", ["", "0" * 64])
def test_a_form_from_elsewhere_is_refused(
    keeper: Keeper, viewer: Viewer, path: str, form: str
) -> None:
    """Without the value that only our pages carry nothing is done, whoever is logged in."""
    keeper.open("conv")
    keeper.store.guard.hold(HoldReason.OPERATOR, {}, actor="tests")

    answer = viewer.post(path, form=form, **POSTS[path])

    assert answer.status_code == 403
    assert keeper.get("conv").end_reason is None
    assert keeper.store.guard.is_held()


def test_a_form_of_another_login_is_refused(keeper: Keeper, desk: Desk) -> None:
    """What was made for who may read is of no use to who may act after him."""
    viewer = Viewer(keeper)
    viewer.login(desk.token(Scope.OPERATE))
    old = viewer.form
    viewer.post("/logout")
    viewer.login(desk.token(Scope.OPERATE))

    assert viewer.post("/sweeps", form=old, reason="why").status_code == 403
    assert viewer.post("/sweeps", reason="why").status_code == 200


def test_a_token_lets_in_until_it_is_revoked(keeper: Keeper, desk: Desk) -> None:
    """By a cookie that no script reads and no other site sends; asked for each time."""
    viewer = Viewer(keeper)
    token = desk.token(Scope.READ)
    before = viewer.get("/sessions?prefix=a")

    entered = viewer.login(token)
    inside = viewer.get("/sessions")
    desk.tokens.revoke(token.split("_")[1], actor="tests")
    after, part = viewer.get("/sessions"), viewer.get("/", **{"HX-Request": "true"})

    cookie = entered.headers["Set-Cookie"]
    assert (before.status_code, before.headers["Location"]) == (
        303,
        "/login?next=/sessions%3Fprefix%3Da",
    )
    assert (entered.status_code, entered.headers["Location"]) == (303, "/sessions")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert (inside.status_code, after.status_code) == (200, 303)
    assert part.headers["HX-Redirect"].startswith("/login")
    assert "was revoked" in viewer.get("/login").text


def test_a_cookie_is_for_tls_where_there_is_tls(keeper: Keeper, desk: Desk) -> None:
    """Also behind a proxy that speaks it for us."""
    viewer = Viewer(keeper)
    desk.token(Scope.READ)

    answer = viewer.get("/login", **{"X-Forwarded-Proto": "https"})

    assert "Secure" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("next_", ["//evil.example", "https://evil.example", "/\\evil", "x", ""])
def test_a_login_leads_to_no_other_site(keeper: Keeper, desk: Desk, next_: str) -> None:
    """Whatever somebody wrote into the link."""
    viewer = Viewer(keeper)
    token = desk.token(Scope.READ)
    viewer.get("/login")

    answer = viewer.post("/login", token=token, next=next_)

    assert answer.headers["Location"] == "/"


def test_without_a_token_only_this_machine_looks(keeper: Keeper) -> None:
    """Not a page whose name was made to lead here, nor a proxy for others."""
    for headers in ({"Host": "rebound.example"}, {"X-Forwarded-For": "192.0.2.7"}):
        answer = Viewer(keeper).get("/", **headers)
        assert answer.status_code == 303
    assert "tokens create" in Viewer(keeper).get("/login", Host="rebound.example").text


def test_one_tenant_sees_and_touches_its_own_alone(keeper: Keeper, desk: Desk) -> None:
    """Neither lists, nor counts, nor acts reach another's; what is of all is not there."""
    keeper.open("mine", tenant="acme")
    keeper.open("theirs", tenant="other")
    viewer = Viewer(keeper)
    viewer.login(desk.token(Scope.OPERATE, tenant="acme"))

    listed = viewer.get("/sessions?tenant=other").text
    result = viewer.post("/sessions/act", verb="end", reason="why", pick="theirs/1")
    every = viewer.post("/sessions/preview", verb="end", every="1").text

    assert "mine" in listed
    assert "theirs" not in listed + every
    assert viewer.get("/sessions/theirs").status_code == 404
    assert viewer.post("/sessions/theirs/end", reason="why").status_code == 404
    assert viewer.post("/sessions/theirs/extend", reason="why", minutes="5").status_code == 404
    assert viewer.post("/sessions/theirs/retry", reason="why").status_code == 404
    assert viewer.post("/quarantine/retry", reason="why", pick="theirs").status_code == 404
    assert "there is no such session" in result.text
    assert keeper.get("theirs").end_reason is None
    assert {viewer.get(path).status_code for path in OF_ALL} == {404}
    assert viewer.post("/sweeps", reason="why").status_code == 404
    fleet = viewer.get("/").text
    assert re.search(r'id="tile-running".*?value">1<', fleet, re.DOTALL)


@pytest.mark.parametrize("path", PAGES)
def test_what_others_wrote_is_text(keeper: Keeper, viewer: Viewer, path: str) -> None:
    """A script in metadata, a holder, a reason, an error, an actor or a hold's words is shown."""
    keeper.open("conv", metadata={SCRIPT: SCRIPT})
    keeper.remote.begin("conv", holder=SCRIPT)
    keeper.acting_as(SCRIPT).extend("conv", 60, reason=SCRIPT)
    keeper.acting_as(SCRIPT).end("conv", reason=SCRIPT)
    claim = keeper.store.teardowns.claim("conv", 1, "w")
    assert claim is not None
    keeper.store.teardowns.release(claim, SCRIPT, 900, actor=SCRIPT, quarantine=True)
    keeper.store.health.failed("fake", "k" * 26, SCRIPT, 60, actor="w", probe=False)
    keeper.store.guard.hold(HoldReason.OPERATOR, {"why": SCRIPT}, actor=SCRIPT)

    text = viewer.get(path).text

    assert "<script>" not in text
    assert "&lt;script&gt;" in text or path in {"/", "/savings", "/orphans", "/sessions"}


def test_an_act_says_who_and_why(keeper: Keeper, desk: Desk) -> None:
    """Each writes an event with the token's id and name, and the reason that it asked for."""
    for name in ("a", "b", "c"):
        keeper.open(name)
    keeper.store.guard.hold(HoldReason.OPERATOR, {}, actor="tests")
    token = desk.token(Scope.OPERATE)
    viewer = Viewer(keeper)
    viewer.login(token)

    viewer.post("/sessions/a/extend", minutes="5", reason="lunch")
    viewer.post("/sessions/a/end", generation="1", reason="stuck")
    viewer.post("/sweeps", reason="now")
    viewer.post("/holds/operator", verdict="approve", reason="looked at it")
    quarantine(keeper, "b")
    viewer.post("/quarantine/retry", every="1", reason="key is back")

    who = f"token {token.split('_')[1]} a test, dashboard"
    ((extended, kept),) = told(keeper, EventKind.SESSION_EXTENDED)
    ended = dict(told(keeper, EventKind.SESSION_ENDED))
    assert (extended, kept["reason"]) == (who, "lunch")
    assert ended[who] == {"reason": "stuck"}
    assert told(keeper, EventKind.SWEEP_ASKED) == [(who, {"why": "now"})]
    assert told(keeper, EventKind.HOLD_DECIDED)[0][1]["why"] == "looked at it"
    assert told(keeper, EventKind.QUARANTINE_RETRIED) == [
        (who, {"sandboxes": 1, "why": "key is back"})
    ]


@pytest.mark.parametrize("path", sorted(set(POSTS) - {"/sessions/preview", "/quarantine/preview"}))
def test_no_act_without_a_reason(keeper: Keeper, viewer: Viewer, path: str) -> None:
    """An empty one is refused, and says what a reason looks like."""
    keeper.open("conv")

    answer = viewer.post(path, **{**POSTS[path], "reason": " "})

    assert answer.status_code == 422
    assert "1 to 200 printable characters" in answer.text
    assert keeper.get("conv").end_reason is None


def test_what_was_opened_again_since_it_was_shown_is_left_alone(
    keeper: Keeper, viewer: Viewer
) -> None:
    """S1: an act means the generation that a person saw."""
    for name in ("again", "still"):
        keeper.open(name)
    keeper.end("again", reason="by its user")
    keeper.open("again")

    bulk = viewer.post("/sessions/act", verb="end", reason="bulk", pick="again/1")
    viewer.post("/sessions/again/end", generation="1", reason="alone")
    viewer.post("/sessions/act", verb="end", reason="bulk", pick="still/1")

    assert "it was opened again since you saw it: left alone" in bulk.text
    assert keeper.get("again").end_reason is None
    assert keeper.get("still").end_reason == "bulk"


def test_filters_find_what_they_say(keeper: Keeper, viewer: Viewer, clock: FrozenClock) -> None:
    """Status, tenant, state, idleness and the id's beginning; each is a chip that goes away."""
    keeper.open("old-1", tenant="acme", idle_ttl=90000)
    keeper.open("old-2", idle_ttl=90000)
    clock.advance(4000)
    keeper.open("new-1", tenant="acme")
    keeper.open("over")
    keeper.end("over")

    def found(query: str) -> set[str]:
        return set(re.findall(r'id="row-([^"]+)"', viewer.get(f"/sessions{query}").text))

    assert found("") == {"old-1", "old-2", "new-1"}
    assert found("?status=") == {"old-1", "old-2", "new-1", "over"}
    assert found("?status=ended") == {"over"}
    assert found("?tenant=acme") == {"old-1", "new-1"}
    assert found("?idle=3600") == {"old-1", "old-2"}
    assert found("?prefix=old") == {"old-1", "old-2"}
    assert found("?status=&state=closing") == {"over"}
    assert found("?state=creating") == set()
    assert found("?tenant=&state=&idle=&prefix=") == {"old-1", "old-2", "new-1"}
    assert 'href="/sessions?status=active"' in viewer.get("/sessions?prefix=old").text
    assert viewer.get("/sessions?state=melted").status_code == 422


def test_the_quarantine_is_filtered_and_what_matches_is_tried_again(
    keeper: Keeper, viewer: Viewer, clock: FrozenClock
) -> None:
    """By tenant, provider and kind of error; how many and which first, then a reason."""
    for name, tenant, error in (
        ("a", "acme", "AuthFailed: 401"),
        ("b", "acme", "AuthFailed"),
        ("c", "other", "AuthFailed: 401"),
        ("d", "other", "AuthFailedTwice: 401"),
        ("e", "other", f"Unavailable: {SCRIPT}"),
    ):
        keeper.open(name, tenant=tenant)
        quarantine(keeper, name, error)
        clock.advance(1)

    def found(query: str) -> list[str]:
        return re.findall(r'id="row-(\w+)-1"', viewer.get(f"/quarantine?{query}").text)

    assert found("") == ["a", "b", "c", "d", "e"]
    assert found("error=AuthFailed&tenant=&provider=") == ["a", "b", "c"]
    assert found("error=AuthFailed&tenant=acme") == ["a", "b"]
    assert found("provider=fake&error=Unavailable") == ["e"]
    assert found("provider=none") == []
    assert viewer.get("/quarantine?error=%00").status_code == 422
    assert (
        'href="/quarantine?tenant=acme"'
        in viewer.get("/quarantine?error=AuthFailed&tenant=acme").text
    )

    which = {"error": "AuthFailed", "tenant": "acme"}
    asked = viewer.post("/quarantine/preview", every="1", **which).text
    answer = viewer.post("/quarantine/retry", every="1", reason="new key", **which)
    said = viewer.get(answer.headers["Location"]).text

    assert "Try 2 teardowns again?" in asked
    assert "2 will be tried again" in said
    assert told(keeper, EventKind.QUARANTINE_RETRIED) == [
        ("somebody at this machine, dashboard", {**which, "sandboxes": 2, "why": "new key"})
    ]
    due = {one.session_id: one.due_at for one in keeper.store.quarantine.page(EVERY, limit=9).rows}
    assert [name for name in sorted(due) if due[name] <= clock()] == ["a", "b"]


def test_one_tenant_s_quarantine_is_its_own(keeper: Keeper, desk: Desk, clock: FrozenClock) -> None:
    """Neither shown, nor counted, nor tried again is another's, whatever the form says."""
    for name, tenant in (("mine", "acme"), ("theirs", "other")):
        keeper.open(name, tenant=tenant)
        quarantine(keeper, name)
    viewer = Viewer(keeper)
    viewer.login(desk.token(Scope.OPERATE, tenant="acme"))

    shown = viewer.get("/quarantine?tenant=other").text
    asked = viewer.post("/quarantine/preview", every="1", tenant="other").text
    viewer.post("/quarantine/retry", every="1", tenant="other", reason="why")

    due = {one.session_id: one.due_at for one in keeper.store.quarantine.page(EVERY, limit=9).rows}
    assert "mine" in shown
    assert "Try 1 teardown again?" in asked
    assert "theirs" not in shown + asked
    assert [name for name in sorted(due) if due[name] <= clock()] == ["mine"]


def test_the_quarantine_goes_on_behind_its_last_row(
    keeper: Keeper, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is on one page, also where many were quarantined at once and few match."""
    names = [f"conv-{number:03}" for number in range(60)]
    for number, name in enumerate(names):
        keeper.open(name, tenant="rare" if number in {7, 55} else "usual")
        quarantine(keeper, name)

    def walked(path: str | None) -> list[str]:
        seen: list[str] = []
        while path is not None:
            text = viewer.get(path).text
            seen += re.findall(r'id="row-(conv-\d+)-1"', text)
            following = re.search(r'id="next" href="([^"]+)"', text)
            path = following[1].replace("&amp;", "&") if following else None
        return seen

    assert sorted(walked("/quarantine")) == names
    monkeypatch.setattr(quarantine_store, "STRETCH", 10)
    assert sorted(walked("/quarantine?tenant=rare")) == ["conv-007", "conv-055"]
    assert "10+" in viewer.post("/quarantine/preview", every="1").text
    assert viewer.get("/quarantine?after=nonsense").status_code == 422


def test_a_teardown_is_tried_again_from_its_session_s_page(
    keeper: Keeper, viewer: Viewer, clock: FrozenClock
) -> None:
    """What the provider answered, what to do about it, and the button."""
    keeper.open("conv")
    quarantine(keeper, "conv")

    shown = viewer.get("/sessions/conv").text
    answer = viewer.post("/sessions/conv/retry", reason="new key")

    assert "failed once and is in quarantine" in shown
    assert "give the workers the right ones" in shown
    assert answer.headers["Location"] == "/sessions/conv"
    (one,) = keeper.store.quarantine.page(EVERY, limit=9).rows
    assert one.due_at <= clock()


def test_fleet_leads_to_a_teardown_that_fails_again_and_again(
    keeper: Keeper, viewer: Viewer, clock: FrozenClock
) -> None:
    """By name, with the provider's answer and what to do; to its page when it is the only one."""
    keeper.open("conv")
    keeper.end("conv")
    clock.advance(keeper.policy.late_after + keeper.policy.claim_ttl + 1)
    claim = keeper.store.teardowns.claim("conv", 1, "w")
    assert claim is not None
    keeper.store.teardowns.release(claim, "Unavailable: 503", 60, actor="w")
    keeper.store.sweeps.pulse(stood_in=False)

    text = Viewer(keeper).get("/").text

    assert "1 overdue" in text
    assert "The teardown of conv at fake was tried once" in text
    assert "Last answer: Unavailable: 503" in text
    assert "look at its status page" in text
    assert 'href="/sessions/conv"' in text


def test_the_ledger_is_found_by_kind_actor_and_session(keeper: Keeper, viewer: Viewer) -> None:
    """Each alone and together; the fields of the form may be empty."""
    keeper.open("a")
    keeper.acting_as("ada 100%").end("a")
    keeper.open("b")

    def found(query: str) -> int:
        return viewer.get(f"/audit?{query}").text.count("<tr><td")

    assert found("kind=&actor=&session=") == 5
    assert found("kind=session_ended") == 1
    assert found("actor=100%25") == 1
    assert found("actor=%25%25") == 0
    assert found("session=a") == 3
    assert found("session=a&kind=session_opened") == 1
    assert found("before=2") == 1


def test_a_long_list_goes_on_behind_its_last_row(keeper: Keeper, viewer: Viewer) -> None:
    """Every session is on one page, and on one alone."""
    names = {f"conv-{number:03}" for number in range(120)}
    for name in names:
        keeper.open(name)

    seen: list[str] = []
    path: str | None = "/sessions"
    while path is not None:
        text = viewer.get(path).text
        seen += re.findall(r'id="row-([^"]+)"', text)
        found = re.search(r'id="next" href="([^"]+)"', text)
        path = found[1].replace("&amp;", "&") if found else None

    assert len(seen) == 120
    assert set(seen) == names


def test_fleet_leads_from_overdue_to_the_cause(
    keeper: Keeper, viewer: Viewer, clock: FrozenClock
) -> None:
    """Nobody sweeps: it says so first, with the commands, and then what waits because of it."""
    keeper.open("conv")
    keeper.store.sweeps.pulse(stood_in=False)
    clock.advance(4000)

    text = Viewer(keeper).get("/").text

    late, overdue = text.index("The last sweep was 1 h 6 min ago"), text.index("1 overdue")
    assert late < overdue
    assert "celery -A tasks beat" in text
    assert "The cause is above: The last sweep was" in text
    assert 'class="pulse bad"' in text


def test_fleet_says_that_no_worker_takes_teardowns(keeper: Keeper, clock: FrozenClock) -> None:
    """Sweeps run, and what they publish is not tried by anybody."""
    keeper.open("conv")
    keeper.end("conv")
    clock.advance(4000)
    keeper.store.sweeps.pulse(stood_in=False)

    text = Viewer(keeper).get("/").text

    assert "1 overdue" in text
    assert "no worker has taken them" in text


def test_fleet_of_a_new_installation_says_how_to_begin(viewer: Viewer) -> None:
    """An empty state is a first step."""
    text = viewer.get("/").text

    assert "No session yet" in text
    assert "curl -X POST http://localhost/v1/sessions" in text
    assert "No sweep ever ran" not in text or "celery -A tasks worker" in text


def test_the_stream_says_that_something_changed(keeper: Keeper, viewer: Viewer) -> None:
    """Whoever changed it, by whatever server; and it ends when the server stops."""
    shared = viewer.app.state.dashboard
    shared.news._seconds = 0.0

    async def listen() -> list[str]:
        said: list[str] = []
        async for line in news(shared, poll=0.01):
            said.append(line)
            if len(said) == 1:
                keeper.open("conv")
            else:
                shared.close()
        return said

    assert asyncio.run(asyncio.wait_for(listen(), 30)) == [
        "retry: 2000\n\n",
        "event: changed\ndata: 1\n\n",
    ]


def test_many_viewers_cost_one_look(keeper: Keeper, viewer: Viewer) -> None:
    """The figures of a moment are read once, however many ask."""
    looks = 0

    async def look() -> tuple[object, ...]:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.01)
        return ()

    shared = viewer.app.state.dashboard
    shared.news._ask = look

    async def many() -> None:
        await asyncio.gather(*(shared.news.get() for _ in range(50)))
        await shared.news.get()

    asyncio.run(many())

    assert looks == 1


def test_vendored_files_are_what_was_published() -> None:
    """Byte for byte, each with its licence."""
    folder = STATIC / "vendor"
    lines = (folder / "SHA256SUMS.txt").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}

    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "SHA256SUMS.txt"
    }

    assert found == sums
    assert {"htmx.LICENSE", "uPlot.LICENSE"} <= found.keys()


def test_savings_are_counted_and_another_ttl_is_tried(
    keeper: Keeper, clock: FrozenClock, desk: Desk
) -> None:
    """In the words of the command line; one tenant sees that tenant's alone."""
    prices = Prices(currency="EUR", default=2)
    viewer = Viewer(keeper, app=create_app(keeper, prices=prices))
    empty = viewer.get("/savings").text
    keeper.open("mine", tenant="acme", idle_ttl=90_000)
    keeper.open("theirs", tenant="globex", idle_ttl=90_000)
    clock.advance(7200)
    keeper.touch("mine")

    page = viewer.get("/savings?since=86400&minutes=60").text
    viewer.login(desk.token(Scope.READ, tenant="acme"))
    of_acme = viewer.get("/savings?since=86400&minutes=60").text

    assert "No sandbox was there" in empty
    assert "A TTL of 1 h would have saved 4.00 EUR (2.0 h) and reset 1 session." in page
    assert "A TTL of 1 h would have saved 2.00 EUR (1.0 h) and reset 1 session." in of_acme
    assert "globex" in page
    assert "globex" not in of_acme
    assert viewer.get("/savings?minutes=0").status_code == 422
    assert viewer.get("/savings?since=nan").status_code == 422


def test_savings_say_when_they_are_not_of_all(
    keeper: Keeper, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page reads so many sandboxes and no more."""
    for number in range(3):
        keeper.open(f"conv-{number}")
    monkeypatch.setattr(savings, "MOST", 2)

    assert "These are the first 2 sandboxes" in viewer.get("/savings").text
    monkeypatch.setattr(savings, "MOST", 3)
    assert "These are the first" not in viewer.get("/savings").text
