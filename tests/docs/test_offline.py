"""The hook that keeps the site from asking other hosts for anything."""

from __future__ import annotations

import pytest

from offline import loaded_from_elsewhere

ELSEWHERE = "//host/file"


@pytest.mark.parametrize(
    "page",
    [
        f'<script src="https:{ELSEWHERE}"></script>',
        f'<img src="{ELSEWHERE}">',
        f'<link rel="stylesheet" href="https:{ELSEWHERE}">',
        f'<link rel="preconnect" href="https:{ELSEWHERE}" crossorigin>',
        f'<iframe src="http:{ELSEWHERE}"></iframe>',
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(page: str) -> None:
    assert [each.partition(":")[2] or each for each in loaded_from_elsewhere(page)] == [ELSEWHERE]


@pytest.mark.parametrize(
    "page",
    [
        f'<a href="https:{ELSEWHERE}">a reader may follow it</a>',
        f'<link rel="canonical" href="https:{ELSEWHERE}">',
        '<script src="assets/app.js"></script><img src="../images/a.png" alt="https:">',
    ],
)
def test_what_it_merely_names_is_left_alone(page: str) -> None:
    assert loaded_from_elsewhere(page) == []
