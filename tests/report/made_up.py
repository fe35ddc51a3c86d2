"""Values of a made-up record: texts, rounds and round numbers."""

from __future__ import annotations

from dspark.report.demo import PairFigures, RoundBar, Showing, Spread, Verdict
from dspark.report.spans import spans

HOSTILE = "<script>alert(1)</script></style>\"'&\x1b[31m\x00 $('x') <img src=x onerror=y>"
TEXTS = {
    "math": "A box holds 12 eggs, so 5 boxes hold 12 * 5 = 60 eggs.\nWith the 4 eggs that are left over:\n"
    "60 + 4 = 64.\n\nThe farmer has 64 eggs.",
    "code": "```python\ndef is_palindrome(word):\n    return word == word[::-1]\n```\n\nThis function reverses"
    " the word by slicing and checks whether it equals itself: 'Löffel' does not, 'anna' does.",
    "chat": "Yes, that is quite normal. Cats sleep between twelve and sixteen hours a day, and older cats"
    " even more 🐈. If she eats, drinks and plays as usual, there is nothing to worry about.",
}


def decode(ids: list[int] | tuple[int, ...]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def showing(domain: str, text: str, number: int, prompt: str = "How many eggs are there?") -> Showing:
    data = text.encode()
    rounds: list[tuple[bytes, int]] = [(data[:1], 0)]
    position, accepts = 1, (3, 0, 7, 1, 5, 2, 4, 0, 6)
    while position < len(data):
        count = min(accepts[(len(rounds) + number) % len(accepts)], len(data) - position)
        piece = data[position : position + count + 1]
        rounds.append((piece, min(count, len(piece))))
        position += len(piece)
    bars = tuple(RoundBar(7, accepted, len(piece), i % 3 == 2) for i, (piece, accepted) in enumerate(rounds[1:]))
    return Showing(
        id=f"{domain}-{number}",
        domain=domain,
        prompt=prompt,
        plain_text=text,
        plain_tokens=len(data),
        plain_tok_s=19.8,
        spec_spans=spans(decode, [(tuple(piece), accepted) for piece, accepted in rounds]),
        spec_tokens=len(data),
        spec_tok_s=33.4,
        rounds=bars,
        tau=(len(data) - 1) / len(bars),
        verdict=Verdict(equal=True, unexplained=False),
    )


def pair(domain: str, plain: float, spec: float, tau: float, prompts: int = 2) -> PairFigures:
    return PairFigures(
        domain=domain,
        plain=Spread(plain - 0.6, plain, plain + 0.3),
        spec=Spread(spec - 1.5, spec, spec + 1.1),
        speedup_spread=Spread(spec / plain - 0.06, spec / plain, spec / plain + 0.05),
        tau=tau,
        drafted=1190,
        accepted=421,
        equal=prompts,
        total=prompts,
        unexplained=0,
        shown_tau=tau,
        repeat_share=0.0,
        tau_without_repeats=tau,
    )
