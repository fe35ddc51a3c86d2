"""`--prompts a.jsonl b.jsonl`: options that take several values, the way shells expand `*.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence

# Verbs with these options have no arguments of their own: a bare word belongs to the option before it.
SEVERAL = ("--prompts", "--domain", "--benchmark", "--against", "--set", "--endpoint", "--responses")


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat such an option before each of its further values, for a parser that takes one value an option.

    A further file of ``--domain NAME=F F`` belongs to the same name.
    """
    result: list[str] = []
    option: str | None = None
    name = ""
    for word in arguments:
        if word.startswith("-") and word != "-":
            option, _, value = word.partition("=")
            option = option if option in SEVERAL else None
            name = value.partition("=")[0] if "=" in value else ""
            result.append(word)
            continue
        if option is None:
            result.append(word)
            continue
        if result[-1] != option:
            result.append(option)
        if option == "--domain" and name and "=" not in word:
            word = f"{name}={word}"
        elif "=" in word:
            name = word.partition("=")[0]
        result.append(word)
    return result
