"""The verbs of which docs/cli.md says that exit code 1 is "wrong" are those whose actions have such an error."""

import re

from plait.commands.actions.checkpoints import Damaged
from plait.commands.actions.findings import Unwell
from plait.commands.actions.passport.verify import Unlike
from plait.commands.prove.prove import Diverged
from plait.errors import PlaitError
from plait.training.planning.findings import Unsound
from tests.test_house import ROOT

WRONG = {"plan": Unsound, "doctor": Unwell, "prove": Diverged, "upgrade-check": Unwell, "verify": Unlike, "ckpt verify": Damaged}


def test_the_table_of_exit_codes_names_every_verb_that_ends_with_1_for_wrong():
    (row,) = [line for line in (ROOT / "docs/cli.md").read_text().splitlines() if line.startswith("| 1 |")]
    verbs = re.findall(r"`([^`]+)`", row.partition("; of ")[2])
    assert verbs == list(WRONG)
    assert {error.exit_code for error in WRONG.values()} == {1} != {PlaitError.exit_code}
    wrong = {error for error in PlaitError.__subclasses__() if error.exit_code == 1 and error.__module__.startswith("plait.commands")}
    assert wrong <= {*WRONG.values()}
