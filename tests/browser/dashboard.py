"""The dashboard in a headless Chromium, as people use it: by mouse, by keyboard, in light and dark, on a small screen.

From the environment: EMBER_URL, KEY_ADMIN, KEY_APP (an inference key that has asked nothing). The functions `assistant` and
`idle` are deployed and stored, `assistant` waits for its first question; `key:app` has a budget. Each step says so.
"""

import faulthandler
import json
import os
import re

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect, sync_playwright

# A step that hangs says where.
STEP_S = 110
URL, ADMIN, APP = (os.environ[name] for name in ("EMBER_URL", "KEY_ADMIN", "KEY_APP"))
CHROMIUM = "/usr/bin/chromium-headless-shell"
VIEWS = ["overview", "chat", "wakes", "usage", "budgets", "functions"]
WAIT_MS = 30_000
# What a browser says by itself of an answer that is an error, where a step asks for one.
ASKED_FOR = re.compile(r"Failed to load resource: (the server responded with a status of (400|401|404)|net::ERR_FAILED)")
NOTES = """
    window.violations = [];
    addEventListener('securitypolicyviolation', (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
expect.set_options(timeout=WAIT_MS)


class Page:
    """A page whose every complaint is noted."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(ignore_https_errors=True, **options)
        self.context.set_default_timeout(WAIT_MS)
        self.context.add_init_script(NOTES)
        self.page, self.complaints, self.fetched = self.context.new_page(), [], []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(URL)

    def sign_in(self, key):
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()

    def view(self, name):
        with self.page.expect_response(lambda response: "/v1/" in response.url):
            self.page.get_by_role("navigation", name="Views").get_by_role("link", name=name.capitalize()).click()
        expect(self.page.get_by_role("heading", level=1, name=name.capitalize())).to_be_visible()

    def api(self, path):
        script = "async ([path, key]) => { const r = await fetch(path, { headers: { authorization: `Bearer ${key}` } }); return r.text() }"
        return self.page.evaluate(script, [path, ADMIN])

    def json(self, path):
        return json.loads(self.api(path))

    def stored_key(self):
        return self.page.evaluate("[sessionStorage.getItem('ember-key'), Object.keys(localStorage), document.cookie]")

    def ask(self, text):
        self.page.get_by_label("Message").fill(text)
        self.page.get_by_role("button", name="Send").click()

    def last_answer(self):
        return self.page.locator(".bubble.assistant").last

    def answered(self):
        expect(self.last_answer().get_by_role("link", name="explain")).to_be_visible()
        return self.last_answer().locator(".timings").inner_text()

    def accessible(self, where):
        found = Axe().run(self.page).response["violations"]
        assert not found, f"{where}: " + "; ".join(f"{each['id']}: {each['nodes'][0]['html']}" for each in found)

    def end(self):
        violations = self.page.evaluate("window.violations")
        left = [said for said in self.complaints if not ASKED_FOR.match(said)]
        assert not violations and not left, f"{violations} {left}"
        foreign = [url for url in self.fetched if not url.startswith((URL, "data:"))]
        assert not foreign, foreign
        self.context.close()


