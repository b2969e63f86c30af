"""Mutants of the doctor: what it must never do while it looks, and what must not stop it."""

from __future__ import annotations

from tests.mutants import Mutant

DATABASES, ROUNDS = "core/doctor/databases.py", "core/doctor/rounds.py"
DOCTOR = "tests/test_doctor.py::test_"

DOCTOR_MUTANTS = (
    Mutant(
        name="a finding says whatever an error says",
        promise="no secret is printed",
        file=ROUNDS,
        old="says=redaction.hide(finding.says),",
        new="says=finding.says,",
        tests=(f"{DOCTOR}no_finding_says_a_secret",),
    ),
    Mutant(
        name="a check that raises ends the round",
        promise="no check stops the others",
        file=ROUNDS,
        old='return failure(f"could not be checked: {words(error)}", fix)',
        new="raise error",
        tests=(f"{DOCTOR}a_check_that_raises_or_hangs_does_not_stop_the_others",),
    ),
    Mutant(
        name="looking makes a database",
        promise="the doctor changes nothing",
        file=DATABASES,
        old="if file is not None and not file.is_file():",
        new="if file is not None and file.is_dir():",
        tests=(f"{DOCTOR}a_file_that_is_not_there_is_not_made",),
    ),
    Mutant(
        name="what was tried is kept",
        promise="the doctor changes nothing",
        file="core/store/checkup.py",
        old="move.connection.rollback()",
        new="move.connection.commit()",
        tests=(f"{DOCTOR}the_doctor_changes_nothing",),
    ),
    Mutant(
        name="a hung provider is waited for",
        promise="one provider does not use up the time of the others",
        file="core/doctor/clouds.py",
        old="bounded(partial(_ask, provider, installation, share), share)",
        new="_ask(provider, installation, share)",
        tests=(f"{DOCTOR}a_provider_that_hangs_is_not_waited_for",),
    ),
)
