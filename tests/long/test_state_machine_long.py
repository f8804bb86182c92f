"""The cache's state machine, ten times as long and with new seeds each time."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
import test_state_machine as machine

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not os.environ.get("OCTAVO_LONG"), reason="needs OCTAVO_LONG=1"),
]


def test_ten_times_as_many_rules():
    machine.done.update(dict.fromkeys(machine.done, 0))
    while machine.done["rules"] < 10 * machine.RULES:
        run_state_machine_as_test(
            machine.CacheMachine,
            settings=settings(
                max_examples=500,
                stateful_step_count=80,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(machine.done)
