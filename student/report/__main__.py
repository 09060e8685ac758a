"""python -m student.report RUN [RUN ...]: how runs of student.train go or went; --html writes a page of curves."""

from collections.abc import Sequence
from pathlib import Path

from shards.cli.command import OneLineErrors, run_command
from shards.cli.flags.quiet_flag import add_quiet_flag
from shards.cli.outside import naming_saves
from shards.cli.text import counted
from shards.errors import OptionError
from shards.format.writer import write_text
from shards.html.place import require_page
from shards.progress import commanded
from shards.say import result, say
from student.report.page import runs_page
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


def write_page(file: Path, runs: Sequence[Run]) -> None:
    """Write the page, whole or not at all."""
    text = runs_page(runs)
    with naming_saves(f"html: {file}"):
        write_text(file.parent, file.name, text)
    say(f"{file}: written, {counted(len(runs), 'run')}, {len(text) / 1e6:.1f} MB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineErrors(prog="python -m student.report", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run: its --output_dir")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one page of curves to look at instead")
    add_quiet_flag(parser)
    options = parser.parse_args(arguments)
    with commanded(quiet=options.quiet):
        if options.html is not None:
            require_page(options.html)
        runs = read_runs(options.runs)
        if options.html is None:
            result(report_text(runs))
        else:
            write_page(options.html, runs)


if __name__ == "__main__":
    run_command(main)
