"""`plait` with the toy family in theworld's place, so that a process of it starts in two seconds: `python -m tests.toy_rank train ...`."""

import sys

from plait import cli
from plait.families import registry
from plait.training.figures import intervals
from tests import toy_family


def main(arguments: list[str]) -> int:
    registry.load = lambda name: toy_family.FAMILY
    registry.model_config = lambda name: toy_family.Config
    intervals.DRAWS = toy_family.DRAWS
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