def wrong_and_right_key(one):
    one.accessible("sign in")
    for wrong in ["ember-nothing", "not a key \u2603"]:
        one.sign_in(wrong)
        expect(one.page.get_by_role("alert").filter(has_text="opens nothing here")).to_be_visible()
        assert one.stored_key() == [None, [], ""], one.stored_key()
    one.sign_in(ADMIN)
    expect(one.page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
    expect(one.page.locator("#who")).to_have_text("admin")
    assert one.stored_key() == [ADMIN, [], ""], one.stored_key()
    one.page.reload()
    expect(one.page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
    card = one.page.get_by_role("region", name="Functions")
    expect(card.locator(".stat").filter(has_text="stored")).to_contain_text("2")
    leased = one.page.get_by_role("region", name="Leased")
    expect(leased.get_by_role("meter", name="Cores")).to_be_visible()
    expect(leased).to_contain_text(re.compile(r"Memory\s+[\d.]+ \w*B of [\d.]+ GiB leased"))


def a_chat_and_its_timings(one):
    one.view("chat")
    one.page.get_by_label("Function").select_option("assistant")
    one.ask("Say hello.")
    first = one.answered()
    assert "stored" in first and re.search(r"wake\s+[\d.]+ m?s", first), first
    for said in [r"first token\s+[\d.]+ m?s", r"speed\s+[\d.]+ tokens/s", r"cost\s+0\.\d+ USD", r"tokens\s+\d+"]:
        assert re.search(said, first), f"{said}: {first}"
    one.ask("<img src=x onerror=alert(1)> Say it again.")
    assert "running" in one.answered()
    assert one.page.locator(".log img").count() == 0, "what was typed is text"
    expect(one.page.locator(".bubble.user").last).to_contain_text("<img src=x onerror=alert(1)>")


def an_answer_that_is_stopped(one):
    # What the model says is its own affair: it may be done before the button is pressed, and is then asked again.
    for _ in range(5):
        one.ask("Write a very long story about a fox, a river and a town, in many chapters.")
        expect(one.last_answer().locator(".said")).not_to_be_empty()
        try:
            one.page.get_by_role("button", name="Stop").click(timeout=1_000)
        except PlaywrightTimeout:
            pass
        said = one.answered()
        if "stopped" in said:
            break
    assert "stopped" in said and re.search(r"cost\s+0\.\d+ USD", said), said


def a_prompt_that_is_too_long(one):
    one.ask("ember " * 15_000)
    link = one.last_answer().get_by_role("link", name="explain")
    expect(link).to_be_visible()
    expect(one.last_answer().locator(".error")).to_contain_text("token")
    expect(one.last_answer().locator(".said")).to_have_count(0)
    stands = lambda: one.page.evaluate("(log => log.scrollHeight - log.scrollTop - log.clientHeight)(document.querySelector('.log'))")
    assert stands() <= 1, "the end is in sight"
    expect(one.page.get_by_role("button", name="Send")).to_be_in_viewport()
    link.click()
    happened = one.page.get_by_role("region", name="What happened")
    expect(happened).to_contain_text("refused, status 400")
    expect(happened).to_contain_text("billed; requests in it at once divide it")
    expect(one.page.locator(".waterfall a")).to_have_count(0)
    one.page.go_back()
    expect(one.page.get_by_role("log")).to_be_visible()
    assert stands() <= 1, "it is where it was"


def what_became_of_requests(one):
    one.view("overview")
    expect(one.page.locator(".stat").filter(has_text="Requests")).to_contain_text("1 refused")
    record = {"request": "req-1", "function": "f", "tier": "cold", "outcome": "refused", "memory_bytes": 0, "came_unix_ms": 0, "queue_us": 0, "wake_us": 0, "prefill_us": 0, "first_text_us": 0, "tokens_out": 0}
    line = "async (record) => (await import('/ui/waterfall.js')).waterfall([record], [], 'test')[1].querySelector('.line-head').innerText"
    told = one.page.evaluate(line, record)
    assert "cold" not in told and "·" not in told and told.endswith("f–no textrefused"), told


def the_wake_in_the_waterfall(one):
    one.view("wakes")
    one.page.get_by_label("only those that woke a function").check()
    row = one.page.locator(".waterfall li")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("stored")
    records = [line for line in one.api("/ember/v1/usage/records?since=1h").splitlines() if '"stored"' in line]
    record, wake = json.loads(records[0]), one.json("/ember/v1/instances")["wakes"][0]
    assert (wake["function"], wake["tier"]) == ("assistant", "stored"), wake
    shown = one.page.evaluate("async ([record, wakes]) => (await import('/ui/waterfall.js')).parts(record, wakes)", [record, [wake]])
    waited = record["queue_us"] + record["wake_us"] + record["prefill_us"]
    assert sum(part["us"] for part in shown) == max(waited, record["first_text_us"]), f"{shown} {record}"
    assert {"find", "process"} <= {part["part"] for part in shown}, shown
    woken = sum(part["us"] for part in shown if part["part"] in ("find", "process", "ready", "handover"))
    assert woken == record["wake_us"], f"{shown} {record}"
    for words in ["read and decode", "sandbox and map", "prompt", "first token"]:
        expect(row).to_contain_text(re.compile(words + r" [\d.]+ m?s"))
    one.page.get_by_label("only those that woke a function").uncheck()
    expect(row.nth(2)).to_be_visible()


def what_cannot_be_joined_is_not_made_up(one):
    record = {"function": "f", "tier": "stored", "came_unix_ms": 1000, "ended_unix_ms": 2000, "queue_us": 5, "wake_us": 100, "prefill_us": 7, "first_text_us": 120}
    wake = {"function": "f", "tier": "stored", "ended_unix_ms": 1010, "find_us": 40, "process_us": 50, "ready_us": 20, "handover_us": 10}
    parts = "async ([record, wakes]) => (await import('/ui/waterfall.js')).parts(record, wakes).map(({ part, us }) => `${part} ${us}`)"
    begun_by_another = one.page.evaluate(parts, [record, [wake]])
    assert begun_by_another == ["queue 5", "find 20", "process 50", "ready 20", "handover 10", "prompt 7", "first 8"], begun_by_another
    alone = ["queue 5", "wake 100", "prompt 7", "first 8"]
    for other in [[], [{**wake, "function": "g"}], [{**wake, "tier": "parked"}], [{**wake, "ended_unix_ms": 5000}]]:
        assert one.page.evaluate(parts, [record, other]) == alone, other
    numbers = "async () => { const n = await import('/ui/numbers.js'); return [n.money(3243, 'USD'), n.money(12e9), n.quantile([3, 1, 2], 0.5), n.quantile([1], 0.99), n.bytes(1536), n.ms(1234)] }"
    assert one.page.evaluate(numbers) == ["0.000003243 USD", "12.00", 2, 1, "1.5 KiB", "1.2 ms"]


def the_bill_and_its_explanation(one):
    one.view("usage")
    one.page.get_by_label("By", exact=True).select_option("key")
    expect(one.page.get_by_role("group", name="Usage by key")).to_contain_text("admin")
    first = one.page.get_by_role("group", name="Latest requests").get_by_role("link").last
    request = first.get_attribute("title")
    first.click()
    expect(one.page.get_by_role("heading", level=1, name="Request")).to_be_visible()
    explained = one.json(f"/ember/v1/usage/{request}")
    bill = one.page.get_by_role("region", name="Bill")
    for line in explained["bill"]["lines"]:
        expect(bill).to_contain_text(f"{line['amount_nanos']:,}")
    expect(bill.get_by_role("row", name="Cost")).to_contain_text(f"{explained['record']['cost_nanos']:,}")
    expect(one.page.get_by_role("region", name="What happened")).to_contain_text("not billed")
    one.page.go_back()
    one.page.get_by_label("Request", exact=True).fill(request)
    one.page.get_by_role("button", name="Explain").click()
    expect(one.page.get_by_role("region", name="Bill")).to_contain_text("rounded up to")


def budgets_and_snapshots(one):
    one.view("budgets")
    row = one.page.get_by_role("row", name="key:app")
    expect(row).to_contain_text("5.00 USD a month")
    expect(row).to_contain_text(re.compile(r"\d{4}-\d\d-01 .* \(in \d+ (days|hours|minutes)\)"))
    one.view("functions")
    snapshot = next(each for each in one.json("/ember/v1/snapshots")["data"] if each["function"] == "assistant")
    expect(one.page.get_by_role("row", name="assistant")).to_contain_text(f"{snapshot['file_bytes'] / 2**20:.1f} MiB")


def looking_wakes_nothing(one):
    one.page.evaluate("async ([key]) => fetch('/ember/v1/functions/assistant/stop', { method: 'POST', headers: { authorization: `Bearer ${key}` } })", [ADMIN])
    wakes = lambda: [line for line in one.api("/metrics").splitlines() if line.startswith("ember_wakes_total")]
    before = wakes()
    for view in VIEWS:
        one.view(view)
    one.view("wakes")
    for _ in range(3):
        one.page.wait_for_event("response", predicate=lambda response: "/usage/records" in response.url)
    tiers = {row["name"]: row["tier"] for row in one.json("/ember/v1/functions")["data"]}
    assert tiers == {"assistant": "stored", "idle": "stored"} and wakes() == before, f"{tiers} {before} {wakes()}"


def a_server_that_does_not_answer(browser):
    one = Page(browser)
    one.sign_in(ADMIN)
    live, shown = one.page.locator("#live"), one.page.locator("#view")
    expect(one.page.locator(".stats").first).to_be_visible()
    expect(live).to_have_text("Live")
    one.page.route("**/ember/**", lambda route: route.abort())
    expect(live).to_have_text("Not reached")
    expect(shown).to_have_class("stale")
    expect(one.page.get_by_role("alert")).to_have_text("The server does not answer.")
    one.accessible("not reached")
    one.page.unroute("**/ember/**")
    expect(live).to_have_text("Live")
    expect(shown).not_to_have_class("stale")
    one.end()


def everywhere(one, theme):
    for view in VIEWS:
        one.view(view)
        expect(one.page.locator("#view table, #view .none, #view .waterfall, #view textarea").first).to_be_visible()
        one.accessible(f"{view}, {theme}")
        wide = one.page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], f"{view} is {wide[0]} px wide on {wide[1]}"
        scrolls = one.page.evaluate("[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth).map(each => each.ariaLabel)")
        assert not scrolls, f"{view}, {theme}: {scrolls} cut off"


def themes(browser):
    looks = set()
    for theme, width in [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)]:
        one = Page(browser, color_scheme=theme, viewport={"width": width, "height": 800})
        one.sign_in(ADMIN)
        everywhere(one, f"{theme} {width}")
        colour = lambda: one.page.evaluate("getComputedStyle(document.body).backgroundColor")
        looks.add(colour())
        button = one.page.get_by_role("button", name="Theme")
        chosen = []
        for _ in range(3):
            button.click()
            chosen.append((button.inner_text(), colour()))
        assert [name for name, _ in chosen] == ["Theme: light", "Theme: dark", "Theme: auto"], chosen
        assert chosen[0][1] != chosen[1][1] and chosen[2][1] == colour(), chosen
        one.end()
    assert len(looks) == 2, looks


