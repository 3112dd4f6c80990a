"""The page itself: `report.html.j2`, filled in, everything escaped. Written whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from farstep.errors import MissingExtraError
from farstep.trainers.report import sections
from farstep.trainers.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, number
from farstep.trainers.report.record import RunRecord, read_run
from farstep.trainers.run_folder import REPORT

_TEMPLATE = Path(__file__).parent / "report.html.j2"


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Makes the page of the run in a folder, and gives its path: `report.html` there, or `out`.

    Raises:
        TrainerError: there is no run.
        MissingExtraError: jinja2 is not installed.
    """
    run = read_run(folder)
    path = Path(out).expanduser() if out is not None else run.folder / REPORT
    text = rendered(run)
    beside = path.with_name(path.name + "~")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path


def rendered(run: RunRecord) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("reports need jinja2", hint="pip install 'farstep[trainers]'") from error
    from farstep.trainers.config.resolved import yaml_of

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    first, rest = sections.charts(run)
    stages, rows = sections.funnel(run), sections.token_rows(run)
    is_of_samples = bool(stages) and stages[0].name == "asked"
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=str(run.started.get("name") or run.folder.name),
        state=run.state,
        headline=sections.headline(run),
        facts=sections.facts(run),
        failure=sections.failure(run),
        charts=first,
        more_charts=rest,
        funnel=stages,
        funnel_title="Samples, from asked for to trained" if is_of_samples else "Rows, from read to trained",
        on_the_way=sections.losses_on_the_way(run),
        rewards=sections.rewards(run),
        token_rows=rows,
        has_advantages=any(token.advantage for row in rows for token in row.tokens),
        number=number,
        samples=sections.samples(run),
        checkpoints=run.checkpoints,
        config=yaml_of(run.started.get("config") or {}),
        size={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )
