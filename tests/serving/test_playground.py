"""The playground in a real browser: a conversation, the tokens behind it, and what goes wrong.

Tests that ask for ``address`` alone hold for any server that speaks the API; the others script one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from standin import StandIn, rounds_of, serving

from chromium import chromium, prefer, resize

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>&amp;<b>${7*7}</b> \'"` \u202e \u0000'
SECONDS = 60


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def script(self, code: str, *arguments: object) -> object:
        return self.browser.execute_script(f"return {code}", *arguments)

    def content(self, selector: str) -> str:
        """The text of the last such element, seen or not, spaces as they are."""
        return str(self.script("[...document.querySelectorAll(arguments[0])].at(-1).textContent", selector))

    def until(self, holds: object, why: str) -> None:
        assert callable(holds)
        WebDriverWait(self.browser, SECONDS, 0.05).until(lambda _: holds(), why)

    def fill(self, selector: str, text: str) -> None:
        self.script("arguments[0].focus(), arguments[0].select()", self.one(selector))
        self.one(selector).send_keys(text)

    def send(self, text: str) -> None:
        self.fill("#prompt", text + Keys.ENTER)

    def ask(self, text: str) -> None:
        """Send, and wait until the answer is over."""
        before = len(self.all(".exchange"))
        self.send(text)
        self.until(lambda: len(self.all(".exchange")) == before + 1, "no question on the page")
        self.rest()

    def rest(self) -> None:
        self.until(lambda: self.one("#send").is_displayed(), "the answer never ended")

    def mode(self, name: str) -> None:
        self.script("document.querySelector(`input[name=mode][value='${arguments[0]}']`).click()", name)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as found:
        yield found


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
def address(standin: StandIn) -> Iterator[str]:
    """Of the server under test; tests that don't ask for ``standin`` hold with any other in its place."""
    with serving(standin) as url:
        yield url


@pytest.fixture
def page(browser: Chrome, address: str) -> Iterator[Page]:
    """The page, freshly opened; at the end it must have kept to its policy and to its own server."""
    resize(browser, 1280, 860)
    prefer(browser, prefers_color_scheme="light")
    browser.get_log("browser")
    browser.get(address)
    page = Page(browser)
    page.until(lambda: page.one("#pulse").get_attribute("class"), "the page never heard of its server")
    yield page
    log = [entry for entry in browser.get_log("browser") if entry["source"] not in {"network", "recommendation"}]
    assert log == []
    fetched = page.script("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert isinstance(fetched, list)
    assert len(fetched) > 3
    assert all(name.startswith(address) for name in fetched)
    page.script("localStorage.clear()")


# Any server


def test_a_conversation_shows_its_tokens_and_figures(page: Page) -> None:
    for turn in (1, 2):
        page.ask("Why is the sky blue?")
        assert len(page.all(".reply:not(.streaming)")) == turn
        assert page.content(".text").strip()
        assert "tokens a second" in page.content(".figures")
        assert "tokens a round (tau)" in page.content(".figures")
    assert page.all(".token.accepted, .token.copied")
    assert page.all(".tokens .token.own")
    assert not page.all(".failure")


def test_the_server_names_its_model_and_its_mode(page: Page) -> None:
    page.until(lambda: page.one("#pulse").get_attribute("class") == "well", "no state")
    assert len(page.one("#server").text) > 2
    assert page.one("#server-mode").text in page.one("#mode-note").text


def test_nothing_is_cut_off_on_a_phone_or_a_wide_screen(page: Page) -> None:
    page.ask("Why is the sky blue?")
    for width in (360, 390, 700, 1000, 1600):
        resize(page.browser, width, 800)
        assert page.script("document.documentElement.scrollWidth") == width
        for selector in ("#prompt", "#send", "#show-tokens + i", ".gauges b", ".tokens"):
            box = page.one(selector).rect
            assert box["width"] > 0
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


def test_every_control_has_a_name_and_keys_reach_it(page: Page) -> None:
    controls = page.all("button, input, textarea")
    assert len(controls) > 12
    nameless = [one.get_attribute("id") for one in controls if one.is_displayed() and not one.accessible_name.strip()]
    assert nameless == []
    reached = set()
    for _ in range(len(controls) + 5):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.script("document.activeElement.id || document.activeElement.name"))
    assert {"theme", "mode", "temperature", "max-tokens", "system", "key", "show-tokens", "show-rejected"} <= reached