def by_keyboard_alone(browser):
    one = Page(browser)
    keyboard, page = one.page.keyboard, one.page
    expect(page.get_by_label("API key")).to_be_focused()
    keyboard.type(ADMIN)
    keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
    # Signing in ends with this, and would take the focus away later.
    expect(page.locator("#main")).to_be_focused()

    def tab_to(name):
        for _ in range(60):
            keyboard.press("Tab")
            seen = page.evaluate("""() => {
                const at = document.activeElement, style = getComputedStyle(at);
                return [at.getAttribute('aria-label') ?? at.labels?.[0]?.textContent ?? at.textContent, style.outlineStyle, parseFloat(style.outlineWidth)];
            }""")
            # Past the last element comes the page itself, then the first.
            if page.evaluate("document.activeElement === document.body"):
                continue
            assert seen[1] != "none" and seen[2] >= 2, f"no focus is seen on {seen}"
            if name in (seen[0] or ""):
                return
        raise AssertionError(f"no Tab leads to {name}")

    def from_the_top():
        # A blur alone leaves where Tab goes on, which what is drawn anew may move.
        page.evaluate("() => { document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex'); }")

    from_the_top()
    keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    from_the_top()
    tab_to("Chat")
    keyboard.press("Enter")
    tab_to("Message")
    keyboard.type("Say hi.")
    keyboard.press("Enter")
    one.answered()
    tab_to("explain")
    keyboard.press("Enter")
    expect(page.get_by_role("region", name="Bill")).to_be_visible()
    from_the_top()
    tab_to("Sign out")
    keyboard.press("Enter")
    expect(page.get_by_label("API key")).to_be_focused()
    assert one.stored_key() == [None, [], ""] and page.locator("#view").inner_text() == "", one.stored_key()
    one.end()


def an_inference_key_sees_its_own(browser, of_admin):
    one = Page(browser)
    one.sign_in(APP)
    expect(one.page.locator("#who")).to_have_text("app")
    assert one.page.get_by_role("navigation", name="Views").get_by_role("link").all_inner_texts() == [view.capitalize() for view in VIEWS[:-1]]
    one.view("usage")
    expect(one.page.get_by_text("Nothing was used in this time.")).to_be_visible()
    one.view("chat")
    one.page.get_by_label("Function").select_option("assistant")
    one.ask("Say hello.")
    one.answered()
    one.view("usage")
    expect(one.page.get_by_role("group", name="Latest requests").get_by_role("link")).to_have_count(1)
    one.view("wakes")
    expect(one.page.locator(".waterfall li")).to_have_count(1)
    one.view("budgets")
    expect(one.page.get_by_role("row", name="key:app")).to_contain_text("5.00 USD a month")
    one.page.goto(f"{URL}/#request/{of_admin}")
    expect(one.page.get_by_role("alert").filter(has_text="knows no request")).to_be_visible()
    asked = [url for url in one.fetched if "/ember/v1/" in url]
    assert all("/ember/v1/key" in url for url in asked), asked
    one.end()


def main():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        one = Page(browser)
        for step in [
            wrong_and_right_key,
            a_chat_and_its_timings,
            an_answer_that_is_stopped,
            a_prompt_that_is_too_long,
            what_became_of_requests,
            the_wake_in_the_waterfall,
            what_cannot_be_joined_is_not_made_up,
            the_bill_and_its_explanation,
            budgets_and_snapshots,
            looking_wakes_nothing,
        ]:
            faulthandler.dump_traceback_later(STEP_S, exit=True)
            step(one)
            print("ok", step.__name__, flush=True)
        of_admin = json.loads(one.api("/ember/v1/usage/records?since=1h").splitlines()[0])["request"]
        one.end()
        for step, arguments in [(by_keyboard_alone, ()), (an_inference_key_sees_its_own, (of_admin,)), (a_server_that_does_not_answer, ()), (themes, ())]:
            faulthandler.dump_traceback_later(STEP_S, exit=True)
            step(browser, *arguments)
            print("ok", step.__name__, flush=True)
        browser.close()


main()
