"""A demo as one HTML page that stands alone: no script, no network, nothing beside it.

Whatever comes from a model, a file or a command line passes through ``literal``.
"""

from __future__ import annotations

from pathlib import Path

from dspark.report.bars import bar, strip
from dspark.report.demo import DemoRecord, PairFigures, Showing, Spread
from dspark.report.document import document, facts, section, tiles, write_document
from dspark.report.markup import literal
from dspark.report.spans import Span
from dspark.report.story import cautions, explanation, figure, headline, method


def write_page(path: Path, record: DemoRecord) -> None:
    """Write the page whole or not at all."""
    write_document(path, page(record))


def page(record: DemoRecord) -> str:
    """The HTML document."""
    body = "\n".join(
        [
            _header(record),
            _warnings(record),
            _speeds(record),
            section("What happened", "".join(f"<p>{literal(p)}</p>" for p in explanation(record))),
            _texts(record),
            _setting(record),
        ]
    )
    return document(f"DSpark demo: {record.target}", body)


def _header(record: DemoRecord) -> str:
    pair = record.overall
    figures = {
        f"tokens a second, {pair.plain.median:.1f} without drafting": f"{pair.spec.median:.1f}",
        "tokens gained a round (tau)": figure(pair.tau),
        "texts identical to plain decoding": f"{pair.equal}/{pair.total}",
    }
    return (
        f'<header>\n<p class="kicker">DSpark demo</p>\n'
        f"<h1>{literal(headline(record))}</h1>\n"
        f"<p>{literal(record.target)} answering {len(record.showings)} prompts, plain and with the drafter"
        f" {literal(record.drafter)}.</p>\n{tiles(figures)}\n</header>"
    )


def _warnings(record: DemoRecord) -> str:
    kind = "warning failure" if record.overall.unexplained else "warning"
    notes = "".join(f"<p>{literal(caution)}</p>" for caution in cautions(record))
    return f'<aside class="{kind}">{notes}</aside>' if notes else ""


def _speeds(record: DemoRecord) -> str:
    rows = [*record.pairs, record.overall] if len(record.pairs) > 1 else list(record.pairs)
    largest = max(spread.high for pair in rows for spread in (pair.plain, pair.spec))
    groups = "".join(_bars(pair, largest) for pair in record.pairs)
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in (
            "",
            "plain tok/s",
            "speculative tok/s",
            "speed-up",
            "tau",
            "drafts accepted",
            "identical",
        )
    )
    body = "".join(_row(pair) for pair in rows)
    return section(
        "Tokens a second",
        f'<div class="bars">{groups}</div>\n<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div>\n<p class="note">{literal(method(record))}</p>',
    )


def _bars(pair: PairFigures, largest: float) -> str:
    lines = ""
    for kind, name, spread in (("plain", "plain", pair.plain), ("spec", "speculative", pair.spec)):
        drawn = bar(spread, largest, kind, f"{pair.domain}, {name}: {spread.median:.1f} tokens a second")
        lines += f'<span class="name">{name}</span>{drawn}<span class="value">{spread.median:.1f}</span>'
    kind = "gain" if pair.speedup >= 1 else "loss"
    head = f'<h3>{literal(pair.domain)} <span class="{kind}">{pair.speedup:.2f}×</span></h3>'
    return f'<div class="group">{head}<div class="pair">{lines}</div></div>'


def _row(pair: PairFigures) -> str:
    share = f"{100 * pair.accepted / pair.drafted:.0f} %" if pair.drafted else "-"
    same = f"{pair.equal}/{pair.total}" + (f" ({pair.unexplained} unexplained)" if pair.unexplained else "")
    cells = [_spread(pair.plain), _spread(pair.spec)]
    cells += [literal(text) for text in (f"{pair.speedup:.2f}×", figure(pair.tau), share, same)]
    return f'<tr><th scope="row">{literal(pair.domain)}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.1f} <small>{spread.low:.1f}–{spread.high:.1f}</small>"


def _texts(record: DemoRecord) -> str:
    legend = (
        '<p class="legend"><mark>Marked</mark>: drafted and accepted; <mark class="copied">marked so</mark>: copied'
        " from where the last words stood before, and accepted. Unmarked: the target’s own token, one a round."
        " In the strips each column is a round, read from the foot:"
        ' <span class="key"><i class="own"></i>the target’s own token</span>'
        ' <span class="key"><i class="accepted"></i>accepted drafts</span>'
        ' <span class="key"><i class="copied"></i>accepted copies</span>'
        ' <span class="key"><i class="rejected"></i>rejected drafts</span></p>'
    )
    return section("The texts", legend + "".join(_showing(one) for one in record.showings))


def _showing(one: Showing) -> str:
    code = " code" if one.domain == "code" else ""
    marked = "".join(_span(span, one) for span in one.spec_spans)
    bad = ' class="bad"' if one.verdict.unexplained else ""
    rate = f"tau {figure(one.tau)}, {one.accepted} of {one.drafted} drafted tokens accepted in {len(one.rounds)} rounds"
    return (
        f'<article>\n<p class="kicker">{literal(one.domain)}</p>\n<h3>{literal(one.prompt)}</h3>\n'
        f'<div class="sides"><div><h4>plain <span>{one.plain_tok_s:.1f} tok/s</span></h4>'
        f'<div class="text{code}">{literal(one.plain_text)}</div></div>'
        f"<div><h4>speculative <span>{one.spec_tok_s:.1f} tok/s</span></h4>"
        f'<div class="text{code}">{marked}</div></div></div>\n{strip(one.rounds)}\n'
        f'<p class="note">{literal(rate)}. Texts: <span{bad}>{literal(one.verdict.sentence())}</span>.</p>\n'
        "</article>\n"
    )


def _span(span: Span, one: Showing) -> str:
    if not span.accepted:
        return literal(span.text)
    # Round 0 reads the prompt and drafts nothing: the strip begins with round 1.
    fate = one.rounds[span.round - 1]
    kind = "copied" if fate.copied else "drafted"
    title = f"round {span.round}: {fate.accepted} of {fate.drafted} {kind} tokens accepted"
    return f'<mark class="{kind}" title="{literal(title)}">{literal(span.text)}</mark>'


def _setting(record: DemoRecord) -> str:
    rows = {
        "target": record.target,
        "drafter": f"{record.drafter} (blocks of {record.block})",
        "dtype": record.dtype,
        **record.machine,
        "date": record.date,
        "took": f"{record.seconds:.0f} s, without loading",
        "command": record.command,
    }
    return section("Setting", facts(rows))