# Tokens


def test_tokens_add_up_to_the_text_and_rejected_ones_are_no_part_of_it(page: Page, standin: StandIn) -> None:
    standin.rounds = rounds_of("One two three, four five.\n\nSix seven eight nine; ten eleven twelve thirteen.", seed=2)
    page.ask("Count.")
    text = "".join("".join(one["tokens"]) for one in standin.rounds)
    assert page.content(".text") == text
    kept = "[...document.querySelectorAll('.tokens :is(.gap, .join, .token):not(.rejected)')]"
    spaces = "[...document.querySelectorAll('.tokens .gap.rejected')]"
    assert page.script(f"{kept}.map(piece => piece.textContent).join('')") == text
    assert page.script(f"{spaces}.every(piece => getComputedStyle(piece).userSelect === 'none')")
    rejected = sum(len(one["drafts"]) - one["accepted"] for one in standin.rounds)
    accepted = sum(one["accepted"] for one in standin.rounds)
    assert rejected > 3
    assert accepted > 3
    assert len(page.all(".tokens .token.rejected")) == rejected == len(page.all(".strip i.rejected"))
    assert len(page.all(".tokens .token:is(.accepted, .copied)")) == accepted
    assert "line-through" in page.all(".tokens .token.rejected")[0].value_of_css_property("text-decoration")
    assert page.one(".tokens").get_attribute("aria-hidden") == "true"
    assert f"{accepted} of {accepted + rejected}" in page.content(".figures")
    page.one("#show-rejected").click()
    assert not any(token.is_displayed() for token in page.all(".tokens .token.rejected"))
    page.one("#show-tokens + i").click()
    assert not any(part.is_displayed() for part in page.all(".tokens, .strip"))
    assert page.one(".text").is_displayed()


def test_a_round_that_is_pointed_at_says_what_it_was(page: Page, standin: StandIn) -> None:
    standin.rounds = [
        {"source": None, "drafts": [], "accepted": 0, "tokens": ["So"]},
        {"source": "drafter", "drafts": [" yes", " and", " so"], "accepted": 1, "tokens": [" yes", ","]},
        {"source": "lookup", "drafts": [" no"], "accepted": 1, "tokens": [" no", "."]},
        {"source": None, "drafts": [], "accepted": 0, "tokens": [" Well"]},
    ]
    page.ask("Yes or no?")
    said = []
    for index in range(4):
        over = "new PointerEvent('pointerover', {bubbles: true})"
        page.script(f"document.querySelector(`.strip [data-round='{index}']`).dispatchEvent({over})")
        said.append(page.content(".told"))
        assert len(page.all(".tokens .lit")) == 1
    assert "prompt" in said[0]
    assert "1 of 3 drafted" in said[1]
    assert "1 of 1 copied" in said[2]
    assert "nothing drafted" in said[3]
    assert "1.67" in page.content(".figures")  # five tokens in three rounds: the first came with the prompt


def test_text_without_rounds_is_shown_once(page: Page, standin: StandIn) -> None:
    # A server may tell of the first token, which needs no round, or of held-back text, without one.
    standin.rounds = [
        {"tokens": ["Well", ","], "drafts": [], "accepted": 0, "untold": True},
        *rounds_of(" all is well."),
    ]
    page.ask("Is all well?")
    assert page.content(".text") == "Well, all is well."
    kept = "[...document.querySelectorAll('.tokens .rejected')].forEach(t => t.remove())"
    page.script(kept)
    assert page.content(".tokens") == "Well, all is well."


def test_without_tokens_none_are_asked_for(page: Page, standin: StandIn) -> None:
    page.script("document.getElementById('show-tokens').click()")
    page.ask("Why?")
    assert standin.asked[0]["speculative"] == {"summary": True, "trace": False}
    assert page.one(".text").is_displayed()
    assert not page.all(".tokens .token")
    assert "tokens a second" in page.content(".figures")


# What is asked


def test_turns_and_the_system_prompt_are_sent_in_order(page: Page, standin: StandIn) -> None:
    page.fill("#system", "Be brief.")
    page.ask("First?")
    page.ask("Second?")
    answer = "".join("".join(one["tokens"]) for one in standin.rounds)
    assert [(m["role"], m["content"]) for m in standin.asked[1]["messages"]] == [
        ("system", "Be brief."),
        ("user", "First?"),
        ("assistant", answer),
        ("user", "Second?"),
    ]
    page.one("#clear").click()
    assert not page.all(".exchange")
    page.ask("Third?")
    assert [m["content"] for m in standin.asked[2]["messages"]] == ["Be brief.", "Third?"]


