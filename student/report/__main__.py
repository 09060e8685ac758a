"""python -m student.report RUN [RUN ...]: how runs of student.train go or went; --html writes a page of curves."""

from collections.abc import Sequence
from pathlib import Path

from shards.cli.command import OneLineErrors, run_command
from shards.errors import OptionError
from student.report.run import Run, read_run
from student.report.text import report_text


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the order given. Raises OptionError for one that is given twice."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in found:
            raise OptionError(f"{folder}: expected every run once, got the same folder as {found[folder.resolve()]}")
        found[folder.resolve()] = folder
    return [read_run(folder, str(folder)) for folder in folders]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineErrors(prog="python -m student.report", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run: its --output_dir")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one page of curves to look at instead")
    options = parser.parse_args(arguments)
    print(report_text(read_runs(options.runs)))


if __name__ == "__main__":
    run_command(main)
