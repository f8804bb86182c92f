"""Files from strangers: every group of reliability.md section 3 that concerns checkpoints."""

import pytest
from harness import run_group

GROUPS = [
    *[f"S{i}" for i in range(1, 13)],
    *[f"G{i}" for i in range(1, 15)],
    *[f"J{i}" for i in range(1, 10)],
    *[f"Q{i}" for i in range(1, 5)],
]


@pytest.mark.parametrize("group", GROUPS)
def test_group_is_refused_typed_fast_and_small(group):
    for row in run_group(group):
        if row["outcome"] != "accepted":
            assert len(row["text"]) > 20, f"no explanation: {row}"