def test_what_is_set_is_what_is_asked_for(page: Page, standin: StandIn) -> None:
    page.mode("fixed")
    page.fill("#drafts", "3")
    page.fill("#max-tokens", "77")
    page.script("arguments[0].value = .7, arguments[0].dispatchEvent(new Event('input'))", page.one("#temperature"))
    assert page.one("#temperature-shown").text == "0.7"
    page.ask("Why?")
    asked = standin.asked[0]
    assert page.one("#drafts").get_attribute("max") == "7"  # the most that the server offers
    assert asked["speculative"] == {"mode": "fixed", "draft_tokens": 3, "summary": True, "trace": True}
    assert (asked["max_tokens"], asked["temperature"], asked["stream"]) == (77, 0.7, True)
    assert asked["model"] == standin.state()["model"]
    for mode in ("off", "adaptive"):
        page.mode(mode)
        page.ask("Why?")
        assert standin.asked[-1]["speculative"]["mode"] == mode
        assert "draft_tokens" not in standin.asked[-1]["speculative"]


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_stream_and_keeps_what_came(page: Page, standin: StandIn, how: str) -> None:
    standin.rounds = rounds_of("On and on and on. " * 100)
    standin.pause = 0.03
    page.send("Go on.")
    page.until(lambda: len(page.all(".tokens .token")) > 5, "nothing streamed")
    assert page.one("#stop").is_displayed()
    if how == "button":
        page.one("#stop").click()
    else:
        page.one("#prompt").send_keys(Keys.ESCAPE)
    page.rest()
    page.until(lambda: standin.left == 1, "the server never heard of it")
    assert "Stopped." in page.content(".reply")
    kept = page.content(".text")
    standin.rounds, standin.pause = rounds_of("Yes."), 0
    page.ask("And?")
    assert [m["content"] for m in standin.asked[1]["messages"]] == ["Go on.", kept, "And?"]


# What goes wrong


@pytest.mark.parametrize(
    ("status", "message", "headers", "shown"),
    [
        (400, "temperature must be at most 2, got 9", {}, "temperature must be at most 2, got 9"),
        (429, "64 requests are waiting", {"Retry-After": "7"}, "wait 7 s"),
        (503, "the engine failed", {}, "the engine failed"),
        (400, HOSTILE, {}, HOSTILE),
    ],
)
def test_a_refusal_is_shown_and_another_try_forgets_it(
    page: Page, standin: StandIn, status: int, message: str, headers: dict[str, str], shown: str
) -> None:
    standin.refusal = (status, message, headers)
    page.ask("Why?")
    assert str(status) in page.content(".failure strong")
    assert shown in page.content(".failure")
    assert page.one(".failure").get_attribute("role") == "alert"
    page.ask("Really?")
    assert [m["content"] for m in standin.asked[1]["messages"]] == ["Really?"]
    standin.refusal = None
    page.all(".failure button")[-1].click()
    page.until(lambda: page.content(".text") != "", "no answer on the second try")
    page.rest()
    assert len(page.all(".failure")) == 1
    assert page.script("window.hit") is None


@pytest.mark.parametrize("last_words", [None, "the engine failed"])
def test_a_stream_that_breaks_off_is_told_from_one_that_ends(
    page: Page, standin: StandIn, last_words: str | None
) -> None:
    standin.breaks_after, standin.last_words = 2, last_words
    page.ask("Why?")
    assert page.content(".text") == "".join("".join(one["tokens"]) for one in standin.rounds[:2])
    assert "broke off" in page.content(".failure")
    assert (last_words or "before the server had said") in page.content(".failure")


def test_a_server_that_is_gone_is_said_to_be_and_may_come_back(page: Page, standin: StandIn) -> None:
    standin.well = False
    page.until(lambda: page.one("#pulse").get_attribute("class") == "lost", "nobody noticed")
    assert page.one("#server").text == "The server doesn’t answer"
    standin.well = True
    page.until(lambda: page.one("#pulse").get_attribute("class") == "well", "nobody noticed")


