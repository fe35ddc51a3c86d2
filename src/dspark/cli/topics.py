"""Help of a verb with many options, by topic."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class ByTopic(TyperCommand):
    """Lists options under the panel that each was given, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """As the option's ``rich_help_panel`` says, "Options" where it says nothing."""
        topics: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                topics.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for topic, records in topics.items():
            with formatter.section(topic):
                formatter.write_dl(records)
