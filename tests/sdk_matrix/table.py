"""What several versions of the SDK told, as a table, and its place in docs/tinker.md."""

from collections.abc import Sequence
from pathlib import Path

from tests.sdk_matrix.programs import Told

PAGE = Path(__file__).parents[2] / "docs" / "tinker.md"
BEGIN, END = "<!-- by make test-tinker -->", "<!-- end -->"
_SIGNS = {"works": "★", "absent": "–", "fails": "○"}


def table_of(told: Sequence[Told]) -> str:
    """A row a feature, a column a version."""
    lines = [
        "| | " + " | ".join(f"`tinker` {each.sdk}" for each in told) + " |",
        "|---|" + "---|" * len(told),
    ]
    by_sdk = [{(report.program, report.feature): report.outcome for report in each.reports} for each in told]
    program = ""
    for report in told[0].reports:
        if report.program != program:
            program = report.program
            lines.append(f"| **{program}** |" + " |" * len(told))
        key = (report.program, report.feature)
        lines.append(f"| {report.feature} | " + " | ".join(_SIGNS[outcomes[key]] for outcomes in by_sdk) + " |")
    return "\n".join(lines)


def put_into_page(table: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
