"""`report.html`: a study's videos, tests, figures and recipe on one page that opens without a network.

Everything is in the file: small copies of the videos, Plotly's program, the figures' numbers. A rule in the page itself
(Content-Security-Policy) keeps it from loading anything.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from wanscope import __version__, events
from wanscope.analysis.attention_charts import attention_charts
from wanscope.analysis.attention_section import section as attention_section
from wanscope.analysis.charts import Chart, charts
from wanscope.analysis.contrast_tests import Test
from wanscope.analysis.figures import plotly_figure, write_static
from wanscope.analysis.metric import Metric
from wanscope.analysis.preview import Preview, previews
from wanscope.analysis.remove_outdated import REPORT
from wanscope.analysis.result import Analysis
from wanscope.take.compare import table as rows_and_columns
from wanscope.take.disk import guarded, write_atomic

FIGURES = "figures"
SHOWN_SIDE = 176  # pixels; smaller videos are enlarged on the page
VALUES = "Values"  # a section of many small figures, folded


def write_report(
    analysis: Analysis,
    folder: Path,
    attention: Sequence[Mapping[str, Any]] = (),
    on_event: events.Listener = events.ignore,
) -> list[Path]:
    """Write report.html and figures/ into `folder`; the files, the page first. attention: rows of that table."""
    drawn = [*charts(analysis), *attention_charts(attention)]
    on_event(events.Note(f"drawing {len(drawn)} figures"))
    custom = custom_figures(analysis)
    with guarded(folder):
        figures = write_static(drawn, folder / FIGURES)
        on_event(events.Note(f"making small copies of {len(analysis.members)} videos"))
        page = rendered(analysis, drawn, previews([member.take for member in analysis.members]), custom)
        path = folder / REPORT
        write_atomic(path, page)
    return [path, *figures]


def custom_figures(analysis: Analysis) -> list[tuple[Metric, dict[str, Any]]]:
    """The figures that metrics draw themselves, as Plotly JSON."""
    return [
        (metric, json.loads(metric.figure(analysis.table.of(metric.name)).to_json()))
        for metric in analysis.table.metrics
        if metric.figure is not None
    ]


def rendered(
    analysis: Analysis,
    drawn: Sequence[Chart],
    clips: Sequence[Preview],
    custom: Sequence[tuple[Metric, dict[str, Any]]] = (),
) -> str:
    """The page's text."""
    from plotly.offline import get_plotlyjs

    data = {chart.key: plotly_figure(chart) for chart in drawn}
    data |= {f"custom-{metric.name}": figure for metric, figure in custom}
    sections = [
        ("Summary", f'<div class="summary">{_summary(analysis.summary)}</div>'),
        ("Videos", _videos(analysis, clips)),
        ("Tests", _tests(analysis)),
        *_figures(drawn, custom),
        *([("Attention", attention)] if (attention := attention_section(analysis)) else ()),
        ("How to repeat this", _recipe(analysis)),
        ("Definitions", _definitions(analysis.table.metrics)),
    ]
    body = "\n".join(
        f'<section id="s{i}">\n<h2>{_e(title)}</h2>\n{text}\n</section>' for i, (title, text) in enumerate(sections)
    )
    navigation = " ".join(f'<a href="#s{i}">{_e(title)}</a>' for i, (title, _) in enumerate(sections))
    members = analysis.members
    subtitle = (
        f"{len(members)} takes, {len({m.seed for m in members})} seeds, model {members[0].take.recipe.model.name}; "
        f"made by wanscope {__version__}"
    )
    page = Template(files("wanscope.analysis").joinpath("page.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=_e(f"Study {analysis.name}"),
        subtitle=_e(subtitle),
        navigation=navigation,
        body=body,
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        charts=_json(data),
    )


def _e(text: Any) -> str:
    return html.escape(str(text))


def _json(data: Any) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _summary(text: str) -> str:
    """Paragraphs and lists of the plain summary."""
    out = []
    for block in text.split("\n\n"):
        lines = block.split("\n")
        items = [line[2:] for line in lines if line.startswith("- ")]
        head = " ".join(line for line in lines if not line.startswith("- "))
        out.append(f"<p>{_e(head)}</p>" if head else "")
        if items:
            out.append("<ul>" + "".join(f"<li>{_e(item)}</li>" for item in items) + "</ul>")
    return "\n".join(out)


def _videos(analysis: Analysis, clips: Sequence[Preview]) -> str:
    members = analysis.members
    grid = rows_and_columns([member.take for member in members])
    seeds_in_columns = all(
        len({members[i].seed for row in grid if (i := row[x]) is not None}) == 1 for x in range(len(grid[0]))
    )
    lines = ['<p><button id="play" type="button">Play all</button></p>', '<div class="scroll"><table class="videos">']
    if seeds_in_columns and len(grid) > 1:
        heads = [next(members[row[x]].seed for row in grid if row[x] is not None) for x in range(len(grid[0]))]  # type: ignore[index]
        lines.append("<tr><th></th>" + "".join(f"<th>seed {seed}</th>" for seed in heads) + "</tr>")
    for row in grid:
        first = next(members[i] for i in row if i is not None)
        head = first.group if seeds_in_columns and len(grid) > 1 else ""
        cells = "".join(f"<td>{'' if i is None else _clip(members[i], clips[i])}</td>" for i in row)
        lines.append(f'<tr><th class="row">{_e(head)}</th>{cells}</tr>')
    lines.append("</table></div>")
    lines.append('<p class="soft">Click one to play it. Small copies; the takes hold the videos as they were made.</p>')
    return "\n".join(lines)


def _clip(member: Any, clip: Preview) -> str:
    label = _e(f"{member.name}: {member.take.recipe.prompt}, seed {member.seed}")
    if not clip.data:
        return f"<p>{_e(member.name)}: {_e(clip.note)}</p>"
    data = f"data:{clip.kind};base64,{base64.b64encode(clip.data).decode()}"
    size = f'width="{max(clip.width, SHOWN_SIDE)}"'
    note = f'<div class="soft">{_e(clip.note)}</div>' if clip.note else ""
    if clip.kind.startswith("image"):
        return f'<img {size} src="{data}" alt="{label}" title="{label}">{note}'
    named = f'title="{label}" aria-label="{label}"'
    return f'<video {size} src="{data}" {named} tabindex="0" muted loop playsinline></video>{note}'


def _tests(analysis: Analysis) -> str:
    tests = sorted(analysis.tests.tests, key=lambda t: (not t.confirmatory, 2.0 if t.p is None else t.p))
    if not tests:
        return "<p>Nothing was tested.</p>"
    family = analysis.tests
    head = (
        f"<p>{family.size} tests in one family; the smallest p that any of them can give is "
        f"{family.smallest_p:.3g}. {_e(family.power)} Exact sign flips of paired differences up to 14 "
        "pairs, drawn ones above; corrected by Holm (p) and by Benjamini and Hochberg (q). Bold: clear of correction. "
        "With a star: confirmatory, the hypothesis was written before the first take, and corrected among its like.</p>"
    )
    columns = ["what", "compared", "difference", "95% interval", "effect", "its interval", "p", "p Holm", "q BH"]
    columns += [f"{family.unit}s", "tokens", "note"]
    rows = "".join(_row(test) for test in tests)
    return f'{head}<div class="scroll"><table><tr>{"".join(f"<th>{c}</th>" for c in columns)}</tr>{rows}</table></div>'


def _row(test: Test) -> str:
    def n(value: float | None, form: str = ".3g") -> str:
        return "" if value is None else format(value, form)

    def span(low: float | None, high: float | None) -> str:
        return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"

    interval = span(test.low, test.high)
    if interval:
        interval += f" ({test.interval}" + (f", covers {test.coverage:.0%}" if test.coverage is not None else "") + ")"
    tokens = "" if test.tokens_a is None or test.tokens_b is None else f"{test.tokens_a:g}, {test.tokens_b:g}"
    unit = "" if test.measure == "1" else f" {test.measure}"
    texts = [
        test.title + (f" ({test.part})" if test.part else "") + (" *" if test.confirmatory else ""),
        f"all of {test.a}" if test.kind == "omnibus" else f"{test.a} less {test.b}",
    ]
    numbers = [
        n(test.difference, "+.3g") + (unit if test.difference is not None else ""),
        interval,
        n(test.effect, "+.2f"),
        span(test.effect_low, test.effect_high),
        n(test.p),
        n(test.p_confirmatory if test.confirmatory else test.p_holm),
        n(test.q_bh),
        f"{test.units}",
    ]
    cells = [*(f"<td>{_e(t)}</td>" for t in texts), *(f'<td class="n">{_e(t)}</td>' for t in numbers)]
    cells += [f"<td>{_e(tokens)}</td>", f"<td class=note>{_e(test.note)}</td>"]
    return f"<tr{' class=found' if test.found else ''}>{''.join(cells)}</tr>"


def _figures(drawn: Sequence[Chart], custom: Sequence[tuple[Metric, dict[str, Any]]]) -> Iterable[tuple[str, str]]:
    for section in dict.fromkeys(chart.section for chart in drawn):
        figures = "".join(_figure(c.key, c.title, c.caption, c.height) for c in drawn if c.section == section)
        grid = f'<div class="figures">{figures}</div>'
        if section == VALUES:
            grid = f"<details><summary>Every tested metric, take by take</summary>{grid}</details>"
        yield section, grid
    if custom:
        figures = "".join(_figure(f"custom-{m.name}", m.title, m.about, 380) for m, _ in custom)
        yield "Further metrics", f'<div class="figures">{figures}</div>'


def _figure(key: str, title: str, caption: str, height: int) -> str:
    place = f'<div class="plot" data-chart="{_e(key)}" style="height:{height}px"></div>'
    return f"<figure><h3>{_e(title)}</h3>{place}<figcaption>{_e(caption)}</figcaption></figure>"


def _recipe(analysis: Analysis) -> str:
    collection = analysis.collection
    parts = []
    if collection.folder is not None and (collection.folder / "study.yaml").is_file():
        text = (collection.folder / "study.yaml").read_text(encoding="utf-8")
        parts.append(
            "<p>Save this as study.yaml, then <code>wanscope generate study.yaml</code> and <code>wanscope analyze "
            f"{_e(collection.name)}</code>. The same machine and versions make the same bits.</p><pre>{_e(text)}</pre>"
        )
    made = analysis.members[0].take.manifest.environment
    versions = ", ".join(f"{name} {version}" for name, version in made.packages.items())
    parts.append(
        f"<p>Takes made by wanscope {_e(made.wanscope)} on {_e(made.platform)}, {_e(made.device)}, Python "
        f"{_e(made.python)}, {_e(versions)}.</p>"
    )
    rows = "".join(
        f"<tr><td>{_e(m.name)}</td><td><code>{_e(m.id)}</code></td><td class=n>{m.seed}</td>"
        f"<td class=n>{'' if m.take.manifest.prompt_tokens is None else m.take.manifest.prompt_tokens}</td>"
        f"<td>{_e(m.take.recipe.prompt)}</td></tr>"
        for m in analysis.members
    )
    parts.append(
        "<details><summary>The takes</summary><div class=scroll><table><tr><th>name</th><th>take</th><th>seed</th>"
        f"<th>tokens</th><th>prompt</th></tr>{rows}</table></div></details>"
    )
    if analysis.left_out:
        items = "".join(f"<li>{_e(left.name)}: {_e(left.why)}</li>" for left in analysis.left_out)
        parts.append(f"<p>Left out:</p><ul>{items}</ul>")
    return "\n".join(parts)


def _definitions(metrics: Sequence[Metric]) -> str:
    rows = "".join(
        f"<tr><td>{_e(m.title)}</td><td><code>{_e(m.name)}</code></td><td>{_e(m.unit)}</td><td>{_e(m.about)}</td></tr>"
        for m in metrics
    )
    return (
        "<p>rms: root mean square per latent value. D: how many values a latent has. Columns of the tables carry the "
        "names in the second column.</p><details><summary>All metrics</summary><div class=scroll><table><tr><th>metric"
        f"</th><th>name</th><th>unit</th><th>definition</th></tr>{rows}</table></div></details>"
    )
