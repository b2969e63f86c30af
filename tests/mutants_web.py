"""Mutants of the HTTP API: who may call, what a tenant sees, and how a turn lives."""

from __future__ import annotations

from tests.mutants import Mutant

GATE, LISTINGS, REMOTE = "core/web/gate.py", "core/store/listings.py", "core/remote.py"
RESPONSES, OVER = "core/web/responses.py", "tests/web/test_responses.py::test_"
ACCESS, TURNS = "tests/web/test_access.py::test_", "tests/web/test_turns.py::test_"
MATRIX = f"{ACCESS}a_route_lets_in_whom_it_should"

WEB_MUTANTS = (
    Mutant(
        name="every scope is enough",
        promise="a token is for what it was made for",
        file=GATE,
        old="if not grant.allows(rule.scope):",
        new="if rule is None:",
        tests=(f"{MATRIX}[POST /v1/sweeps]",),
    ),
    Mutant(
        name="the secret is not compared",
        promise="an id alone opens nothing",
        file=GATE,
        old="known is None or not known.fits(parts[1])",
        new="known is None",
        tests=(f"{MATRIX}[GET /v1/sweeps]",),
    ),
    Mutant(
        name="a session of any tenant is seen",
        promise="404 across tenants",
        file=GATE,
        old="if tenant is None or not self.grant.sees(tenant):",
        new="if tenant is None:",
        tests=(f"{MATRIX}[DELETE /v1/sessions/{{session_id}}]",),
    ),
    Mutant(
        name="a turn of any tenant is kept",
        promise="404 across tenants",
        file="core/web/turns.py",
        old="if turn is None or not caller.grant.sees(turn.tenant):",
        new="if turn is None:",
        tests=(f"{MATRIX}[PUT /v1/sessions/{{session_id}}/turns/{{turn_id}}]",),
    ),
    Mutant(
        name="a list has every tenant's sandboxes",
        promise="404 across tenants",
        file=LISTINGS,
        old="query = _of_tenant(self._sandboxes, tenant)",
        new="query = self._sandboxes",
        tests=(f"{ACCESS}lists_have_nothing_of_another_tenant",),
    ),
    Mutant(
        name="a token of one tenant sees the installation",
        promise="404 across tenants",
        file=GATE,
        old="if rule.whole_installation and grant.tenant is not None:",
        new="if rule is None:",
        tests=(f"{MATRIX}[GET /v1/orphans]",),
    ),
    Mutant(
        name="revoking the last token lets everybody in",
        promise="from the first token on everybody needs one",
        file="core/store/tokens.py",
        old="self._any = select(a.id).limit(1)",
        new="self._any = select(a.id).where(a.revoked_at.is_(None)).limit(1)",
        tests=(f"{ACCESS}taking_the_last_token_away_opens_nothing",),
    ),
    Mutant(
        name="a page's name leads to this machine",
        promise="without tokens only programs of this machine are served",
        file=GATE,
        old='        and is_loopback(urlsplit(f"//{host}").hostname or "")\n',
        new="",
        tests=(f"{ACCESS}without_tokens_only_this_machine_is_served",),
    ),
    Mutant(
        name="a turn is found under any session",
        promise="a turn belongs to one session",
        file=LISTINGS,
        old='t.id == bindparam("turn_id", type_=String), t.session_id == of',
        new='t.id == bindparam("turn_id", type_=String)',
        tests=(f"{TURNS}a_turn_belongs_to_one_session[sqlite-PUT]",),
    ),
    Mutant(
        name="a refused heartbeat is answered 200",
        promise="a turn is told when it may not go on",
        file=REMOTE,
        old="        if turn_id in refused:\n",
        new="        if turn_id not in refused and refused:\n",
        tests=(f"{TURNS}a_turn_is_told_when_its_session_ended[sqlite]",),
    ),
    Mutant(
        name="nobody keeps the provider's TTL of a remote turn",
        promise="S1: a sandbox outlives a turn that beats",
        file=REMOTE,
        old="        self._works_on(session_id)\n\n    def end",
        new="\n    def end",
        tests=(f"{TURNS}heartbeats_keep_the_provider_s_own_ttl_ahead[sqlite]",),
    ),
    Mutant(
        name="sandboxes are made on the threads of heartbeats",
        promise="heartbeats never wait for a provider",
        file="core/web/desk.py",
        old="return await self._run(self._slow, partial",
        new="return await self._run(self._quick, partial",
        tests=(f"{TURNS}heartbeats_do_not_wait_for_sandboxes[sqlite]",),
    ),
    Mutant(
        name="probes wait on the threads of heartbeats",
        promise="heartbeats never wait for the broker",
        file="core/web/desk.py",
        old="return await self._run(self._probe, self.readiness",
        new="return await self._run(self._quick, self.readiness",
        tests=(f"{TURNS}heartbeats_do_not_wait_for_probes[sqlite]",),
    ),
    Mutant(
        name="nobody listens for a client that goes away",
        promise="a turn ends with the client of its response",
        file=RESPONSES,
        old="        await self._inbox.gone()\n        self._cancel()\n",
        new="        await self._inbox.gone()\n",
        tests=(f"{OVER}a_client_that_goes_away_ends_the_turn_at_once[starlette-http-sqlite-2.4]",),
    ),
    Mutant(
        name="a response that its client left is a good one",
        promise="a turn ends with the client of its response",
        file=RESPONSES,
        old='            await self._end(failed=self._scope["type"] == "http")\n',
        new="            await self._end(failed=False)\n",
        tests=(f"{OVER}an_app_that_keeps_quiet_of_its_client_has_not_completed[http-sqlite]",),
    ),
    Mutant(
        name="the last part of a lost turn is sent",
        promise="S1: no response of a lost turn is complete",
        file=RESPONSES,
        old="        if self._lost is not None:\n            raise self._lost\n        if message",
        new="        if message",
        tests=(f"{OVER}an_app_that_catches_what_stops_it_makes_no_good_end[http-sqlite]",),
    ),
    Mutant(
        name="the last part is sent before the turn has ended",
        promise="S1: no response of a lost turn is complete",
        file=RESPONSES,
        old="            await self._end(failed=self._is_cancelled or self._status >= 400)\n",
        new="            await self._send({**message, 'more_body': False})\n"
        "            return await self._end(failed=self._is_cancelled or self._status >= 400)\n",
        tests=(
            f"{OVER}a_turn_that_is_lost_at_the_last_moment_is_no_whole_response[in-process-sqlite]",
        ),
    ),
    Mutant(
        name="a refused heartbeat cancels nothing",
        promise="S1: whoever lost a turn stops at once",
        file=RESPONSES,
        old="            self._lost = error\n            self._cancel()\n",
        new="            self._lost = error\n",
        tests=(f"{OVER}a_turn_that_is_lost_before_the_answer_is_answered_410[in-process-sqlite]",),
    ),
)