def test_a_key_is_asked_for_and_kept_in_memory_alone(page: Page, standin: StandIn) -> None:
    standin.key = "sk-very-secret"
    page.ask("Why?")
    assert "API key" in page.content(".failure")
    assert page.script("document.activeElement.id") == "key"
    page.browser.switch_to.active_element.send_keys("sk-very-secret")
    page.one(".failure button").click()
    page.until(lambda: page.content(".text") != "", "the key did not help")
    page.rest()
    stored = page.script("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "secret" not in str(stored)
    assert "secret" not in str(standin.asked)
    page.browser.refresh()
    assert page.one("#key").get_attribute("value") == ""


def test_what_a_model_writes_is_text(page: Page, standin: StandIn) -> None:
    standin.rounds = [
        {"source": "drafter", "drafts": [HOSTILE, HOSTILE], "accepted": 1, "tokens": [HOSTILE, HOSTILE]},
        {"source": "lookup", "drafts": ["</span>"], "accepted": 0, "tokens": ["<svg onload=window.hit=1>"]},
    ]
    page.ask(HOSTILE.replace("\u0000", ""))
    assert page.content(".text") == HOSTILE * 2 + "<svg onload=window.hit=1>"
    assert page.all(".tokens .rejected")[0].get_property("textContent") == HOSTILE
    assert page.all("#thread :is(img, script, b, svg)") == []
    assert page.script("window.hit") is None


# How it looks and how it fares


def test_gauges_follow_the_server(page: Page, standin: StandIn) -> None:
    # Longer than a slow machine takes to look at four gauges: requests are under way for as long as this tells.
    standin.rounds, standin.pause = rounds_of("On and on. " * 2000), 0.05
    page.send("Go on.")
    for gauge in ("speed", "tau", "verify", "load"):
        value = page.one(f"#gauge-{gauge} b")
        page.until(lambda value=value: value.text not in {"–", "0", "0.0"}, f"{gauge} stands still")
        page.until(lambda gauge=gauge: " L " in page.one(f"#gauge-{gauge} .line").get_attribute("d"), "no curve")
    assert page.one("#acceptance").text.endswith(" %")
    assert abs(float(page.one("#gauge-speed b").text) - standin.state()["tok_s"]) < 0.5 * standin.state()["tok_s"]
    page.one("#stop").click()


def test_a_page_that_nobody_sees_asks_nothing(page: Page, standin: StandIn) -> None:
    page.script("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    time.sleep(1.5)  # a question that was under way
    before = standin.looked
    time.sleep(2.2)
    assert standin.looked == before
    page.script("(delete document.hidden, document.dispatchEvent(new Event('visibilitychange')))")
    page.until(lambda: standin.looked > before + 1, "it asks no more")


def test_colours_follow_the_system_until_they_are_set(page: Page) -> None:
    def dark() -> bool:
        colour = page.one("body").value_of_css_property("background-color")
        return sum(int(part) for part in colour.partition("(")[2].split(",")[:3]) < 200

    assert not dark()
    prefer(page.browser, prefers_color_scheme="dark")
    assert dark()
    page.one("#theme").click()
    assert not dark()
    page.browser.refresh()
    assert not dark()
    page.one("#theme").click()
    assert dark()
    assert page.script("localStorage.length") == 0


def test_settings_on_a_phone_open_and_close_by_keyboard(page: Page) -> None:
    resize(page.browser, 390, 844)
    assert not page.one("#settings").is_displayed()
    page.one("#open-settings").send_keys(Keys.ENTER)
    assert page.one("#settings").is_displayed()
    assert page.one("#open-settings").get_attribute("aria-expanded") == "true"
    page.one("#system").send_keys(Keys.ESCAPE)
    assert not page.one("#settings").is_displayed()
    assert page.script("document.activeElement.id") == "open-settings"


def test_a_screen_reader_hears_sentences_once_each(page: Page, standin: StandIn) -> None:
    standin.rounds = rounds_of("The sky is blue. The sea is green. And the sun", seed=4)
    page.ask("Colours?")
    said = page.script("[...document.querySelectorAll('#announcer p')].map(p => p.textContent)")
    assert isinstance(said, list)
    assert len(said) > 1
    assert "".join(said) == "The sky is blue. The sea is green. And the sun"
    assert all(sentence.endswith((". ", ".")) for sentence in said[:-1])
